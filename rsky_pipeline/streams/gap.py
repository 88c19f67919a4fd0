"""A gap: events of a relay that the database may not have, as it is noted in Redis."""

from typing import Literal, NamedTuple

import orjson

from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.names import GAPS

GAP_FIELD = b"gap"
GapKind = Literal[
    "outdated_cursor", "seq_jump", "time_jump", "cursor_refused", "cursor_set", "database_lost",
    "redis_lost",
]  # fmt: skip
CURSOR_REFUSED: GapKind = "cursor_refused"  # the host numbers its events anew
DATABASE_LOST: GapKind = "database_lost"
REDIS_LOST: GapKind = "redis_lost"
STORE_LOST = frozenset({DATABASE_LOST, REDIS_LOST})  # Redis does not show what is missing


class Gap(NamedTuple):
    """Events of a host that were not seen, between two that were; times are the events' own."""

    host: str
    kind: GapKind
    from_seq: int | None
    to_seq: int | None
    from_time: str | None
    to_time: str | None

    def entry(self) -> Entry:
        """Return the entry that notes the gap, to be appended with the first event after it."""
        return Entry(GAPS, GAP_FIELD, orjson.dumps(self._asdict()))
