"""`rsky-pipeline version`: the build, for people or for programs."""

from dataclasses import asdict

from rsky_pipeline.cli.command import Invocation, operator_command
from rsky_pipeline.cli.output import line
from rsky_pipeline.observability.build import build, problem_of_readers


@operator_command(name="version", configuration=False)
def command(run: Invocation) -> None:
    """Print version, commit and build time."""
    problem = problem_of_readers()

    def show() -> None:
        line(f"rsky-pipeline {build().describe()}")
        if problem:
            line(f"{problem}; everything works, but slower")

    document = {
        "program": "rsky-pipeline", **asdict(build()),
        "compiled": not problem, "compiled_problem": problem,
    }  # fmt: skip
    run.answer(document, show)
