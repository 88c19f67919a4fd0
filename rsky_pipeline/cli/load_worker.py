"""`rsky-pipeline load-worker`: one process of a load. `load` starts it, people do not."""

import json
import sys
from typing import Any

import click

from rsky_pipeline.cli.command import Invocation, operator_command


@operator_command(name="load-worker", json=False, configuration=False)
@click.option("--settings-fd", type=int, required=True, help="Read the settings from here.")
@click.option("--options", required=True, help="Options of the load, as JSON.")
def command(run: Invocation, settings_fd: int, options: str) -> None:
    """Load files that are named on standard input."""
    import trio

    from rsky_pipeline.database.errors import DatabaseError
    from rsky_pipeline.operations.load.worker import LoadOptions, serve
    from rsky_pipeline.runtime import logging as log_setup
    from rsky_pipeline.runtime.channel import read_settings
    from rsky_pipeline.runtime.threads import ease_collector

    ease_collector()
    settings = read_settings(settings_fd)
    log_setup.configure(settings.log_level, settings.log_format, role="load")

    def answer(document: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()

    try:
        trio.run(serve, settings, LoadOptions(**json.loads(options)), sys.stdin, answer)
    except DatabaseError as error:
        answer({"fatal": f"PostgreSQL: {error}"})
