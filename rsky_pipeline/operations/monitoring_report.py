"""What was watched, as Markdown. Pure."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from rsky_pipeline.operations.monitoring import FIGURES, Failure, Monitoring
from rsky_pipeline.operations.verification.report import Status

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Draw values as a small graph from 0 to the greatest; the newest `width` of them."""
    shown = values[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return _BARS[0] * len(shown)
    return "".join(_BARS[min(7, int(8 * max(0.0, value) / top))] for value in shown)


def markdown(found: Monitoring) -> str:
    """Return the report of a finished period."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Monitoring) -> Iterator[str]:
    statuses = [report.status for report in found.reports]
    began = datetime.fromtimestamp(found.began, UTC).isoformat(timespec="seconds")
    yield "# Monitoring report"
    yield ""
    result = "passed" if found.ok else "FAILED"
    early = ", ended early" if found.ended_early else ""
    number = f"{len(statuses)} samples, one every {found.every:.0f} s"
    yield f"**{result}**: {found.seconds:,.0f} s from {began}, {number}{early}."
    kinds: tuple[Status, ...] = ("pass", "warn", "fail")
    counts = ", ".join(f"{statuses.count(kind)} {kind}" for kind in kinds)
    yield f"Samples: {counts}."
    yield ""
    yield "| figure | lowest | mean | highest | last | |"
    yield "|---|---:|---:|---:|---:|---|"
    for name, meaning in FIGURES.items():
        values = found.figures(name)
        if values:
            numbers = (min(values), sum(values) / len(values), max(values), values[-1])
            cells = " | ".join(f"{number:,.1f}" for number in numbers)
            yield f"| {meaning} | {cells} | {sparkline(values)} |"
    yield from _failures("Regressions", found.regressions())
    passing = [item for item in found.failures() if item not in found.regressions()]
    yield from _failures("Failures that passed by themselves", passing)
    if found.reports:
        yield ""
        yield "## The last sample"
        yield ""
        yield "| status | check | figure |"
        yield "|---|---|---|"
        for check in found.reports[-1].checks:
            yield f"| {check.status} | {check.name} | {check.figure.replace('|', '/')} |"


def _failures(title: str, failures: Sequence[Failure]) -> Iterator[str]:
    if not failures:
        return
    yield ""
    yield f"## {title}"
    yield ""
    for item in failures:
        when = f"from {item.first:,.0f} s to {item.last:,.0f} s"
        often = f"{item.samples} samples, {item.longest} in a row, {when}"
        yield f"- **{item.name}**: {often}. {item.figure}. To do: {item.remedy}."
