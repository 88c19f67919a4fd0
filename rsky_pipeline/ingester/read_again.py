"""Reading events again that were lost in a stream or the database, as workers ask for it.

The request is a field in Redis (`streams.marks`). Once a minute the positions of all cursors are
noted, the first time where each began. On a request each cursor is set back to where it was at that
time; its writer notices as it does when an operator moves a cursor. Until a cursor is where it was,
its commits are written although their repos' states make them replays.
"""

import logging
import math
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import trio

from rsky_pipeline.ingester.sequence import parse_position
from rsky_pipeline.ingester.writer import SourceCursor
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.append import read_cursor
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.gap import REDIS_LOST
from rsky_pipeline.streams.marks import (
    HISTORY_LENGTH,
    Position,
    again_done,
    again_until,
    note_positions,
    noted_positions,
    request_done,
    request_reading,
    requested_since,
    restore_positions,
    set_back,
)
from rsky_pipeline.streams.names import CURSOR_POSITIONS

_log = logging.getLogger(__name__)
_CHECK_SECONDS = 5.0
_NOTE_SECONDS = 60.0


def report_lost_cursors(store: Store, keys: Sequence[str], hosts: Sequence[str]) -> None:
    """Have events read again since Redis came back with older cursors than it had, or without them.

    Call it before anything is read: the next event would hide it. Cursors and entries are written
    by one script, which is a transaction; positions are noted by single commands, and only of a
    cursor that is stored. So a cursor below its newest position was lost with its entries: by a
    Redis that leaves transactions out when it reads its append-only file, as some do. What a
    command or a person sets is noted in another way, or beside the note.
    """
    since = min((at for key in keys if (at := _lost_since(store, key)) is not None), default=None)
    if since is None:
        return
    from_time = datetime.fromtimestamp(since, UTC).isoformat()
    request_reading(store, REDIS_LOST, since, from_time, hosts)
    _log.error(
        "Redis has lost cursors, and the entries of that time: events are read again, and repos "
        "are compared", extra={"since": from_time},
    )  # fmt: skip


def _lost_since(store: Store, key: str) -> float | None:
    """Return when the newest position was noted that the cursor still covers, if it was lost."""
    history = noted_positions(store, key)
    if len({seq for _, seq in history}) < 2 or again_until(store, key) >= 0:
        return None  # a single one may be where reading began, without an event
    text, noted = read_cursor(store, key), store.call("HGET", CURSOR_POSITIONS, key)
    if text is None:
        return history[0][0] if noted is None else None
    position = parse_position(noted)
    if position is None or position.time is None or str(position.seq) != text:
        return None
    present = position.seq or 0
    if present >= history[-1][1]:
        return None
    return max((at for at, seq in history if seq <= present), default=history[0][0])


async def read_again_when_asked(link: Link[Store], cursors: Sequence[SourceCursor]) -> None:
    """Note positions and follow requests until cancelled."""
    noted_at: dict[str, float] = {}
    kept = defaultdict[str, deque[Position]](lambda: deque(maxlen=HISTORY_LENGTH))
    while True:
        now, due = trio.current_time(), dict[str, list[Position]]()
        for each in cursors:
            position = each.stored
            if each.key not in noted_at and each.began is not None:
                position = each.began  # much may have been stored since
            again = now >= noted_at.get(each.key, -math.inf) + _NOTE_SECONDS
            if position is not None and again:
                kept[each.key].append((time.time(), position))
                due[each.key], noted_at[each.key] = list(kept[each.key]), now
        if due:
            await link.attempt(partial(note_positions, histories=due))
        await link.attempt(partial(_look, cursors=cursors, kept=kept))
        await trio.sleep(_CHECK_SECONDS)


def _look(
    store: Store, cursors: Sequence[SourceCursor], kept: Mapping[str, Sequence[Position]]
) -> None:
    for cursor in cursors:
        if cursor.again_until >= 0 and (cursor.stored or 0) >= cursor.again_until:
            cursor.again_until = -1
            again_done(store, cursor.key)
            _log.info("everything was read again", extra={"key": cursor.key})
    since = requested_since(store)
    if since is None:
        return
    restore_positions(store, kept)
    for cursor in cursors:
        position = set_back(store, cursor.key, since)
        extra = {"key": cursor.key, "before": cursor.stored, "cursor": position}
        if position is None:
            _log.error(
                "no older position of a cursor is known, only repos are listed again", extra=extra
            )
        elif position < (cursor.stored or 0):
            _log.warning("reading events again that were lost", extra=extra)
    request_done(store)
