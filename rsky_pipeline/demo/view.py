"""The view of a demonstration: a live table on a terminal, a line every few seconds elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rsky_pipeline.demo.figures import Figures
from rsky_pipeline.demo.simulator.compare import TableReport
from rsky_pipeline.runtime.errors import printable

LINE_SECONDS = 5.0
_ROLE_ORDER = ("ingester", "backfiller", "indexer", "valkey", "postgres")


class View(Protocol):
    """Shows figures as they come."""

    def show(self, figures: Figures, title: str) -> None:
        """Show one look."""


class LineView:
    """A line from time to time, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0

    def show(self, figures: Figures, title: str) -> None:
        """Print a line if it is time for one."""
        if monotonic() < self._next:
            return
        self._next = monotonic() + LINE_SECONDS
        published = figures.progress.published if figures.progress else 0
        parts = [title, f"{published:,} published"]
        parts += [
            f"{item['name']} {item['state']} {_number(item['rate'])}/s lag {_lag(item)}"
            for item in _workers(figures)
        ]
        if figures.rows:
            parts.append(f"{figures.rows['record']:,} records")
        self._console.print(" | ".join(parts), highlight=False, soft_wrap=True)


class LiveView:
    """A table that stays in place."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, figures: Figures, title: str) -> None:
        """Draw it anew."""
        published = figures.progress.published if figures.progress else 0
        head = Text.assemble((title, "bold"), f"   {published:,} events published")
        below = Table.grid(padding=(0, 6))
        if figures.streams:
            below.add_row(
                _pairs("stream", "entries", figures.streams), _pairs("table", "rows", figures.rows)
            )
        self._live.update(Group(head, _processes(figures), below), refresh=True)


@contextmanager
def opened(console: Console) -> Iterator[View]:
    """Yield the view that fits where the output goes."""
    if not console.is_terminal:
        yield LineView(console)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield LiveView(live)


def summary(console: Console, reports: Sequence[TableReport], dead: Mapping[str, int]) -> int:
    """Print how published and found rows compare; return the number of differences."""
    table = Table(title="published and found", title_justify="left", box=None, pad_edge=False)
    table.add_column("table")
    for name in ("expected", "found", "missing", "not expected", "different"):
        table.add_column(name, justify="right")
    for report in reports:
        numbers = (report.expected, report.found, report.missing, report.extra, report.different)
        style = "red" if report.differences else ""
        table.add_row(report.name, *(f"{number:,}" for number in numbers), style=style)
    console.print(table)
    for report in reports:
        for example in report.examples:
            line = printable(f"{report.name}: {example}")
            console.print(line, style="red", markup=False, soft_wrap=True)
    for name, count in dead.items():
        console.print(f"{name}: {count:,} dead letters", style="red", highlight=False)
    differences = sum(report.differences for report in reports) + sum(dead.values())
    rows = sum(report.expected for report in reports)
    console.print(f"{differences:,} differences in {rows:,} rows", highlight=False, style="bold")
    return differences


def _processes(figures: Figures) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("process", min_width=14)
    table.add_column("state", min_width=10)
    for name in ("pid", "rate /s", "lag", "restarts", "memory"):
        table.add_column(name, justify="right", min_width=8)
    found = sorted(figures.processes, key=lambda item: (_rank(item), item["name"]))
    for item in found:
        memory = item["rss_bytes"]
        table.add_row(
            item["name"],
            Text(item["state"], style="green" if item["state"] == "ready" else "yellow"),
            str(item["pid"] or "-"),
            _number(item["rate"]),
            _lag(item),
            str(item["restarts"]),
            "-" if memory is None else f"{memory / 1e6:.0f} MB",
        )
    return table


def _pairs(left: str, right: str, values: Mapping[str, int]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(left, min_width=20)
    table.add_column(right, justify="right", min_width=10)
    for name, value in values.items():
        table.add_row(name, f"{value:,}")
    return table


def _workers(figures: Figures) -> list[Mapping[str, Any]]:
    found = [item for item in figures.processes if item["kind"] == "worker"]
    return sorted(found, key=lambda item: (_rank(item), item["name"]))


def _rank(item: Mapping[str, Any]) -> int:
    return _ROLE_ORDER.index(item["role"]) if item["role"] in _ROLE_ORDER else len(_ROLE_ORDER)


def _number(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "-"


def _lag(item: Mapping[str, Any]) -> str:
    if item["lag"] is None and item["lag_seconds"] is not None:
        return f"{item['lag_seconds']:.1f} s"
    return _number(item["lag"])
