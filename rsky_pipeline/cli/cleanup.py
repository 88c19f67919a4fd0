"""`rsky-pipeline cleanup`: free the disk of programs and backups that nobody uses."""

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.moving import manager_option
from rsky_pipeline.cli.output import line


@operator_command(name="cleanup")
@click.option("--backups", type=click.IntRange(min=0), metavar="N",
              help="Earlier program files to keep. Default: the setting backups_kept.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List what would be removed; remove nothing.")
@manager_option
def command(run: Invocation, backups: int | None, dry_run: bool, choice: str) -> int:
    """Remove unpacked programs that nobody uses, and old backups of the program.

    A program file unpacks once a version, for the units and for each account that calls it; those
    of versions that are neither installed nor running are removed. `deploy` does the same at its
    end. Exit with 1 if a deployment was interrupted: it may need them.
    """
    from rsky_pipeline.embedded.locations import data_directory
    from rsky_pipeline.operations.deployment import unpacked
    from rsky_pipeline.operations.deployment.deploy import unpacking_roots
    from rsky_pipeline.operations.deployment.journal import interrupted, lock_path
    from rsky_pipeline.operations.deployment.program import find_target, surplus
    from rsky_pipeline.operations.ordered import flow
    from rsky_pipeline.runtime.errors import WorkerError
    from rsky_pipeline.runtime.lock import is_held
    from rsky_pipeline.runtime.program import program_file

    data_dir = data_directory(run.settings)
    if (entry := interrupted(data_dir)) is not None:
        raise CommandError(entry.describe(), ExitCode.FAILED)
    if is_held(lock_path(data_dir)):
        raise CommandError("a deployment is running here", ExitCode.ALREADY_RUNNING)
    manager = flow.manager_of(run.loaded, run.settings, choice)
    programs = [each for each in (program_file(),) if each is not None]
    removable = []
    try:
        installed = find_target(run.settings, manager).program
    except WorkerError as error:  # not run from a program file
        run.tell(str(error))
    else:
        programs.append(installed)
        removable = surplus(installed, run.settings.backups_kept if backups is None else backups)
    roots = [unpacked.own_root(), *unpacking_roots(manager)]
    folders = unpacked.unused(roots, programs)
    freed, done = 0, list[str]()
    for path in (*removable, *folders):
        bytes_ = unpacked.size(path)
        if not dry_run:
            if path in folders:
                bytes_ = unpacked.remove(path)
            else:
                path.unlink()
        if bytes_:
            freed += bytes_
            done.append(str(path))

    def show() -> None:
        for each in done:
            line(f"{'would be removed' if dry_run else 'removed'}: {each}")
        line(f"{freed / 1e6:,.0f} MB {'would be freed' if dry_run else 'freed'}")

    run.answer({"dry_run": dry_run, "removed": done, "freed_bytes": freed}, show)
    return ExitCode.OK
