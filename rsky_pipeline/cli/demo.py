"""`rsky-pipeline demo`: the whole pipeline on a simulated network, compared row for row."""

import shutil
import tempfile
from pathlib import Path

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line


@operator_command(name="demo", json=False, configuration=False)
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(1),
              help="How long the network lives.")  # fmt: skip
@click.option("--rate", default=300.0, show_default=True, type=click.FloatRange(1),
              help="Events a second.")  # fmt: skip
@click.option("--accounts", default=200, show_default=True, type=click.IntRange(2, 100_000))
@click.option("--seed", default=1, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the data directory, with the logs.")
def command(
    run: Invocation, seconds: float, rate: float, accounts: int, seed: int, keep: bool
) -> int:
    """Run everything on loopback for a while, stop in order, and compare every row.

    Needs no network, Redis or PostgreSQL, and touches no configured one. Ctrl-C ends it early.
    Exits with 0 if the database holds exactly the published records, with 6 if not.
    """
    from rsky_pipeline.demo.demonstration import Demonstration, terminated_like_interrupted
    from rsky_pipeline.demo.processes import DemonstrationError
    from rsky_pipeline.demo.simulator.control import SimulationError

    folder = Path(tempfile.mkdtemp(prefix="rsky-demo-"))
    options = [f"--rate={rate}", f"--accounts={accounts}", f"--seed={seed}"]
    try:
        with terminated_like_interrupted():
            ending = Demonstration(folder, seconds, options).run()
    except (DemonstrationError, SimulationError) as error:
        first, *more = str(error).splitlines()
        raise CommandError(first, ExitCode.FAILED, more=tuple(more)) from error
    except KeyboardInterrupt:
        raise CommandError("interrupted", ExitCode.FAILED) from None
    finally:
        if keep:
            line(f"kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if ending.differences or ending.waiting:
        return ExitCode.DIFFERENCES
    return ExitCode.OK if ending.stopped_in_order else ExitCode.FORCED
