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
from functools import partial

import trio

from rsky_pipeline.ingester.writer import SourceCursor
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.marks import (
    HISTORY_LENGTH,
    Position,
    again_done,
    note_positions,
    request_done,
    requested_since,
    restore_positions,
    set_back,
)

_log = logging.getLogger(__name__)
_CHECK_SECONDS = 5.0
_NOTE_SECONDS = 60.0


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
