"""What could not be processed, kept with its reason until an operator decides."""

from collections.abc import Mapping
from dataclasses import dataclass

from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consume import Delivery, GroupReader
from rsky_pipeline.streams.names import dead_letters

MAX_ERROR = 500  # characters of an error text that are kept
_OURS = {b"reason", b"error", b"attempts", b"source_id"}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry of a dead-letter stream: the original fields, and why it is there."""

    id: str
    source_id: str
    reason: str
    error: str
    attempts: int
    fields: Mapping[bytes, bytes]


def dead_letter(
    store: Store, reader: GroupReader, delivery: Delivery, *, reason: str, error: str, attempts: int
) -> bool:
    """Move a delivered entry into its dead-letter stream, in one step of the server.

    Returns whether it was still pending; a repeated call moves nothing twice.
    """
    arguments: list[bytes | str | int] = [reader.group, delivery.id]
    for name, value in (delivery.fields or {}).items():
        arguments += (name, value)
    arguments += ("reason", reason, "error", error[:MAX_ERROR], "attempts", attempts)
    arguments += ("source_id", delivery.id)
    keys = [delivery.stream, dead_letters(delivery.stream)]
    return bool(store.script("dead_letter", keys, arguments))


def list_dead_letters(
    store: Store, stream: str, *, after: str = "-", count: int = 100
) -> list[DeadLetter]:
    """Return dead letters of a stream, oldest first; `after` is the last id of the page before."""
    start = after if after == "-" else f"({after}"
    reply = store.call("XRANGE", dead_letters(stream), start, "+", "COUNT", count)
    return [_dead_letter(entry_id, body) for entry_id, body in reply]


def _dead_letter(entry_id: bytes, body: list[bytes]) -> DeadLetter:
    fields = dict(zip(body[::2], body[1::2], strict=True))
    return DeadLetter(
        entry_id.decode(),
        fields.get(b"source_id", b"").decode(),
        fields.get(b"reason", b"unknown").decode(),
        fields.get(b"error", b"").decode("utf-8", "replace"),
        int(fields.get(b"attempts", b"0")),
        {name: value for name, value in fields.items() if name not in _OURS},
    )
