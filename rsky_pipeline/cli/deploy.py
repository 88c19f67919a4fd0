"""`rsky-pipeline deploy`: replace the program of a running pipeline."""

from pathlib import Path
from typing import Any

import click

from rsky_pipeline.cli.deploying import deployer, deployment_options, finish
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import fail, say


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--purge", multiple=True, metavar="STREAM:TYPE",
              help="While everything is stopped, remove entries of a type from a stream, such as "
              "firehose_live:repo; may be repeated.")  # fmt: skip
@deployment_options
def command(
    file: Path, purge: tuple[str, ...], watch: float, verify_window: float, verify_for: float,
    accept: tuple[str, ...], timeout: float | None, dry_run: bool, choice: str, as_json: bool,
    **parameters: Any,
) -> None:  # fmt: skip
    """Replace the program of a running pipeline by FILE, and go back by itself if that fails.

    Checks the file, stops consumers first, keeps a backup, swaps, migrates, cleans, starts
    producers first, verifies and watches. A deployment that was interrupted is undone first.

    Exit codes: 0 deployed, 1 refused, or failed and rolled back, 3 nothing is running, 6 a
    verification failed and it was rolled back, 75 another deployment is running.
    """
    from rsky_pipeline.operations.deployment.deploy import Order

    order = Order(
        file, purge=_purges(purge), verify_window=verify_window, verify_limit=verify_for,
        watch=watch, accept=accept, deadline=timeout,
    )  # fmt: skip
    with deployer(parameters, choice, as_json, dry_run=dry_run) as worker:
        interrupted = worker.journal.unfinished() if dry_run else worker.recover()
        if interrupted is not None and dry_run:
            say(
                f"the interrupted {interrupted.plan['kind']} {interrupted.id} would be undone first"
            )
        outcome = worker.run(order, dry_run=dry_run)
        outcome.recovered = interrupted.id if interrupted and not dry_run else None
    finish(outcome, as_json)


def _purges(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in texts:
        stream, separator, kind = text.partition(":")
        if not (stream and separator and kind):
            message = f"--purge {text!r}: allowed is STREAM:TYPE, such as firehose_live:repo"
            raise fail(message, ExitCode.USAGE)
        pairs.append((stream, kind))
    return tuple(pairs)
