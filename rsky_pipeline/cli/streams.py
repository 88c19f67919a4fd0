"""`rsky-pipeline streams`: look at the Redis streams, and clean them without losing work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from rsky_pipeline.cli.command import (
    DURATION,
    STREAM_NAME,
    CommandError,
    Invocation,
    confirm,
    operator_command,
)
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import Progress, duration, line, print_table, say
from rsky_pipeline.configuration.advice import advised

if TYPE_CHECKING:
    from rsky_pipeline.operations.cleaning import Cut, Inspection
    from rsky_pipeline.operations.stream_figures import Measurement
    from rsky_pipeline.streams.connection import Store
    from rsky_pipeline.streams.lag import StreamReport

_force = click.option(
    "--force", is_flag=True, help="Remove also entries that consumers have not acknowledged."
)
_dry_run = click.option("--dry-run", is_flag=True, help="Print the plan; change nothing.")


@click.group()
def command() -> None:
    """Look at the Redis streams, and clean them without losing work.

    Exit codes: 0 done, 1 refused or partly done (see the output), 2 wrong option, 69 Redis
    cannot be reached.
    """


@operator_command(command, "list")
@click.option("--window", type=DURATION, default="2s", show_default=True, metavar="DURATION",
              help="How long rates are measured.")  # fmt: skip
def list_streams(run: Invocation, window: float) -> None:
    """Show length, memory, rates, lag and capacity of every stream."""
    from rsky_pipeline.operations.stream_figures import document, measure

    with run.store("streams") as store:
        measurement = measure(store, run.settings, seconds=window)
    run.answer(document(measurement), lambda: _show_measurement(measurement))


@operator_command(command)
@click.argument("stream", type=STREAM_NAME)
@click.option("--limit", "--count", "limit", type=click.IntRange(1, 100_000), default=1_000,
              show_default=True, help="Entries to look at.")  # fmt: skip
@click.option("--oldest", is_flag=True, help="Look at the oldest entries, not the newest.")
def inspect(run: Invocation, stream: str, limit: int, oldest: bool) -> None:
    """Look at a sample of a stream: types, collections, sizes."""
    from rsky_pipeline.operations.cleaning import sample_stream
    from rsky_pipeline.streams import lag

    with run.store("streams") as store:
        _require(store, stream)
        found: Inspection = sample_stream(store, stream, limit, from_oldest=oldest)
        report = lag.inspect(store, stream)
    added = {
        "added": report.added if report.counts_added else None,
        "last_added_id": report.last_id,
    }

    def show() -> None:
        _show_inspection(found)
        if not found.sampled:
            line(_why_empty(report))

    run.answer(found.document() | added, show)


@operator_command(command)
@click.argument("stream", type=STREAM_NAME)
@click.option("--keep", type=DURATION, metavar="DURATION", help="Remove older entries, as 1h.")
@click.option("--maxlen", type=click.IntRange(min=0), help="Remove all but the newest N entries.")
@_force
@_dry_run
def trim(
    run: Invocation, stream: str, keep: float | None, maxlen: int | None, force: bool,
    dry_run: bool,
) -> int:  # fmt: skip
    """Remove the oldest entries of a stream.

    Entries that a group has not read or acknowledged stay, with exit code 1, unless --force is
    given; then the output lists exactly the loss.
    """
    from rsky_pipeline.operations import cleaning

    if (keep is None) == (maxlen is None):
        raise CommandError("give one of --keep and --maxlen", ExitCode.USAGE)
    with run.store("streams") as store, _refusals():
        _require(store, stream)
        cut = cleaning.trim(
            store, stream, keep_seconds=keep, maxlen=maxlen, force=force, dry_run=dry_run,
            on_progress=_progress(),
        )  # fmt: skip
    return _finish(run, cut, dry_run)


@operator_command(command)
@click.argument("stream", type=STREAM_NAME)
@_force
@_dry_run
def reset(run: Invocation, stream: str, force: bool, dry_run: bool) -> int:
    """Remove all entries of a stream.

    Groups, their positions and cursors stay. Refuses, with exit code 1, while a group has not read
    or acknowledged everything, unless --force is given; then the output lists exactly the loss.
    """
    from rsky_pipeline.operations import cleaning

    with run.store("streams") as store, _refusals():
        _require(store, stream)
        cut = cleaning.reset(store, stream, force=force, dry_run=dry_run, on_progress=_progress())
    return _finish(run, cut, dry_run)


@operator_command(command)
@click.argument("stream", type=STREAM_NAME)
@click.option(
    "--type",
    "kinds",
    multiple=True,
    required=True,
    metavar="TYPE",
    help="Type of the entries to remove, as `streams inspect` shows it; may be repeated.",
)
@click.option("--after", metavar="ID", help="Continue after this entry, after an interruption.")
@click.option("--force", is_flag=True, help="Also a type that belongs into the stream.")
@_dry_run
def purge(
    run: Invocation, stream: str, kinds: tuple[str, ...], after: str | None, force: bool,
    dry_run: bool,
) -> int:  # fmt: skip
    """Remove polluting entries of a type.

    Keeps all others in their order, and works beside running producers and consumers. Only `repo`
    entries of firehose_live are pollution; any other type is work, and needs --force.
    """
    from rsky_pipeline.operations import cleaning
    from rsky_pipeline.streams.scan import ENTRY_TYPES

    unknown = [kind for kind in kinds if kind not in ENTRY_TYPES]
    if unknown:
        message = f"there is no type {unknown[0][:100]!r}: known are {', '.join(ENTRY_TYPES)}"
        raise CommandError(message, ExitCode.USAGE)
    with run.store("streams") as store, _refusals():
        _require(store, stream)
        # The entries of this type are removed whether read or not.
        cut = cleaning.purge(
            store, stream, kinds, after=after, force=force, dry_run=dry_run,
            on_progress=_progress(),
        )  # fmt: skip
    return _finish(run, cut, dry_run)


@command.group()
def groups() -> None:
    """Look after consumer groups."""


@operator_command(groups, "repair")
@click.option("--idle", type=DURATION, default="1h", show_default=True, metavar="DURATION",
              help="Consumers that were idle for this long are dead.")  # fmt: skip
@_dry_run
def repair_groups(run: Invocation, idle: float, dry_run: bool) -> int:
    """Repair consumer groups.

    Finds missing groups, positions past the end, pending entries without a body, dead consumers;
    names groups of other programs, for which entries are kept.

    Exit with 1 if something is left that only a running worker can repair.
    """
    from rsky_pipeline.configuration.expectations import expected_groups
    from rsky_pipeline.operations.groups import OTHER, repair

    with run.store("streams") as store:
        found = repair(store, expected_groups(run.settings), idle_seconds=idle, dry_run=dry_run)
    states = {True: "found", False: "repaired"}
    rows = [
        (item.stream, item.group, item.what, f"{item.count:,}",
         "not ours" if item.what == OTHER else states[dry_run] if item.done or dry_run else "left",
         item.detail)
        for item in found
    ]  # fmt: skip
    header = ("STREAM", "GROUP", "FOUND", "COUNT", "STATE", "DETAIL")
    run.answer(
        {"dry_run": dry_run, "found": [asdict(item) for item in found]},
        lambda: print_table(header, rows) if rows else line("the groups are good"),
    )
    left = any(not item.done and item.what != OTHER for item in found) and not dry_run
    return ExitCode.FAILED if left else ExitCode.OK


@operator_command(groups, "remove")
@click.argument("group")
@click.argument("streams", type=STREAM_NAME, nargs=-1, metavar="[STREAM]...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also a group that is in use, or of this "
              "configuration.")  # fmt: skip
@_dry_run
def remove(
    run: Invocation, group: str, streams: tuple[str, ...], yes: bool, force: bool, dry_run: bool
) -> None:
    """Remove a consumer group that no program uses any more, from all streams or some.

    Entries are kept until every group has finished them, so a group that nobody reads for fills the
    streams. Lists what it leaves undone, and asks. Refuses, with exit code 1, a group that a
    consumer used in the last minute, and those of this configuration.
    """
    from rsky_pipeline.configuration.expectations import expected_groups
    from rsky_pipeline.operations.groups import find_group, remove_group
    from rsky_pipeline.streams.names import STREAMS

    ours = expected_groups(run.settings)
    with run.store("streams") as store:
        for stream in streams:
            _require(store, stream)
        found = find_group(store, group, streams or STREAMS)
        if not found:
            where = ", ".join(streams) or "no stream"
            has = "has no group" if streams else "has a group"
            raise CommandError(f"{where} {has} {group[:100]!r}: see `rsky-pipeline streams list`",
                               ExitCode.USAGE)  # fmt: skip
        used = [each.stream for each in found if each.in_use]
        own = [each.stream for each in found if ours.get(each.stream) == group]
        if (used or own) and not force and not dry_run:
            why = (
                f"it is the group of this configuration on {', '.join(own)}" if own
                else f"a consumer used it in the last minute on {', '.join(used)}"
            )  # fmt: skip
            raise CommandError(f"refused: {why}; --force removes it all the same", ExitCode.FAILED)
        if not dry_run:
            undone = "; ".join(
                f"{each.unread:,} unread and {each.pending:,} pending entries of {each.stream}"
                for each in found
            )
            confirm(f"the group {group}, for which there are {undone}", yes)
            remove_group(store, group, [each.stream for each in found])
    header = ("STREAM", "GROUP", "UNREAD", "PENDING", "CONSUMERS", "IDLE")
    rows = [
        (each.stream, each.group, f"{each.unread:,}", f"{each.pending:,}", each.consumers,
         duration(each.idle_seconds))
        for each in found
    ]  # fmt: skip

    def show() -> None:
        print_table(header, rows)
        line("would be removed" if dry_run else "removed")

    run.answer({"dry_run": dry_run, "removed": [asdict(each) for each in found]}, show)


@operator_command(command, "release", aliases=("hand-back",))
@_dry_run
def release_streams(run: Invocation, dry_run: bool) -> None:
    """Release the streams to the original (Rust) services.

    They can then continue from them. Run it after `stop --ordered`: it moves urgent, delayed and
    waiting repos into repo_backfill, and entries that are pending with our consumers to the end of
    their stream. May be repeated. An earlier name of this command is `streams hand-back`.
    """
    from rsky_pipeline.operations.release import release

    with run.store("streams") as store:
        moved = release(store, run.settings, dry_run=dry_run, on_step=say)
    rows = [(item.source, item.target, item.why, f"{item.count:,}") for item in moved]
    header = ("FROM", "TO THE END OF", "WHY", "ENTRIES")
    run.answer(
        {"dry_run": dry_run, "moved": [asdict(item) for item in moved]},
        lambda: print_table(header, rows) if rows else line("nothing is to be moved"),
    )


def _require(store: "Store", stream: str) -> None:
    """Refuse a name that is neither one of ours nor a key in Redis."""
    from rsky_pipeline.operations.dead_letters import LETTER_STREAMS
    from rsky_pipeline.streams.names import GAPS, RESYNC_LATER, STREAMS

    known = (*STREAMS, *LETTER_STREAMS, GAPS, RESYNC_LATER)
    if stream not in known and not store.call("EXISTS", stream):
        message = f"there is no stream {stream[:100]!r}: known are {', '.join(known)}"
        raise CommandError(message, ExitCode.USAGE)


def _progress() -> Callable[[int, int], None]:
    progress = Progress()
    return lambda looked_at, removed: progress(
        f"{looked_at:,} entries looked at, {removed:,} removed"
    )


@contextmanager
def _refusals() -> Iterator[None]:
    from rsky_pipeline.operations.cleaning import RemovalRefusedError

    try:
        yield
    except RemovalRefusedError as error:
        message = f"refused: {error}; --force does it anyway, --dry-run lists the loss"
        raise CommandError(message, ExitCode.FAILED) from error


def _finish(run: Invocation, cut: "Cut", dry_run: bool) -> int:
    run.answer({"dry_run": dry_run, **cut.document()}, lambda: _show_cut(cut, dry_run))
    if not cut.kept.entries:
        return ExitCode.OK
    say(f"kept, because consumers need them: {cut.kept.sentence()}; --force removes them")
    return ExitCode.OK if dry_run else ExitCode.FAILED


def _show_cut(cut: "Cut", dry_run: bool) -> None:
    verb = "would be removed" if dry_run else "removed"
    line(
        f"{cut.stream}: {cut.removed:,} of {cut.looked_at:,} entries {verb}"
        + (f", the last one looked at is {cut.last_id}" if cut.last_id else "")
    )
    if cut.lost.entries:
        line(f"of these {verb} without being finished: {cut.lost.sentence()}")


def _show_measurement(measurement: "Measurement") -> None:
    print_table(
        ("STREAM", "ENTRIES", "MARK", "MEMORY", "IN/s", "OLDEST", "DEAD"),
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
    line()
    header = ("STREAM", "GROUP", "LAG", "PENDING", "OUT/s", "OLDEST UNFINISHED", "CONSUMERS")
    print_table(header, rows) if rows else line("no groups yet")
    memory = measurement.memory
    limit = f"of {_bytes(memory.limit)}" if memory.limit else "and no maxmemory is set"
    line()
    other = _bytes(measurement.other_bytes)
    line(f"Redis uses {_bytes(memory.used)} {limit}; {other} of it hold other things than streams")
    for advice in measurement.advice():
        line(f"{advice.stream}: {advice.text}")


def _show_inspection(found: "Inspection") -> None:
    from rsky_pipeline.streams.scan import moment

    line(f"{found.stream}: {found.length:,} entries, {found.sampled:,} looked at")
    if not found.sampled:
        return
    line(f"from {found.first_id} ({moment(found.first_id)}) to {found.last_id} "
         f"({moment(found.last_id)})")  # fmt: skip
    mean = sum(found.sizes) / len(found.sizes)
    line(f"bytes an entry: mean {mean:,.0f}, median {found.size(0.5):,}, "
         f"95% {found.size(0.95):,}, largest {found.sizes[-1]:,}")  # fmt: skip
    line()
    types = found.by_type.most_common()
    print_table(
        ("TYPE", "ENTRIES", "SHARE", "EXAMPLE"),
        [(k, f"{n:,}", f"{n / found.sampled:.1%}", found.examples[k]) for k, n in types],
    )
    if found.by_collection:
        line()
        collections = found.by_collection.most_common()
        print_table(("COLLECTION", "ENTRIES"), [(name, f"{n:,}") for name, n in collections])
    if found.polluting:
        line()
        purge = advised("streams", "purge", found.stream, "--type", "repo")
        line(f"{found.polluting:,} entries do not belong here: {purge} removes them")


def _why_empty(report: "StreamReport") -> str:
    """Say why there is nothing to look at: mostly because everything was done."""
    from rsky_pipeline.streams.scan import moment

    if report.last_id is None or report.last_id == "0-0":
        return "nothing was ever added to it"
    many = f"{report.added:,} entries were added" if report.counts_added else "entries were added"
    if not report.groups:
        return f"{many}, the last at {moment(report.last_id)}; no group reads it"
    return (
        f"{many}, the last at {moment(report.last_id)}; entries are removed once every group has "
        f"finished them, so a stream that its consumers keep up with is empty. To see events, "
        "stop a consumer for a moment; those that failed are in `rsky-pipeline dlq list`"
    )


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.1f}"


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 1e3:,.1f} kB"
