"""`rsky-pipeline dlq`: look at dead letters, try them again, or give them up."""

import contextlib
import json
import logging
from typing import IO, TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.command import (
    DURATION,
    LETTERS_NAME,
    CommandError,
    Invocation,
    confirm,
    operator_command,
)
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import Progress, line, print_table, say

if TYPE_CHECKING:
    from rsky_pipeline.operations.dead_letters import ReasonCount, Retried, Returned

_reason = click.option("--reason", metavar="REASON", help="Only letters with this reason.")
_ids = click.option("--id", "ids", multiple=True, metavar="ID", help="Only this letter; may be "
                    "repeated.")  # fmt: skip

_wait = click.option("--wait", type=DURATION, default="10s", show_default=True, metavar="DURATION",
                     help="How long to look at most for letters that come back.")  # fmt: skip


@click.group()
def command() -> None:
    """List, show, retry, edit and drop dead letters: events and repos that could not be processed.

    STREAM is a dead-letter stream (firehose_live_dlq) or the stream it belongs to (firehose_live);
    without one, the command covers all. Exit codes: 0 done, 1 some letters stay (the output says
    why), 2 wrong option, 69 Redis cannot be reached.
    """


@operator_command(command, "list")
@click.argument("stream", type=LETTERS_NAME, required=False)
@_reason
def list_letters(run: Invocation, stream: str | None, reason: str | None) -> None:
    """Count dead letters by stream and reason."""
    from rsky_pipeline.operations.dead_letters import tally
    from rsky_pipeline.streams.scan import moment

    streams = _streams(stream)
    with run.store("dlq") as store:
        found = [item for name in streams for item in tally(store, name, reason)]
    rows = [
        (each.stream, each.reason, f"{each.count:,}", moment(each.oldest), moment(each.newest))
        for each in found
    ]
    header = ("STREAM", "REASON", "COUNT", "OLDEST", "NEWEST")
    total = sum(item.count for item in found)
    run.answer(
        {"total": total, "letters": [item.document() for item in found]},
        lambda: print_table(header, rows) if rows else line("no dead letters"),
    )


@operator_command(command)
@click.argument("stream", type=LETTERS_NAME, required=False)
@_reason
@_ids
@click.option("--limit", "--count", "limit", type=click.IntRange(1, 1_000), default=10,
              show_default=True, help="Letters to show, oldest first.")  # fmt: skip
def show(
    run: Invocation, stream: str | None, reason: str | None, ids: tuple[str, ...], limit: int
) -> None:
    """Show dead letters of a stream, or of all.

    Long texts are cut, raw frames are summarised.
    """
    from itertools import islice

    from rsky_pipeline.operations.dead_letters import describe, select

    names = _streams(stream)
    with run.store("dlq") as store:
        letters = (
            describe(name, each) for name in names for each in select(store, name, reason, ids)
        )
        found = list(islice(letters, limit))
    answer = {"stream": names[0] if stream is not None else None, "letters": found}
    run.answer(answer, lambda: _show_letters(found))


@operator_command(command)
@click.argument("stream", type=LETTERS_NAME, required=False)
@_reason
@_ids
@click.option("--all", "everything", is_flag=True, help="All streams and reasons.")
@_wait
def retry(
    run: Invocation, stream: str | None, reason: str | None, ids: tuple[str, ...],
    everything: bool, wait: float,
) -> int:  # fmt: skip
    """Put dead letters back into the stream they came from.

    Waits a moment to see which of them come back. Raw frames are converted again; where signatures
    are checked (verify), the commit's repo is queued to be fetched instead. Letters that still
    cannot be used stay. Exit code 1 where some stay or come back.
    """
    from rsky_pipeline.operations import dead_letters

    _require_choice(stream, reason, everything)
    # The conversion logs each frame that it cannot use; here the answer lists them.
    logging.getLogger("rsky_pipeline.ingester.frames").addHandler(logging.NullHandler())
    results: dict[str, Retried] = {}
    progress = Progress()
    with run.store("dlq") as store:
        before = dead_letters.newest_letters(store)
        for name in _streams(stream):
            letters = dead_letters.select(store, name, reason, ids)
            results[name] = dead_letters.retry(store, name, letters, run.settings, progress)
        sent = [mark for each in results.values() for mark in each.sent]
        back = dead_letters.watch(store, sent, before, wait)
    return _report_retried(run, results, back)


@operator_command(command)
@click.argument("stream", type=LETTERS_NAME)
@click.argument("letter_id", metavar="ID")
@click.option("--file", "file", type=click.File("r", encoding="utf-8"), metavar="FILE",
              help="Read the new text from a file (- is standard input); no editor.")  # fmt: skip
