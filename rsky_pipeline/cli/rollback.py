"""`rsky-pipeline rollback`: put an earlier program back."""

from typing import Any

import click

from rsky_pipeline.cli.deploying import deployer, deployment_options, finish
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import fail, print_json, say


@click.command()
@click.argument("timestamp", required=False)
@deployment_options
def command(
    timestamp: str | None, watch: float, verify_window: float, verify_for: float,
    accept: tuple[str, ...], timeout: float | None, dry_run: bool, choice: str, as_json: bool,
    **parameters: Any,
) -> None:  # fmt: skip
    """Put the newest backup back, or that of TIMESTAMP, with the steps of `deploy`.

    A deployment that was interrupted is undone, and nothing else. Exit codes are those of `deploy`.
    """
    from rsky_pipeline.operations.deployment import files
    from rsky_pipeline.operations.deployment.deploy import Order
    from rsky_pipeline.operations.deployment.target import find_target

    with deployer(parameters, choice, as_json, dry_run=dry_run) as worker:
        if not dry_run and timestamp is None:
            interrupted = worker.recover()
            if interrupted is not None:
                say(f"undone: {interrupted.plan['kind']} {interrupted.id}")
                if as_json:
                    print_json({"ok": True, "recovered": interrupted.id})
                return
        program = find_target(worker.settings, worker.manager).program
        known = files.backups(program)
        if not known:
            raise fail(f"there is no backup of {program}", ExitCode.FAILED)
        stamp = timestamp or next(iter(known))
        if stamp not in known:
            raise fail(f"no backup {stamp}; there are {', '.join(known)}", ExitCode.USAGE)
        order = Order(
            known[stamp], "rollback", verify_window=verify_window, verify_limit=verify_for,
            watch=watch, accept=accept, deadline=timeout,
        )  # fmt: skip
        outcome = worker.run(order, dry_run=dry_run)
    finish(outcome, as_json)
