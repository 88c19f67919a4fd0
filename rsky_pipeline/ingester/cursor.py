"""Where a stream is read from. Pure. Source: sync specification."""

from typing import NamedTuple

import orjson

from rsky_pipeline.configuration.settings import InitialCursor


class InvalidCursor(ValueError):
    """A stored cursor that is no number; somebody must decide what to do."""


def parse_cursor(text: str | None) -> int | None:
    """Read a stored cursor. Raises InvalidCursor."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise InvalidCursor(f"the stored cursor {text[:50]!r} is not a sequence number")
    return int(text)


class Position(NamedTuple):
    """What is noted with a stored cursor: the newest event that it covers."""

    seq: int | None
    time: str | None  # as the event had it
    reset: bool = False  # an operator took the cursor away, to start at the initial position


def parse_position(noted: bytes | None) -> Position | None:
    """Read what was noted with a cursor; None where nothing usable was."""
    try:
        body = orjson.loads(noted or b"null")
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, dict):
        return None
    seq, time = body.get("seq"), body.get("time")
    return Position(
        seq if type(seq) is int else None,
        time if type(time) is str else None,
        body.get("reset") is True,
    )


def start_position(
    stored: int | None, last_known: int | None, initial: InitialCursor
) -> int | None:
    """Return the cursor to subscribe with; None means from now on, 0 the oldest event.

    A stored cursor wins. When the store has forgotten it, what this process wrote last is a better
    start than "now", but no better than a start that was asked for.
    """
    if stored is not None:
        return stored
    if initial == "live":
        return last_known
    return 0 if initial == "oldest" else initial
