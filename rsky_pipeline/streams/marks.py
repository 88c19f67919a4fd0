"""What Redis notes of its database: which one it is, how far it is, and what to read again.

`rsky_pipeline:installation` is a hash: the id of the database that each consumer group of indexers
writes (`health.pairing`).

`rsky_pipeline:database_marks:GROUP` is a hash: the number of the last transaction that each worker
has acknowledged on each stream (`database.marks`).

`rsky_pipeline:read_again` is a hash. Its field `since` is a request: events of that time on are to
be read from the hosts again. The ingester sets the cursors back to where they were then, for which
it keeps their positions (`rsky_pipeline:cursor_history:KEY`), and leaves in the hash, by cursor
key, the sequence number up to which commits are written although they were written before.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import orjson

from rsky_pipeline.streams.append import append, read_cursor
from rsky_pipeline.streams.connection import Store, text_of
from rsky_pipeline.streams.consumer import Consumer, StreamLoss
from rsky_pipeline.streams.gap import GAP_FIELD, REDIS_LOST, Gap, GapKind
from rsky_pipeline.streams.names import CURSOR_POSITIONS, GAPS

_log = logging.getLogger(__name__)
INSTALLATION = "rsky_pipeline:installation"
DATABASE_MARKS = "rsky_pipeline:database_marks:"
READ_AGAIN = "rsky_pipeline:read_again"
_SINCE = "since"
_HISTORY = "rsky_pipeline:cursor_history:"
HISTORY_LENGTH = 3 * 24 * 60  # one position a minute
MARGIN_SECONDS = 120.0  # clocks differ, and positions are noted once a minute
_TRIES = 5
_LONGEST_NAME = 500  # of a stream and a worker, which PostgreSQL must be able to index
_LARGEST = 2**62  # as a mark or a position; the columns for marks hold twice as much

Position = tuple[float, int]  # of a cursor: when, in seconds since 1970, and its number


def noted_database(store: Store, group: str) -> str | None:
    """Return the id of the database that a group of indexers writes; None before the first one."""
    found = store.call("HGET", INSTALLATION, group)
    return None if found is None else str(found.decode(errors="replace"))


def note_database(store: Store, group: str, database: str) -> None:
    """Note the id of the database that a group of indexers writes from now on."""
    store.call("HSET", INSTALLATION, group, database)


def forget_database(store: Store, group: str) -> None:
    """Have the next indexer of a group note its database, and compare the marks of both."""
    store.call("HDEL", INSTALLATION, group)


def forget_group(store: Store, group: str) -> None:
    """Forget the database of a group that was removed, and its marks."""
    forget_database(store, group)
    store.call("DEL", DATABASE_MARKS + group)


def note_mark(store: Store, group: str, worker: str, stream: str, number: int) -> None:
    """Note the last transaction whose entries are acknowledged next."""
    store.call("HSET", DATABASE_MARKS + group, f"{stream} {worker}", number)


def noted_marks(store: Store, group: str) -> dict[tuple[str, str], int]:
    """Return the number of each worker and stream."""
    flat = store.call("HGETALL", DATABASE_MARKS + group)
    found = {}
    for name, number in zip(flat[::2], flat[1::2], strict=True):
        text, counted = text_of(name), _number(number)
        stream, _, worker = text.partition(" ")
        ours = name.isascii() and text.isprintable() and len(text) <= _LONGEST_NAME
        if worker and counted is not None and ours:
            found[worker, stream] = counted
    return found


def request_reading(
    store: Store, kind: GapKind, since: float, from_time: str | None, hosts: Sequence[str]
) -> None:
    """Have everything since a time (in seconds since 1970) read again; note a gap of each relay.

    The gap has the relay's repos listed, for what it does not send any more and what was fetched.
    """
    before = requested_since(store)
    earliest = since if before is None else min(since, before)
    store.call("HSET", READ_AGAIN, _SINCE, earliest)
    gaps = [Gap(host, kind, None, None, from_time, None) for host in hosts]
    append(store, [gap.entry() for gap in gaps])


def report_loss(store: Store, consumer: Consumer, hosts: Sequence[str]) -> StreamLoss | None:
    """Have events of a deleted stream read again; returns the loss that the consumer has met.

    Raises StoreUnavailableError and StoreRejectedError; then call it again.
    """
    loss = consumer.loss
    if loss is not None:
        from_time = datetime.fromtimestamp(loss.since, UTC).isoformat()
        request_reading(store, REDIS_LOST, loss.since, from_time, hosts)
        consumer.loss = None
        extra = {"stream": loss.stream, "since": from_time}
        _log.error("events of a deleted stream are read again, and repos are compared", extra=extra)
    return loss


def note_positions(store: Store, histories: Mapping[str, Sequence[Position]]) -> None:
    """Note the newest position of each cursor, by its key; the others were noted before."""
    restore_positions(store, {key: history[:-1] for key, history in histories.items()})
    for key, history in histories.items():
        for moment, seq in history[-1:]:
            store.call("RPUSH", _HISTORY + key, f"{moment:.0f} {seq}")
            store.call("LTRIM", _HISTORY + key, -HISTORY_LENGTH, -1)


def restore_positions(store: Store, histories: Mapping[str, Sequence[Position]]) -> None:
    """Note positions of cursors, by their keys, where Redis has lost all of them."""
    for key, history in histories.items():
        if history and not store.call("EXISTS", _HISTORY + key):
            store.call("RPUSH", _HISTORY + key, *(f"{when:.0f} {seq}" for when, seq in history))


def requested_since(store: Store) -> float | None:
    """Return the time from which on events are to be read again, if that is requested.

    A request whose time cannot be read is one for everything.
    """
    text = store.call("HGET", READ_AGAIN, _SINCE)
    if text is None:
        return None
    try:
        since = float(text)
    except ValueError:
        return 0.0
    return since if math.isfinite(since) else 0.0


def request_done(store: Store) -> None:
    """Remove the request; cursors are set back."""
    store.call("HDEL", READ_AGAIN, _SINCE)


def set_back(store: Store, key: str, since: float) -> int | None:
    """Set a cursor back to where it was some time before `since`; return that position.

    Returns None if no position of it was noted. A cursor that has not moved since then stays; one
    that Redis has lost is set. The running ingester notices another one, drops the frames that it
    holds and goes on from there.
    """
    for _ in range(_TRIES):
        text = read_cursor(store, key)
        present = None if text is None else _number(text.encode())
        if text is not None and present is None:
            return None
        history = noted_positions(store, key)
        target = _position_at(history, since - MARGIN_SECONDS)
        if target is None or (present is not None and target >= present):
            return target
        newest = history[-1][1] if present is None else present
        store.call("HSET", READ_AGAIN, key, max(newest, again_until(store, key)))
        note = orjson.dumps({"seq": target, "time": None})
        keys = [key, CURSOR_POSITIONS, GAPS]
        if store.script("set_cursor", keys, [text or "", str(target), note, GAP_FIELD, b""]):
            return target
    return None


def again_until(store: Store, key: str) -> int:
    """Return the number up to which events of a cursor are written again; -1 for none."""
    text = store.call("HGET", READ_AGAIN, key)
    until = None if text is None else _number(text)
    return -1 if until is None else until


def again_done(store: Store, key: str) -> None:
    """Note that everything that had to be read again was."""
    store.call("HDEL", READ_AGAIN, key)


def forget_positions(store: Store, key: str) -> None:
    """Forget the positions of a cursor that an operator has moved: nothing was lost."""
    store.call("DEL", _HISTORY + key)


def noted_positions(store: Store, key: str) -> list[Position]:
    """Return the positions of a cursor that were noted, the oldest first."""
    positions = []
    for line in store.call("LRANGE", _HISTORY + key, 0, -1):
        moment, _, seq = line.partition(b" ")
        noted_at, noted = _number(moment), _number(seq)
        if noted_at is not None and noted is not None:
            positions.append((float(noted_at), noted))
    return positions


def _position_at(history: Sequence[Position], moment: float) -> int | None:
    """Return the newest position of at most a time, else the oldest one."""
    older = [seq for time, seq in history if time <= moment]
    return older[-1] if older else history[0][1] if history else None


def _number(text: bytes) -> int | None:
    """Return a number as it is written here; None for anything else, which is not ours."""
    if not text.isdigit() or len(text) > len(str(_LARGEST)):
        return None
    number = int(text)
    return number if number < _LARGEST else None
