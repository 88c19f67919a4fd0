"""Tables of `rsky-pipeline streams` for people."""

from typing import TYPE_CHECKING

import click

from rsky_pipeline.cli.output import print_table
from rsky_pipeline.cli.status import duration
from rsky_pipeline.operations.losses import moment

if TYPE_CHECKING:
    from rsky_pipeline.operations.inspection import Inspection
    from rsky_pipeline.operations.stream_figures import Measurement

_HEADER = ("STREAM", "ENTRIES", "MARK", "MEMORY", "IN/s", "OLDEST", "DEAD")
_GROUPS = ("STREAM", "GROUP", "LAG", "PENDING", "OUT/s", "OLDEST UNFINISHED", "CONSUMERS")


def show_measurement(measurement: "Measurement") -> None:
    """Print streams, groups, and what the streams can hold."""
    print_table(
        _HEADER,
        [
            (
                item.name, f"{item.report.length:,}", _count(item.mark), _bytes(item.bytes),
                _rate(item.rate_in), duration(item.report.oldest_age_seconds),
                f"{item.dead_letters:,}",
            )
            for item in measurement.streams
        ],
    )  # fmt: skip
    rows = [
        (
            item.name, group.report.name, f"{group.report.lag:,}", f"{group.report.pending:,}",
            _rate(group.rate_out), duration(group.report.oldest_unacked_age_seconds),
            group.report.consumers,
        )
        for item in measurement.streams
        for group in item.groups
    ]  # fmt: skip
    click.echo()
    print_table(_GROUPS, rows) if rows else click.echo("no groups yet")
    memory = measurement.memory
    limit = f"of {_bytes(memory.limit)}" if memory.limit else "and no maxmemory is set"
    click.echo(f"\nRedis uses {_bytes(memory.used)} {limit}")
    for advice in measurement.advice():
        click.echo(f"{advice.stream}: {advice.text}")


def show_inspection(found: "Inspection") -> None:
    """Print what a sample holds."""
    click.echo(f"{found.stream}: {found.length:,} entries, {found.sampled:,} looked at")
    if not found.sampled:
        return
    click.echo(f"from {found.first_id} ({moment(found.first_id)}) to {found.last_id} "
               f"({moment(found.last_id)})")  # fmt: skip
    mean = sum(found.sizes) / len(found.sizes)
    click.echo(f"bytes an entry: mean {mean:,.0f}, median {found.size(0.5):,}, "
               f"95% {found.size(0.95):,}, largest {found.sizes[-1]:,}\n")  # fmt: skip
    types = found.by_type.most_common()
    print_table(
        ("TYPE", "ENTRIES", "SHARE", "EXAMPLE"),
        [(k, f"{n:,}", f"{n / found.sampled:.1%}", found.examples[k]) for k, n in types],
    )
    if found.by_collection:
        click.echo()
        collections = found.by_collection.most_common()
        print_table(("COLLECTION", "ENTRIES"), [(name, f"{n:,}") for name, n in collections])
    if found.polluting:
        click.echo(f"\n{found.polluting:,} entries do not belong here: `rsky-pipeline streams "
                   f"purge {found.stream} --type repo` removes them")  # fmt: skip


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.1f}"


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 1e3:,.1f} kB"
