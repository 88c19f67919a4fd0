"""`rsky-pipeline stop`: stop a running pipeline, consumers first."""

import click

from rsky_pipeline.cli.command import Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.moving import finish, manager_option, not_running, roles_option
from rsky_pipeline.configuration.topology import ROLE_NAMES


@operator_command(name="stop")
@click.option(
    "--ordered",
    is_flag=True,
    help="Verify each step in Redis before the next: consumers drained, cursors stored; also over "
    "several supervisors and systemd units.",
)
@click.option(
    "--drain",
    is_flag=True,
    help="For planned moves, the other order: the producer first, and each consumer when it has "
    "read and applied everything. Implies --ordered.",
)
@click.option(
    "--timeout",
    "timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Skip the draining after this long and kill 10 s later (with systemd: kill at once). "
    "With --drain: give up after this long for each role, and leave it running. Default: "
    "stop_timeout_seconds for each role; no limit with --drain.",
)
@roles_option
@manager_option
def command(
    run: Invocation, ordered: bool, drain: bool, timeout: float | None, roles: tuple[str, ...],
    choice: str,
) -> int:  # fmt: skip
    """Stop a running pipeline: indexer, backfiller, ingester, each drained before the next.

    Prints each step when it is done. Exit codes: 0 stopped, 1 a verification failed, 3 nothing was
    running, 4 no answer, 5 a process had to be killed.
    """
    from rsky_pipeline.operations.ordered import flow
    from rsky_pipeline.operations.ordered.movement import Movement
    from rsky_pipeline.supervisor import client
    from rsky_pipeline.supervisor.errors import NotRunningError

    manager = flow.manager_of(run.loaded, run.settings, choice)
    if not manager.running():
        # Supervisors without a running role are ended; `find` raises if there is none either.
        try:
            left = client.find(run.run_directory)
        except NotRunningError as error:
            raise not_running(run, manager, str(error)) from error
        if roles:
            raise not_running(run, manager, f"no {' or '.join(roles)} is running")
        client.stop_everything(left, timeout=None, on_step=run.tell)
        run.answer(Movement(manager.name).document(), lambda: None)
        return ExitCode.OK
    each_step = ordered or drain or bool(roles)  # has the time limit, and is verified
    movement = flow.stop(
        manager, run.settings, roles=roles or ROLE_NAMES, drain=drain, verify=each_step,
        tell=run.tell, deadline=timeout if each_step else None,
        total=None if each_step else timeout,
    )  # fmt: skip
    if not manager.running():
        flow.close(manager, movement, run.tell, None if each_step else timeout)
    return finish(run, movement)
