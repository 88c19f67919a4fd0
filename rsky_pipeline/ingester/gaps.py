"""Noticing that a relay did not send everything between the stored cursor and what it sends now.

Pure. Relays do not say so reliably: production ones begin silently with the oldest event that they
still have (indigo#1328), and one that replaced another numbers events anew.
"""

from typing import Literal, NamedTuple

import orjson

from rsky_pipeline.ingester.cursor import Position
from rsky_pipeline.ingester.times import timestamp
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.names import GAPS

GAP_FIELD = b"gap"
MAX_SEQ_STEP = 1_000_000_000  # between two events; a month of the busiest day so far
# Relays send many events a second, and a stored cursor is continued with the event after it. Time
# that is missing there was not sent, unless the network was silent.
MAX_TIME_STEP = 900.0

Kind = Literal["outdated_cursor", "seq_jump", "time_jump", "cursor_set"]
KINDS: tuple[Kind, ...] = ("outdated_cursor", "seq_jump", "time_jump", "cursor_set")


class Gap(NamedTuple):
    """Events of a host that were not seen, between two that were; times are the events' own."""

    host: str
    kind: Kind
    from_seq: int | None
    to_seq: int | None
    from_time: str | None
    to_time: str | None

    def entry(self) -> Entry:
        """Return the entry that notes the gap, to be appended with the first event after it."""
        return Entry(GAPS, GAP_FIELD, orjson.dumps(self._asdict()))


class GapWatch:
    """Looks at the events of one connection that continues a stored cursor."""

    def __init__(self, host: str, stored: int, position: Position | None) -> None:
        self._host = host
        self._seq = stored
        known = position is not None and position.seq == stored
        self._time = position.time if position is not None and known else None
        self._first = True
        self.outdated = False  # the host said that the cursor is older than what it keeps

    def observe(self, seq: int, time: str | None) -> Gap | None:
        """Take note of an event; return the gap before it, if there is one."""
        kind = self._kind(seq, time)
        gap = None
        if kind is not None:
            gap = Gap(self._host, kind, self._seq, seq, self._time, time)
        self._seq, self._first, self.outdated = seq, False, False
        self._time = time or self._time
        return gap

    def _kind(self, seq: int, time: str | None) -> Kind | None:
        if self.outdated:
            return "outdated_cursor"
        if seq - self._seq > MAX_SEQ_STEP:
            return "seq_jump"
        if self._first and self._time is not None and time is not None:
            before, now = timestamp(self._time), timestamp(time)
            if before is not None and now is not None and now - before > MAX_TIME_STEP:
                return "time_jump"
        return None
