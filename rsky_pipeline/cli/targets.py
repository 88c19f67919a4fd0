"""`rsky-pipeline targets`: where Prometheus finds the processes of this host."""

import json
import os
from pathlib import Path

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import print_json, say

ONE, EACH = "one", "each"


@operator_command(name="targets", json=False)
@click.option("--host", help="Address under which Prometheus reaches this host. Default: "
              "metrics_host.")  # fmt: skip
@click.option("--supervisors", type=click.Choice([ONE, EACH]),
              help="One supervisor for all roles, or one for each role, as the units are. Default: "
              "as they run now.")  # fmt: skip
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path),
              help="Write it there, in one step, instead of printing it.")  # fmt: skip
def command(run: Invocation, host: str | None, supervisors: str | None, output: Path | None) -> int:
    """Print the metrics ports of all expected processes in the form of file_sd_configs.

    Also those that do not run now, which is what an alert is for; with the ports of workers without
    a supervisor that run (`rsky-indexer@2`). Exit codes: 0 done, 1 the file cannot be written.
    """
    from rsky_pipeline.runtime.further_workers import further_workers
    from rsky_pipeline.runtime.metrics_port import planned

    settings = run.settings
    each = supervisors == EACH if supervisors else _runs_each(run)
    ports = planned(settings, each_role=each)
    for worker in further_workers(run.run_directory):
        ports.setdefault(worker.role, []).append(worker.port)
    host = host or settings.metrics_host
    named = f"[{host}]" if ":" in host else host
    document = [
        {"targets": [f"{named}:{port}" for port in dict.fromkeys(found)],
         "labels": {"job": f"rsky-{job}"}}
        for job, found in ports.items()
    ]  # fmt: skip
    if 0 in (port for found in ports.values() for port in found):
        say("a port of 0 is another one at each start: set the ports of these processes")
    if output is None:
        print_json(document)
        return ExitCode.OK
    unfinished = output.with_name(f".{output.name}.new")
    try:
        unfinished.write_text(json.dumps(document, indent=2) + "\n")
        os.replace(unfinished, output)
    except OSError as error:
        message = f"{output} cannot be written: {error.strerror}"
        raise CommandError(message, ExitCode.FAILED) from error
    return ExitCode.OK


def _runs_each(run: Invocation) -> bool:
    """Return whether every supervisor that runs here has a single role."""
    from rsky_pipeline.runtime.errors import WorkerError
    from rsky_pipeline.supervisor import client

    try:
        found = client.find(run.run_directory)
    except WorkerError:
        return False
    return all(len(each.roles) == 1 for each in found)
