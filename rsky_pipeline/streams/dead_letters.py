"""Dead letters: rejected entries, kept until an operator retries or removes them.

`Consumer.dead_letter` adds one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.commands import Argument
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consumer import MAX_ERROR, MAX_FIELDS, NOTES
from rsky_pipeline.streams.limits import BATCH_LETTERS, PAGE_LETTERS
from rsky_pipeline.streams.names import dead_letters


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry of a dead-letter stream: the original fields, and the reason for its rejection."""

    id: str
    source_id: str  # empty for letters of the original services
    reason: str
    error: str
    attempts: int
    fields: Mapping[bytes, bytes]


def add_dead_letter(
    store: Store, stream: str, entry_id: bytes, fields: Sequence[bytes], reason: str, error: str
) -> bool:
    """Move an entry of a stream without groups to its dead letters; False if it was gone."""
    notes: list[Argument] = [reason, error[:MAX_ERROR], 1, entry_id]
    arguments: list[Argument] = [entry_id, *fields[: 2 * MAX_FIELDS]]
    arguments += [part for pair in zip(NOTES, notes, strict=True) for part in pair]
    return bool(store.script("dead_letter_add", [stream, dead_letters(stream)], arguments))


def list_dead_letters(
    store: Store, stream: str, *, after: str = "-", until: str = "+", count: int = PAGE_LETTERS
) -> list[DeadLetter]:
    """Return dead letters of a stream, oldest first.

    `after` is the last id of the previous page, `until` the last id to return.
    """
    start = after if after == "-" else f"({after}"
    reply = store.call("XRANGE", dead_letters(stream), start, until, "COUNT", count)
    return [_dead_letter(entry_id, body) for entry_id, body in reply]


def find_dead_letter(store: Store, stream: str, letter_id: str) -> DeadLetter | None:
    """Return one dead letter of a stream, or None."""
    reply = store.call("XRANGE", dead_letters(stream), letter_id, letter_id)
    return _dead_letter(*reply[0]) if reply else None


def retry_dead_letters(store: Store, stream: str, letter_ids: Sequence[str]) -> int:
    """Move dead letters back to their stream; returns the number moved.

    A letter without a body (its entry was deleted before the rejection) stays.
    """
    appended = 0
    for start in range(0, len(letter_ids), BATCH_LETTERS):
        part = letter_ids[start : start + BATCH_LETTERS]
        arguments: list[Argument] = [len(NOTES), *NOTES, *part]
        keys = [stream, dead_letters(stream)]
        appended += int(store.script("dead_letter_retry", keys, arguments))
    return appended


def remove_dead_letters(store: Store, stream: str, letter_ids: Sequence[str]) -> int:
    """Delete dead letters; returns the number deleted."""
    return int(store.call("XDEL", dead_letters(stream), *letter_ids)) if letter_ids else 0


def replace_dead_letter(
    store: Store, letters: str, letter_id: str, entries: Sequence[Entry]
) -> bool:
    """Replace one dead letter of the stream `letters` by entries, all or none.

    Returns False, appending nothing, if the letter is gone, for example in a retry.
    """
    streams = list(dict.fromkeys(entry.stream for entry in entries))
    arguments: list[Argument] = [letter_id]
    for entry in entries:
        arguments += (streams.index(entry.stream) + 1, entry.field, entry.payload)
    return bool(store.script("dead_letter_replace", [letters, *streams], arguments))


def _dead_letter(entry_id: bytes, body: Sequence[bytes]) -> DeadLetter:
    fields = dict(zip(body[::2], body[1::2], strict=True))
    reason, error, attempts, source_id = (
        fields.pop(name.encode(), b"").decode("utf-8", "replace") for name in NOTES
    )
    count = int(attempts) if attempts.isdecimal() and len(attempts) < 10 else 0
    return DeadLetter(entry_id.decode(), source_id, reason or "unknown", error, count, fields)
