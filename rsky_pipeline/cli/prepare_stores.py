"""`rsky-pipeline prepare-stores`: checks stores and schema. `run` starts it, people do not.

It is a process of its own since the clients of both stores and the schema take 20 MB, which the
supervisor would keep for as long as it runs, and never use again.
"""

import json
import os
import sys
import threading
from typing import Any

import click

from rsky_pipeline.cli.command import Invocation, operator_command


@operator_command(name="prepare-stores", json=False)
@click.option("--settings-fd", type=int, required=True, help="Read the settings from here.")
@click.option("--database/--no-database", required=True, help="Whether a role uses the database.")
def command(run: Invocation, settings_fd: int, database: bool) -> None:
    """Check the stores and bring the schema up to date, for the supervisor on standard input."""
    from rsky_pipeline.cli.run import prepare_stores
    from rsky_pipeline.runtime import logging as log_setup
    from rsky_pipeline.runtime.channel import read_settings
    from rsky_pipeline.runtime.errors import WorkerError

    settings = read_settings(settings_fd)
    log_setup.configure(settings.log_level, settings.log_format, role="supervisor")
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    try:
        changes = prepare_stores(settings, database, lambda line: _answer({"remark": line}))
    except WorkerError as error:
        _answer({"error": str(error), "code": error.exit_code})
    else:
        _answer({"changes": changes})


def _answer(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _end_with_supervisor() -> None:
    """End as soon as the supervisor has: nobody would read the answer."""
    while os.read(0, 1):
        pass
    os._exit(1)
