"""`rsky-pipeline monitor`: watch a pipeline after a change."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rsky_pipeline.cli.command import DURATION, CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import block, say
from rsky_pipeline.cli.verify import COLOURS
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.runtime.errors import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rsky_pipeline.operations.monitoring import Monitoring


@operator_command(name="monitor")
@click.option("--for", "seconds", type=DURATION, default="30m", show_default=True,
              metavar="DURATION", help="How long to watch.")  # fmt: skip
@click.option("--every", type=DURATION, default="30s", show_default=True, metavar="DURATION",
              help="Time between two samples.")  # fmt: skip
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLE_NAMES),
              help="Role that has to run here, may be repeated; else expected_roles.")  # fmt: skip
@click.option("--report", "report_file", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the report there as Markdown, and beside it as .json.")  # fmt: skip
def command(
    run: Invocation, seconds: float, every: float, roles: tuple[str, ...], report_file: Path | None
) -> int:
    """Watch a running pipeline: `verify` again and again, with small graphs.

    A check that fails twice in a row, or at the end, is a regression. Ctrl-C ends it early, with
    the report. Exit codes: 0 no regression, 1 no sample or the report cannot be written, 2 wrong
    option, 6 a regression.
    """
    from rsky_pipeline.operations.monitoring import markdown, monitor

    if every < 1 or seconds < every:
        message = "--every must be at least 1s, and --for at least --every"
        raise CommandError(message, ExitCode.USAGE)
    settings = run.settings
    with _shown(live=not run.as_json) as show:
        roles = roles or settings.expected_roles
        found = monitor(settings, seconds, every, roles=roles, on_sample=show)
    if report_file is not None:
        _write(report_file, markdown(found))
        _write(report_file.with_suffix(".json"), json.dumps(found.document(), indent=2))
    run.answer(found.document(), lambda: block(markdown(found)))
    if not found.reports:
        raise CommandError("ended before the first sample", ExitCode.FAILED)
    return ExitCode.OK if found.ok else ExitCode.DIFFERENCES


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {error.strerror}", ExitCode.FAILED
        ) from error


@contextmanager
def _shown(*, live: bool) -> Iterator["Callable[[Monitoring], None]"]:
    """Yield the view of samples: a live table on a terminal, a line elsewhere."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if not (live and console.is_terminal):
        yield _line
        return
    with Live(console=console, auto_refresh=False, transient=True) as screen:
        yield lambda found: screen.update(_table(found), refresh=True)


def _line(found: "Monitoring") -> None:
    report = found.reports[-1]
    parts = [
        f"{check.check} {check.value:,.1f}"
        for check in report.checks
        if check.check in ("rate:firehose_live", "latency", "oldest:firehose_live")
        and check.value is not None
    ]
    parts += [f"{check.check}: {check.figure}" for check in report.of("fail")]
    say(f"{found.seconds:.0f} s {report.status}: {'; '.join(parts)}")


def _table(found: "Monitoring") -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from rsky_pipeline.operations.monitoring import FIGURES, sparkline

    report = found.reports[-1]
    head = Text.assemble(
        (f"{found.seconds:.0f} s  ", "bold"), (report.status, COLOURS[report.status]),
        f"  {len(found.reports)} samples",
    )  # fmt: skip
    figures = Table(box=None, pad_edge=False)
    for name in ("figure", "now", "graph"):
        figures.add_column(name, justify="right" if name == "now" else "left")
    for name, meaning in FIGURES.items():
        values = found.figures(name)
        if values:
            figures.add_row(meaning, f"{values[-1]:,.1f}", sparkline(values))
    wrong = [
        Text(
            printable(f"{check.status}  {check.check}: {check.figure}"), style=COLOURS[check.status]
        )
        for check in (*report.of("fail"), *report.of("warn"))
    ]
    return Group(head, figures, *wrong)
