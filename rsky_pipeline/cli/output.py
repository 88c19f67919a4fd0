"""Everything that the commands print: data on standard output, remarks on standard error.

Only this file writes to a terminal. Names of hosts, error messages, handles and records come from
strangers, and a terminal obeys control characters: every text passes through `printable`.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import click

from rsky_pipeline.configuration.advice import complete, complete_all
from rsky_pipeline.runtime.errors import escaped_json, printable

_PROGRESS_SECONDS = 2.0


def line(text: object = "", *, label: str = "", colour: str | None = None) -> None:
    """Print a line of data, `label` before it in a colour where the terminal has colours."""
    painted = click.style(label, fg=colour) if label and colour and _has_colours() else label
    click.echo(painted + _finished(text))


def _finished(text: object) -> str:
    """Return a text as it is printed."""
    return printable(complete(str(text)))


def _has_colours() -> bool:
    """Return whether colours are wanted (https://no-color.org); click takes them out of a pipe."""
    return not os.environ.get("NO_COLOR")


def block(text: str) -> None:
    """Print a text of several lines."""
    for each in text.splitlines():
        line(each)


def say(message: object) -> None:
    """Print a remark for the operator on standard error, apart from the data."""
    click.echo(f"rsky-pipeline: {_finished(message)}", err=True)


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document."""
    text = json.dumps(complete_all(document), indent=indent, ensure_ascii=False, default=str)
    # json.dumps has escaped all below U+0020; the line breaks are its own.
    click.echo("\n".join(escaped_json(each) for each in text.split("\n")))


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns."""
    table = [[_finished(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(header))]
    for row in table:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        line("  ".join(cells).rstrip())


def print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an exception that nobody expected; for `sys.excepthook`."""
    for each in "".join(traceback.format_exception(kind, error, trace)).splitlines():
        click.echo(printable(each), err=True)


def print_exceptions_safely() -> None:
    """Have the interpreter print what ends a command by `print_traceback`."""
    sys.excepthook = print_traceback


def came_of_printing(error: BaseException) -> bool:
    """Return whether an error was raised where something was printed, also the help by click."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_code is click.echo.__code__ for frame in frames)


class Progress:
    """Says a message about a long operation, but no more often than every two seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_SECONDS

    def __call__(self, message: str) -> None:
        """Say it if it is time."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_SECONDS
            say(message)


def duration(seconds: float | None) -> str:
    """Write a duration the short way: 42s, 3m10s, 2h05m, 4d03h."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"
