"""Operations of bsync as entries of `bsync_live`, and what is kept of each of its logs.

Entry: a field `operation` with JSON. `operation` in it is as bsync served it (proto3 JSON: default
values are absent, `payload` is base64), beside the log, the number of the reading, the operation's
id and the time at which it came to the ingester. So applying an entry twice gives the same rows.

A reading begins at the first operation of a log. There is another one where an operator says that
bsync has a new database (`cursor reset`), whose ids begin again: its operations come after those of
all readings before.
"""

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson

from rsky_pipeline.streams.event import MalformedEventError, parse_payload, required_text

BSYNC_LOGS = ("mute", "notif", "operation")
OPERATION_FIELD = b"operation"
# A hash, by log: the number of its reading, and whether it was read to its end once.
BSYNC_READINGS = "rsky_pipeline:bsync"
MAX_ID = 2**48 - 1
MAX_READING = 2**14 - 1
MAX_OPERATION = 1_048_576  # bytes of its payload; the AppView takes requests of 150 kB


@dataclass(frozen=True, slots=True)
class BsyncEntry:
    """One operation; `operation` is the object that bsync served."""

    log: str
    reading: int
    id: int
    time: str  # of its arrival
    history: bool  # it came before the log was read to its end for the first time
    operation: Mapping[str, Any]

    @property
    def place(self) -> int:
        """Orders the operations of a log, over all readings."""
        return place_of(self.reading, self.id)

    def payload(self) -> bytes:
        """Return the value of its field in the stream."""
        body = {
            "log": self.log, "reading": self.reading, "id": self.id, "time": self.time,
            "history": self.history, "did": self.operation.get("actorDid"),
            "operation": self.operation,
        }  # fmt: skip
        return orjson.dumps(body)


def place_of(reading: int, number: int) -> int:
    """Return the place of an id in a reading."""
    return reading * (MAX_ID + 1) + number


def reading_of(place: int) -> tuple[int, int]:
    """Return reading and id of a place."""
    return divmod(place, MAX_ID + 1)


def digest(operation: Mapping[str, Any]) -> str:
    """Return what tells an operation from another one under the same id."""
    return sha256(orjson.dumps(operation, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def decode_operation(fields: Mapping[bytes, bytes] | None) -> BsyncEntry:
    """Read an entry of `bsync_live`. Raises MalformedEventError."""
    value = (fields or {}).get(OPERATION_FIELD)
    if value is None:
        raise MalformedEventError("missing_field", "the entry has no field operation")
    body = parse_payload(value)
    log, operation = required_text(body, "log"), body.get("operation")
    if log not in BSYNC_LOGS or not isinstance(operation, dict):
        raise MalformedEventError("invalid_field", "the log, or its operation")
    return BsyncEntry(
        log, _number(body, "reading", MAX_READING), _number(body, "id", MAX_ID),
        required_text(body, "time"), body.get("history") is True, operation,
    )  # fmt: skip


def decode_text(payload: object) -> str:
    """Return the text of a payload as the official services read it. Raises MalformedEventError.

    Bytes that are no UTF-8 become replacement characters.
    """
    if not isinstance(payload, str):
        raise MalformedEventError("missing_field", "payload")
    try:
        # The alphabet for URLs is allowed too: https://protobuf.dev/programming-guides/json/
        padded = payload.replace("-", "+").replace("_", "/").rstrip("=")
        data = b64decode(padded + "=" * (-len(padded) % 4), validate=True)
    except ValueError as error:
        raise MalformedEventError("invalid_field", "payload is not base64") from error
    if len(data) > MAX_OPERATION:
        raise MalformedEventError("too_big", f"a payload of {len(data)} bytes")
    return data.decode("utf-8", "replace")


def _number(body: Mapping[str, Any], name: str, most: int) -> int:
    value = body.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise MalformedEventError("invalid_field", f"{name} is no number from 0 to {most}")
    return value