@_wait
def edit(run: Invocation, stream: str, letter_id: str, file: IO[str] | None, wait: float) -> int:
    """Change a dead letter's JSON in $EDITOR, and put it back into the stream it came from.

    Without a change nothing is done.
    """
    from rsky_pipeline.operations import dead_letters

    (name,) = _streams(stream)
    with run.store("dlq") as store:
        letter = next(dead_letters.select(store, name, ids=[letter_id]), None)
        if letter is None:
            raise CommandError(f"{name} has no letter {letter_id[:50]!r}", ExitCode.USAGE)
        try:
            text = _edited(letter.fields[dead_letters.editable(name, letter)], file)
            if text is None:
                run.answer(_retried_document({}), lambda: line("unchanged; nothing was done"))
                return ExitCode.OK
            before = dead_letters.newest_letters(store)
            done = dead_letters.edit(store, name, letter, text, run.settings)
        except ValueError as error:
            raise CommandError(f"{name} {letter_id}: {error}", ExitCode.USAGE) from error
        back = dead_letters.watch(store, done.sent, before, wait)
    return _report_retried(run, {name: done}, back)


def _edited(payload: bytes, file: IO[str] | None) -> str | None:
    """Return the new text of an entry, None if it was not changed."""
    if file is not None:
        return file.read()
    text = payload.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        text = json.dumps(json.loads(payload), indent=2, ensure_ascii=False)
    found = click.edit(text, extension=".json")
    return None if found is None or found.strip() == text.strip() else found


def _report_retried(run: Invocation, results: "dict[str, Retried]", back: "Returned") -> int:
    kept = sum(each.kept_count for each in results.values())

    def show() -> None:
        retried = sum(each.retried for each in results.values())
        line(f"retried {retried:,}, came back {back.count:,}, kept {kept:,}")
        for name, each in results.items():
            for letter_id, why in each.kept:
                say(f"{name} {letter_id} stays: {why}")
        for letter in back.examples:
            # The text of an event that cannot be read begins with its reason.
            error = letter["error"].removeprefix(f"{letter['reason']}: ")
            say(f"{letter['stream']} {letter['id']} came back: {letter['reason']}: {error}")
        if retried and not back.tried:
            say("not all have been tried yet: `rsky-pipeline dlq list` shows what comes back later")

    returned = {"came_back": back.count, "came_back_examples": back.examples, "tried": back.tried}
    run.answer(_retried_document(results) | returned, show)
    return ExitCode.FAILED if kept or back.count else ExitCode.OK


@operator_command(command)
@click.argument("stream", type=LETTERS_NAME, required=False)
@_reason
@_ids
@click.option("--all", "everything", is_flag=True, help="All streams and reasons.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(
    run: Invocation, stream: str | None, reason: str | None, ids: tuple[str, ...],
    everything: bool, yes: bool,
) -> None:  # fmt: skip
    """Remove dead letters for good, after listing the loss and asking."""
    from rsky_pipeline.operations import dead_letters

    _require_choice(stream, reason, everything)
    streams = _streams(stream)
    with run.store("dlq") as store:
        # Letters that arrive while the question waits for its answer were not asked about.
        last = {name: dead_letters.last_id(store, name) for name in streams}
        if ids:
            lost = f"{len(ids)} letters of {', '.join(streams)}"
        else:
            found = [
                item
                for name in streams
                for item in dead_letters.tally(store, name, reason, last[name])
            ]
            lost = "; ".join(_sentence(item) for item in found) or "nothing"
        if lost != "nothing":
            confirm(lost, yes)
        progress = Progress()
        removed = {
            name: dead_letters.drop(
                store, name, dead_letters.select(store, name, reason, ids, last[name]), progress
            )
            for name in streams
        }
    run.answer(
        {"dropped": {name: count for name, count in removed.items() if count}},
        lambda: line(f"dropped {sum(removed.values()):,}"),
    )


def _show_letters(found: list[dict[str, Any]]) -> None:
    for item in found:
        line(f"{item['stream']} {item['id']} ({item['time']}) {item['reason']}, attempts "
             f"{item['attempts']}")  # fmt: skip
        line(f"  error: {item['error'] or '-'}")
        for key, value in item["entry"].items():
            line(f"  {key}: {value}")
    if not found:
        line("no such dead letters")


def _streams(name: str | None) -> tuple[str, ...]:
    from rsky_pipeline.operations.dead_letters import LETTER_STREAMS, letter_stream

    if name is None:
        return LETTER_STREAMS
    try:
        return (letter_stream(name),)
    except ValueError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error


def _require_choice(stream: str | None, reason: str | None, everything: bool) -> None:
    if stream is None and reason is None and not everything:
        raise CommandError("give a STREAM, a --reason, or --all", ExitCode.USAGE)


def _sentence(item: "ReasonCount") -> str:
    from rsky_pipeline.streams.scan import moment

    return (
        f"{item.count:,} of {item.stream} ({item.reason}, {moment(item.oldest)} to "
        f"{moment(item.newest)})"
    )


def _retried_document(results: "dict[str, Retried]") -> dict[str, Any]:
    return {
        "streams": {
            name: {
                "retried": each.retried,
                "gone": each.gone,
                "kept": each.kept_count,
                "examples": [{"id": letter, "why": why} for letter, why in each.kept],
            }
            for name, each in results.items()
            if each.retried or each.gone or each.kept_count
        }
    }
