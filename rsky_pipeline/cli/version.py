"""`rsky-pipeline version`: the build, for people or for programs."""

from dataclasses import asdict

from rsky_pipeline.cli.command import Invocation, operator_command
from rsky_pipeline.cli.output import line
from rsky_pipeline.observability.build import build, has_compiled_readers


@operator_command(name="version", configuration=False)
def command(run: Invocation) -> None:
    """Print version, commit and build time."""
    compiled = has_compiled_readers()

    def show() -> None:
        line(f"rsky-pipeline {build().describe()}")
        if not compiled:
            line("The compiled readers are missing; everything works, but slower.")

    run.answer({"program": "rsky-pipeline", **asdict(build()), "compiled": compiled}, show)
