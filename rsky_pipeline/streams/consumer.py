"""One consumer of one group on one stream: reading, holding, finishing and leaving entries.

The only file, with the scripts beside it, that calls XREADGROUP, XAUTOCLAIM, XCLAIM or XACK. The
server keeps each delivered entry pending with its consumer until it is acknowledged, so a consumer
may die at any moment: its next life, or after a while another consumer, gets the same entries
again. `Consumer` holds the order of reading; `GroupReader` is the commands.

Each entry that a consumer took ends in one of four ways, all safe to repeat after a lost reply:
`acknowledge`, `dead_letter`, `postpone` (it comes back later), or `release` (it stays pending).
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile
from typing import Any

from rsky_pipeline.streams.connection import Argument, Store
from rsky_pipeline.streams.errors import StoreRejectedError
from rsky_pipeline.streams.limits import BATCH_IDS, BATCH_TRIMMED, PAGE_RECLAIMED
from rsky_pipeline.streams.names import WAITING_KEY, dead_letters

# An entry that was delivered more often may be what crashed its worker.
SUSPICIOUS_DELIVERIES = 2
MAX_ERROR = 500  # characters of an error text that a dead letter keeps
MAX_FIELDS = 1_000  # of an entry that a dead letter keeps; Lua's unpack has a limit, ours have one
# Notes of a dead letter beside the entry's fields; the first and third as the original services.
NOTES = ("reason", "error", "attempts", "source_id")
FORGOTTEN_CONSUMER_MS = 24 * 3600 * 1000  # a consumer that did nothing for so long is gone
_TRIM_CALLS = 100
_FIRST_GUESS_BYTES = 4_096.0  # of an entry, before any was read
_LEAST_GUESS_BYTES = 256.0
_WAIT_SECONDS = 0.02  # between two looks whether a suspicious entry is finished


@dataclass(frozen=True, slots=True)
class Delivery:
    """An entry that was delivered to this consumer; `fields` is None if its body is gone.

    `deliveries` counts all of them, this one included, to whichever consumer of the group.
    """

    stream: str
    id: str
    fields: dict[bytes, bytes] | None
    deliveries: int = 1

    @property
    def suspicious(self) -> bool:
        """Whether it was delivered so often that it may be what crashed its worker."""
        return self.deliveries > SUSPICIOUS_DELIVERIES


@dataclass(slots=True)
class Taken:
    """What one `Consumer.take` returned. `more`: it is full, so more is probably there to read."""

    deliveries: list[Delivery] = field(default_factory=list)
    size: int = 0  # bytes of the values of their fields
    more: bool = False


class Consumer:
    """One consumer of a group on a stream. It has no connection: every call is given one.

    `take` runs in one thread, for example as the action of a `Link`; the other calls may run in
    other threads beside it, on connections of their own. Calls raise StoreUnavailableError and
    StoreRejectedError; all of them may be repeated.
    """

    def __init__(
        self,
        stream: str,
        group: str,
        name: str,
        *,
        reclaim_idle_ms: int,
        max_bytes: int = 0,
        block_ms: int = 0,
        linger_seconds: float = 0.0,
        alone_seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` is the same in the next life of this worker, and unique in the group.

        `reclaim_idle_ms`: entries that nobody worked on for so long are taken over.
        `max_bytes`: about how much one `take` returns (0: no bound).
        `block_ms`: how long `take` waits for a first new entry (0: not at all).
        `linger_seconds`: how long it waits for more when few entries came.
        `alone_seconds`: how long a suspicious entry is alone at most, before others are taken.
        """
        self.stream, self.group, self.name = stream, group, name
        self.reclaimed = 0  # entries taken over from other consumers, or found again
        self.bodiless = 0  # entries that were pending and no longer exist
        self._reclaim_idle_ms = reclaim_idle_ms
        self._max_bytes = max_bytes
        self._block_ms = block_ms
        self._linger_seconds = linger_seconds
        self._alone_seconds = alone_seconds
        self._clock = clock
        self._store: Store | None = None
        self._held: set[str] = set()
        self._recovered: set[str] = set()  # own pending entries that are still held
        self._own: str | None = "-"  # where own pending entries are read on; None: all were read
        self._alone: str | None = None  # a suspicious entry that was taken and may not have ended
        self._last_taken = -math.inf
        self._reclaim_at = 0.0
        self._reclaim_from = "0-0"
        self._entry_bytes = _FIRST_GUESS_BYTES

    @property
    def held(self) -> list[str]:
        """Ids of the entries that were taken and have not ended in one of the four ways."""
        return list(self._held)

    @property
    def taken_up(self) -> bool:
        """Whether all entries that were pending with this consumer at the start were taken."""
        return self._own is None

    @property
    def recovered(self) -> bool:
        """Whether all of them have ended in one of the four ways."""
        return self._own is None and not self._recovered

    def take(self, store: Store, count: int) -> Taken:
        """Return the next entries, at most `count`: none when nothing came for a while.

        First what this consumer was given before and did not finish, now and then what other
        consumers left behind, then new entries. After a failure and on another connection the own
        pending entries come first again, since a reply may have been lost on its way; those still
        held are left out.
        """
        taken = Taken()
        try:
            reader = GroupReader(store, self.stream, self.group, self.name)
            if store is not self._store:
                reader.ensure()
                self._own, self._store = "-", store
            if self._alone not in self._held or not self._must_wait((self._alone,)):
                self._alone = None
                self._fill(reader, taken, count)
        except BaseException:
            # Nobody will see these: they count as pending, not as worked on.
            self._store = None
            self.release(item.id for item in taken.deliveries)
            raise
        full = self._own is not None or self._room(taken, count) <= 0
        taken.more = bool(taken.deliveries) and full
        return taken

    def release(self, ids: Iterable[str]) -> None:
        """Note that entries are not worked on any more; they stay pending with this consumer."""
        ids = list(ids)
        self._held.difference_update(ids)
        self._recovered.difference_update(ids)

    def acknowledge(self, store: Store, ids: Sequence[str]) -> int:
        """Acknowledge entries; return how many were pending. See `GroupReader.acknowledge`."""
        count = self._reader(store).acknowledge(ids)
        self.release(ids)
        return count

    def dead_letter(
        self, store: Store, delivery: Delivery, *, reason: str, error: str, attempts: int
    ) -> bool:
        """Move an entry into its dead-letter stream, in one step of the server.

        Returns whether it was still pending; a repeated call moves nothing twice.
        """
        moved = self._reader(store).dead_letter(
            delivery, reason=reason, error=error, attempts=attempts
        )
        self.release([delivery.id])
        return moved

    def postpone(
        self, store: Store, delivery: Delivery, *, seconds: float, field: bytes, payload: bytes
    ) -> bool:
        """Take an entry out of its stream for so many seconds; it comes back as `payload`.

        Returns whether it was still pending; a repeated call moves nothing twice.
        """
        moved = self._reader(store).postpone(
            delivery, seconds=seconds, field=field, payload=payload
        )
        self.release([delivery.id])
        return moved

    def hold(self, store: Store, *, forgive: bool = False) -> None:
        """Keep other consumers from taking over held entries while work on them takes long.

        `forgive` lets its deliveries count from one again, for work that is held up by something
        else than the entries: a database that is away must not make them suspicious, nor a worker
        that is told to stop.
        """
        if held := self.held:
            self._reader(store).hold(held, forgive=forgive)

    def clean(self, store: Store) -> int:
        """Remove entries that every group has acknowledged, and names of consumers of this group
        that are gone. Returns how many entries were removed."""
        removed = trim(store, self.stream)
        self._reader(store).remove_idle_consumers(FORGOTTEN_CONSUMER_MS)
        return removed

    def _reader(self, store: Store) -> "GroupReader":
        return GroupReader(store, self.stream, self.group, self.name)

    def _fill(self, reader: "GroupReader", taken: Taken, count: int) -> None:
        if self._own is not None:
            self._take_own(reader, taken, count)
        elif self._clock() >= self._reclaim_at:
            self._take_idle(reader, taken, count)
        if not taken.deliveries and self._own is None:
            self._take_new(reader, taken, count)

    def _must_wait(self, entries: Collection[str]) -> bool:
        """Return whether some of these entries are still worked on, after a short wait if so."""
        if not entries or self._clock() >= self._last_taken + self._alone_seconds:
            return False
        if self._block_ms:
            time.sleep(_WAIT_SECONDS)
        return True

    def _take_own(self, reader: "GroupReader", taken: Taken, count: int) -> None:
        """Take own pending entries, a suspicious one alone.

        Taking counts as a delivery. Where an entry crashes its worker each time, those that were
        taken together with it would become suspicious too, and in the end be given up for it. So
        counts are looked at before anything is delivered, a suspicious entry is taken when nothing
        is held, and nothing else until it has ended.
        """
        while self._own is not None and not taken.deliveries:
            rows = reader.pending(self._own, self._room(taken, count), consumer=self.name)
            fresh = [row for row in rows if row.id not in self._held]
            chosen = list(takewhile(lambda row: not row.suspicious_next, fresh))
            if fresh and not chosen:
                if self._must_wait(self._held):
                    return
                chosen = fresh[:1]
                self._alone = chosen[0].id
            # Not what somebody else took over since: that was idle for less.
            claimed = reader.claim(chosen, min((row.idle_ms for row in chosen), default=0))
            self._recovered.update(item.id for item in claimed.deliveries)
            self.bodiless += len(claimed.deleted)
            self._add(taken, claimed.deliveries)
            last = chosen[-1] if chosen else rows[-1] if rows else None
            self._own = f"({last.id}" if last is not None else None

    def _take_idle(self, reader: "GroupReader", taken: Taken, count: int) -> None:
        """Take over entries that were pending for long with any consumer, this one included."""
        size = min(PAGE_RECLAIMED, self._room(taken, count))
        claimed = reader.claim_idle(self._reclaim_idle_ms, self._reclaim_from, size, self._held)
        self.reclaimed += len(claimed.deliveries)
        self.bodiless += len(claimed.deleted)
        self._add(taken, claimed.deliveries)
        self._reclaim_from = claimed.next_start
        if claimed.next_start == "0-0":
            self._reclaim_at = self._clock() + self._reclaim_idle_ms / 2_000

    def _take_new(self, reader: "GroupReader", taken: Taken, count: int) -> None:
        self._add(taken, reader.read_new(self._room(taken, count), self._block_ms))
        lingered = False
        while self._linger_seconds and taken.deliveries and (room := self._room(taken, count)) > 0:
            page = reader.read_new(room, 0)
            self._add(taken, page)
            if len(page) < room:
                if lingered or len(taken.deliveries) >= count // 2:
                    return
                lingered = True
                time.sleep(self._linger_seconds)

    def _room(self, taken: Taken, count: int) -> int:
        """Return how many more entries to ask for, so that the bounds hold.

        Sizes are known only afterwards, so pages are as small as the entries before were large.
        """
        room = count - len(taken.deliveries)
        if not self._max_bytes:
            return room
        free = min(self._max_bytes - taken.size, self._max_bytes // 2)
        return min(room, max(1, int(free / self._entry_bytes))) if free > 0 else 0

    def _add(self, taken: Taken, page: list[Delivery]) -> None:
        if not page:
            return
        size = 0
        for delivery in page:
            size += sum(map(len, (delivery.fields or {}).values()))
            self._held.add(delivery.id)
        taken.deliveries += page
        self._last_taken = self._clock()
        taken.size += size
        # Growth counts at once, shrinking slowly: large entries come in bursts.
        average = max(size / len(page), _LEAST_GUESS_BYTES)
        self._entry_bytes = max(average, 0.8 * self._entry_bytes + 0.2 * average)


def trim(store: Store, stream: str) -> int:
    """Remove entries that every group has acknowledged; return how many.

    A stream without groups is left alone. At most about a million entries are removed; the rest
    goes with the next call. Raises StoreUnavailableError and StoreRejectedError.
    """
    total = 0
    for _ in range(_TRIM_CALLS):
        removed = int(store.script("trim", [stream], [BATCH_TRIMMED]))
        total += removed
        if not removed:
            break
    return total


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry that was delivered and not acknowledged."""

    id: str
    idle_ms: int  # since it was delivered or held
    deliveries: int

    @property
    def suspicious_next(self) -> bool:
        """Whether the next delivery would be suspicious."""
        return self.deliveries >= SUSPICIOUS_DELIVERIES


@dataclass(frozen=True, slots=True)
class Claimed:
    """One page of taken-over entries.

    `deleted` are ids whose bodies no longer existed; they are acknowledged already.
    """

    next_start: str
    deliveries: list[Delivery]
    deleted: list[str]


class GroupReader:
    """The commands of one consumer. Calls raise StoreUnavailableError and StoreRejectedError."""

    def __init__(self, store: Store, stream: str, group: str, consumer: str) -> None:
        self._store = store
        self.stream = stream
        self.group = group
        self.consumer = consumer

    def ensure(self) -> None:
        """Create the group at the beginning of the stream, and the stream, where missing."""
        try:
            self._store.call("XGROUP", "CREATE", self.stream, self.group, "0", "MKSTREAM")
        except StoreRejectedError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def read_new(self, count: int, block_ms: int) -> list[Delivery]:
        """Return entries that no consumer of the group was given yet, waiting for the first.

        `block_ms` 0 does not wait. Raises ValueError for a wait that the connection would cut off.
        """
        if block_ms >= self._store.timeout_seconds * 1000:
            raise ValueError(f"a read cannot wait {block_ms} ms on this connection")
        block: list[Argument] = ["BLOCK", block_ms] if block_ms else []
        try:
            reply = self._store.call(
                "XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", count, *block,
                "STREAMS", self.stream, ">",
            )  # fmt: skip
        except StoreRejectedError as error:
            # UNBLOCKED: the stream was deleted while we waited for it.
            if "NOGROUP" not in str(error) and "UNBLOCKED" not in str(error):
                raise
            # The stream or group was deleted under us; from the beginning nothing is missed.
            self.ensure()
            return []
        return list(_deliveries(self.stream, reply[0][1])) if reply else []

    def claim_idle(
        self,
        min_idle_ms: int,
        start: str,
        count: int,
        held: Collection[str] = (),
    ) -> Claimed:
        """Take over entries that were pending for long with any consumer of the group.

        That includes this one, for entries that it lost sight of; `held` are the ids that it still
        works on. Begin with "0-0" and read on from `next_start` until that is "0-0" again.
        """
        rows = self.pending("-" if start == "0-0" else start, count, min_idle_ms)
        found = self.claim([row for row in rows if row.id not in held], min_idle_ms)
        next_start = f"({rows[-1].id}" if len(rows) == count else "0-0"
        return replace(found, next_start=next_start)

    def pending(
        self, start: str, count: int, min_idle_ms: int = 0, *, consumer: str | None = None
    ) -> list[Pending]:
        """Return pending entries in the order of their ids, without delivering them.

        `start` is "-", or "(" and the last id of the page before; `consumer` None means any.
        """
        names = [] if consumer is None else [consumer]
        try:
            rows = self._store.call(
                "XPENDING", self.stream, self.group, "IDLE", min_idle_ms, start, "+", count, *names
            )
        except StoreRejectedError as error:
            if "NOGROUP" not in str(error):
                raise
            self.ensure()
            return []
        return [Pending(entry_id.decode(), int(idle), int(n)) for entry_id, _, idle, n in rows]

    def claim(self, rows: Sequence[Pending], min_idle_ms: int) -> Claimed:
        """Let these entries be delivered to this consumer, those that are idle for so long still.

        The ones whose bodies are gone are acknowledged.
        """
        counts = {row.id: row.deliveries for row in rows}
        deliveries = [
            replace(item, deliveries=counts[item.id] + 1)
            for item in self._claim(list(counts), min_idle_ms)
        ]
        taken = {item.id for item in deliveries}
        return Claimed("0-0", deliveries, self._bodiless([i for i in counts if i not in taken]))

    def hold(self, ids: Sequence[str], *, forgive: bool = False) -> None:
        """Keep entries from being claimed by others while work on them takes long.

        `forgive` lets their deliveries count from one again, for work that is held up by
        something else than the entries: a database that is away must not make them suspicious.
        """
        options = ("RETRYCOUNT", 1, "JUSTID") if forgive else ("JUSTID",)
        for part in _slices(ids):
            self._store.call("XCLAIM", self.stream, self.group, self.consumer, 0, *part, *options)

    def acknowledge(self, ids: Sequence[str]) -> int:
        """Acknowledge entries and return how many were pending.

        They are deleted too where this is the only group; otherwise trimming removes them once
        every group has acknowledged them.
        """
        return sum(
            int(self._store.script("acknowledge", [self.stream], [self.group, *part]))
            for part in _slices(ids)
        )

    def dead_letter(self, delivery: Delivery, *, reason: str, error: str, attempts: int) -> bool:
        """Move a pending entry with notes into its dead-letter stream; False if it is not pending.

        In one step of the server, which takes it also when its memory is full.
        """
        fields = list((delivery.fields or {}).items())
        if len(fields) > MAX_FIELDS:
            error = f"{len(fields) - MAX_FIELDS} fields left out: {error}"
        text = error[:MAX_ERROR].encode("utf-8", "replace")
        notes: tuple[Argument, ...] = (reason, text, attempts, delivery.id)
        arguments: list[Argument] = [self.group, delivery.id]
        arguments += chain.from_iterable(fields[:MAX_FIELDS])
        arguments += chain.from_iterable(zip(NOTES, notes, strict=True))
        keys = [self.stream, dead_letters(self.stream)]
        return bool(self._store.script("dead_letter", keys, arguments))

    def postpone(self, delivery: Delivery, *, seconds: float, field: bytes, payload: bytes) -> bool:
        """Move a pending entry to those that wait (see `waiting`); False if it is not pending."""
        due = max(0, int(seconds * 1000))
        arguments: list[Argument] = [self.group, delivery.id, due, field, payload]
        return bool(self._store.script("postpone", [self.stream, WAITING_KEY], arguments))

    def pending_count(self) -> int:
        """Return how many entries this consumer holds."""
        for consumer in self._store.call("XINFO", "CONSUMERS", self.stream, self.group):
            facts = dict(zip(consumer[::2], consumer[1::2], strict=True))
            if facts[b"name"].decode() == self.consumer:
                return int(facts[b"pending"])
        return 0

    def remove_idle_consumers(self, min_idle_ms: int) -> list[str]:
        """Forget other consumers that hold nothing and did nothing for long; return their names."""
        arguments: list[Argument] = [self.group, self.consumer, min_idle_ms]
        removed = self._store.script("remove_consumers", [self.stream], arguments)
        return [name.decode() for name in removed]

    def _claim(self, ids: Sequence[str], min_idle_ms: int) -> Iterator[Delivery]:
        for part in _slices(ids):
            # Somebody else may be quicker: the server compares the idle time once more.
            reply = self._store.call(
                "XCLAIM", self.stream, self.group, self.consumer, min_idle_ms, *part
            )
            # Redis 6.2 has nil where the body is gone, later ones leave the entry out.
            found = [item for item in reply if item is not None and item[1] is not None]
            yield from _deliveries(self.stream, found)

    def _bodiless(self, ids: Sequence[str]) -> list[str]:
        """Return and acknowledge those whose bodies are gone; the others were claimed by others."""
        gone = [
            entry_id
            for entry_id in ids
            if not self._store.call("XRANGE", self.stream, entry_id, entry_id)
        ]
        self.acknowledge(gone)
        return gone


def _slices(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + BATCH_IDS] for start in range(0, len(ids), BATCH_IDS))


def _deliveries(stream: str, page: Sequence[Any]) -> Iterator[Delivery]:
    for entry_id, flat in page:
        if flat and len(flat) == 2:  # all of ours
            yield Delivery(stream, entry_id.decode(), {flat[0]: flat[1]})
            continue
        fields = dict(zip(flat[::2], flat[1::2], strict=True)) if flat else None
        yield Delivery(stream, entry_id.decode(), fields)
