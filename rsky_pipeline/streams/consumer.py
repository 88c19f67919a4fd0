"""One consumer of one group on one stream: reads, holds, finishes and releases entries.

The only file, with the scripts beside it, that calls XREADGROUP, XAUTOCLAIM, XCLAIM or XACK. The
server keeps a delivered entry pending with its consumer until it is acknowledged, so a consumer may
die at any moment: after its restart it reads the same entries again, and if it never restarts,
another consumer reclaims them.

Each entry that a consumer took ends in one of four ways, all safe to repeat after a lost reply:
`acknowledge`, `dead_letter`, `postpone` (it comes back later), or `release` (it stays pending).
Where Redis refuses to move one entry, that entry is released, so that it cannot hold up the others.

Example: indexer-1 takes entries 5, 6 and 7, commits the rows of 5 and 6, and is killed before it
acknowledges them. It restarts under the same consumer name, and `take` first returns 5, 6 and 7
again as its own pending entries. Applying 5 and 6 a second time changes no row.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile
from typing import Any, NamedTuple

from rsky_pipeline.health.rules import GROUP_REMADE, RuleVerdict, judged
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.streams.commands import Argument
from rsky_pipeline.streams.connection import Store, text_of
from rsky_pipeline.streams.errors import StoreRejectedError
from rsky_pipeline.streams.lag import StreamReport, inspect
from rsky_pipeline.streams.limits import BATCH_IDS, BATCH_TRIMMED, PAGE_RECLAIMED
from rsky_pipeline.streams.names import TRIALS, WAITING_KEY, dead_letters

_log = logging.getLogger(__name__)
# An entry delivered more often than this may have crashed its worker, and is then taken alone.
SUSPICIOUS_DELIVERIES = 2
MAX_ERROR = 500  # characters of the error text of a dead letter
MAX_FIELDS = 1_000  # of an entry that a dead letter keeps; Lua's unpack has a limit, ours have one
# Notes of a dead letter beside the entry's fields; two are those of the original services.
NOTES = ("reason", "error", "attempts", "source_id")
FORGOTTEN_CONSUMER_MS = 24 * 3600 * 1000  # an idle consumer without pending entries is removed
_TRIM_CALLS = 100
_FIRST_GUESS_BYTES = 4_096.0  # size of an entry, before any was read
_LEAST_GUESS_BYTES = 256.0
_TRIALS_SECONDS = 7 * 24 * 3600  # after which marks are forgotten
_WAIT_SECONDS = 0.02  # poll interval while a suspicious entry is in progress


class Delivery(NamedTuple):  # one an entry: made faster than a frozen dataclass
    """An entry delivered to this consumer; `fields` is None if its body was deleted.

    `deliveries` counts deliveries to any consumer of the group, including this one. `deaths` counts
    the workers that died while they tried this entry alone, see `Trial`.
    """

    stream: str
    id: str
    fields: dict[bytes, bytes] | None
    deliveries: int = 1
    deaths: int = 0

    def crashes_workers(self, max_deliveries: int) -> bool:
        """Return whether it is to be dead-lettered as the entry that ends its workers.

        Its first deliveries were beside other entries, and prove nothing.
        """
        return self.deaths >= max(1, max_deliveries - SUSPICIOUS_DELIVERIES)

    @property
    def suspicious(self) -> bool:
        """Whether it was delivered so often that it may have crashed its workers."""
        return self.deliveries > SUSPICIOUS_DELIVERIES


@dataclass(slots=True)
class Taken:
    """The result of `Consumer.take`. `more`: it is full, so the stream probably holds more."""

    deliveries: list[Delivery] = field(default_factory=list)
    size: int = 0  # bytes of all field values
    more: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """A delivered entry that is not acknowledged (a row of XPENDING)."""

    id: str
    idle_ms: int  # since the last delivery or `hold`
    deliveries: int

    @property
    def suspicious_next(self) -> bool:
        """Whether the next delivery would be suspicious."""
        return self.deliveries >= SUSPICIOUS_DELIVERIES


@dataclass(frozen=True, slots=True)
class Claimed:
    """One page of reclaimed entries.

    `deleted` are ids whose bodies no longer exist; they are already acknowledged.
    """

    next_start: str
    deliveries: list[Delivery]
    deleted: list[str]


class Trial:
    """Shared by the consumers of a worker: while one tries a suspicious entry, none takes others.

    A count of deliveries is no guilt: it grows whenever the worker is killed, for whatever reason.
    So a mark is stored before a suspicious entry is handed out (`TRIALS` in Redis: how many workers
    died under the mark, and which consumer tries it now) and removed when it has ended. A mark that
    is found there in a later life is a death, unless the worker did not end by itself: `blameless`
    says that it was killed or stopped from outside, as far as its supervisor knows.
    """

    def __init__(self, blameless: bool = False) -> None:
        self.blameless = blameless
        self.owner: Consumer | None = None
        self.consumers: list[Consumer] = []
        self._lock = threading.Lock()

    def begin(self, consumer: "Consumer") -> bool:
        """Let a consumer have its trial, unless another one has; returns whether it may."""
        with self._lock:
            if self.owner is None:
                self.owner = consumer
            return self.owner is consumer

    def end(self, consumer: "Consumer") -> None:
        """Let the others go on."""
        with self._lock:
            if self.owner is consumer:
                self.owner = None

    @property
    def held(self) -> list[str]:
        """The entries that any consumer of the worker holds."""
        return [entry for consumer in self.consumers for entry in consumer.held]


@dataclass(frozen=True, slots=True)
class StreamLoss:
    """A stream that was deleted with entries which the group had not finished.

    `since` is when the oldest of those came, in seconds since 1970.
    """

    stream: str
    since: float


class Consumer:
    """One consumer of a group on a stream. It has no connection: callers pass one to every call.

    `take` must run in one thread at a time, for example as the action of a `Link`; the other calls
    may run in other threads meanwhile, on connections of their own. Calls raise
    StoreUnavailableError and StoreRejectedError, and are safe to repeat.
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
        pace_seconds: float = 0.0,
        alone_seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        trial: Trial | None = None,
    ) -> None:
        """`name` must be unique in the group, and the same after a restart of the worker.

        `reclaim_idle_ms`: entries pending for longer without a `hold` are taken over.
        `max_bytes`: approximate bound of the bytes that one `take` returns (0: none).
        `block_ms`: `take` waits so long for a first new entry (0: not at all).
        `pace_seconds`: new entries are taken no sooner than so long after the last ones, unless
        those were all that `take` may return: one comes at once, many come together.
        `alone_seconds`: a suspicious entry is alone for at most so long, then others are taken too.
        `trial` is shared by all consumers of the worker.
        """
        self.stream, self.group, self.name = stream, group, name
        self._log = ThrottledLog(_log)
        self.reclaimed = 0  # entries taken over by XAUTOCLAIM, from any consumer
        self.bodiless = 0  # pending entries whose bodies were deleted
        self.loss: StreamLoss | None = None  # to be reported by the owner, who then clears it
        self._remade: tuple[float, str] | None = None  # when, and what was missing
        self._reclaim_idle_ms = reclaim_idle_ms
        self._max_bytes = max_bytes
        self._block_ms = block_ms
        self._pace_seconds = pace_seconds
        self._alone_seconds = alone_seconds
        self._clock = clock
        self._store: Store | None = None
        # Of the last look: entries ever added (None: not known), and when the oldest entry came
        # that the group had not finished.
        self._added: int | None = None
        self._unfinished_since = time.time()
        self._held: set[str] = set()
        self._recovered: set[str] = set()  # own pending entries still held
        self._own: str | None = "-"  # next position in own pending entries; None: all were read
        self._trial = trial or Trial()
        self._trial.consumers.append(self)
        self._alone: str | None = None  # a suspicious entry that may be in progress
        self._marked: set[str] = set()  # entries that this object has marked
        self._last_taken = -math.inf
        self._paced_until = -math.inf
        self._reclaim_at = 0.0
        self._reclaim_from = "0-0"
        self._entry_bytes = _FIRST_GUESS_BYTES

    @property
    def held(self) -> list[str]:
        """Ids of the entries that were taken and are not finished."""
        return list(self._held)

    @property
    def taken_up(self) -> bool:
        """Whether all entries pending with this consumer at its start were taken."""
        return self._own is None

    @property
    def recovered(self) -> bool:
        """Whether all entries pending with this consumer at its start are finished."""
        return self._own is None and not self._recovered

    def take(self, store: Store, count: int) -> Taken:
        """Return the next entries, at most `count`; none if no entry came within `block_ms`.

        Own pending entries come first, then new ones; at intervals, entries that other consumers
        left pending are reclaimed. After a failure, and on a new connection, own pending entries
        are read again: a lost reply may have delivered entries that this object has never seen.
        Entries still held are skipped.
        """
        taken = Taken()
        try:
            if store is not self._store:
                self._ensure_group(store)
                self._own, self._store = "-", store
            if not self._is_kept_waiting():
                self._fill(store, taken, count)
        except BaseException:
            # The caller never gets these entries: they are pending, but not held.
            self._store = None
            self.release(item.id for item in taken.deliveries)
            raise
        full = self._own is not None or self._room(taken, count) <= 0
        taken.more = bool(taken.deliveries) and full
        return taken

    def release(self, ids: Iterable[str]) -> None:
        """Stop holding entries; they stay pending with this consumer until they are reclaimed."""
        ids = list(ids)
        self._held.difference_update(ids)
        self._recovered.difference_update(ids)

    def acknowledge(self, store: Store, ids: Sequence[str]) -> int:
        """Acknowledge entries; returns the number that were pending.

        If this is the only group, they are deleted too; otherwise `trim` removes them once every
        group has acknowledged them.
        """
        count = 0
        for part in _slices(ids):
            count += int(store.script("acknowledge", [self.stream], [self.group, *part]))
        self._unmark(store, ids)
        self.release(ids)
        return count

    def dead_letter(
        self, store: Store, delivery: Delivery, *, reason: str, error: str, attempts: int
    ) -> bool:
        """Move an entry with notes to its dead-letter stream, atomically.

        The server accepts it at its memory limit, too. Returns False if the entry was no longer
        pending, for example when a retry follows a lost reply, or if Redis refuses to move it: then
        it stays pending, and is tried again after a reclaim.
        """
        fields = list((delivery.fields or {}).items())
        if len(fields) > MAX_FIELDS:
            error = f"{len(fields) - MAX_FIELDS} fields left out: {error}"
        text = error[:MAX_ERROR].encode("utf-8", "replace")
        notes: tuple[Argument, ...] = (reason, text, attempts, delivery.id)
        letter: list[Argument] = [*chain.from_iterable(fields[:MAX_FIELDS])]
        letter += chain.from_iterable(zip(NOTES, notes, strict=True))
        return self._move(store, delivery, dead_letters(self.stream), "", letter)

    def postpone(
        self, store: Store, delivery: Delivery, *, seconds: float, field: bytes, payload: bytes
    ) -> bool:
        """Move an entry to the postponed ones (`waiting`); it comes back as `payload`.

        Returns False in the same cases as `dead_letter`.
        """
        due = max(0, int(seconds * 1000))
        return self._move(store, delivery, WAITING_KEY, due, [field, payload])

    def hold(self, store: Store, *, forgive: bool = False) -> None:
        """Reset the idle time of held entries, so that other consumers do not reclaim them.

        Call it more often than `reclaim_idle_ms` while work takes long. `forgive` resets the
        delivery counts too, for interruptions that are not the fault of the entries: an unavailable
        database or an orderly stop must not make them suspicious.
        """
        options = ("RETRYCOUNT", 1, "JUSTID") if forgive else ("JUSTID",)
        try:
            if forgive:
                self._unmark(store, self.held)
            for part in _slices(self.held):
                store.call("XCLAIM", self.stream, self.group, self.name, 0, *part, *options)
        except StoreRejectedError as error:
            if "NOGROUP" not in str(error):
                raise
            # Nothing is pending in a group that is gone; the next `take` creates another.

    def clean(self, store: Store) -> int:
        """Remove entries that every group has acknowledged, and consumers of this group that are
        gone. Returns the number of removed entries."""
        removed = trim(store, self.stream, self.group)
        arguments: list[Argument] = [self.group, self.name, FORGOTTEN_CONSUMER_MS]
        store.script("remove_consumers", [self.stream], arguments)
        return removed

    def observe(self, report: StreamReport) -> None:
        """Take a look at the stream, of every few seconds, from which a later loss is measured."""
        group = report.group(self.group)
        if group is not None:
            self._added = report.added
            self._unfinished_since = time.time() - group.oldest_unacked_age_seconds

    @property
    def verdicts(self) -> list[RuleVerdict]:
        """A finding for some time after a group had to be made again."""
        if self._remade is None or self._clock() - self._remade[0] > GROUP_REMADE.seconds:
            return []
        minutes = (self._clock() - self._remade[0]) / 60
        figure = f"the {self._remade[1]} of {self.group} was missing {minutes:.0f} minutes ago"
        return [judged(GROUP_REMADE, self.stream, 1, figure)]

    def _ensure_group(self, store: Store) -> None:
        """Create the group if it is missing, at the beginning of its stream, which misses no entry.

        Where only the group was destroyed, that is the right position: finished entries are
        removed from the stream, and those of other groups change nothing when they are applied
        again. Where the stream was deleted as well, unfinished entries are gone with it.
        """
        if not ensure_group(store, self.stream, self.group) or self._added is None:
            return
        report = inspect(store, self.stream)
        lost = report.added < self._added
        self._remade = self._clock(), "stream" if lost else "group"
        self._log.error(
            "stream was deleted with its unfinished entries" if lost
            else "consumer group was destroyed, and is created again at the first entry",
            key=self.stream, stream=self.stream, group=self.group,
        )  # fmt: skip
        if lost:
            since = min(self._unfinished_since, self.loss.since if self.loss else math.inf)
            self.loss = StreamLoss(self.stream, since)
        self._added = report.added

    def _move(
        self, store: Store, delivery: Delivery, target: str, due: Argument,
        fields: Sequence[Argument],
    ) -> bool:  # fmt: skip
        """Move one entry, or release it if Redis refuses this move but not others.

        Such a refusal recurs at every try, for example while the target key has another type. The
        caller would retry for ever, with all endings behind this one. A user who may not end any
        entry is told apart by acknowledging an id that no entry has: that refusal is raised, so
        that all entries stay held until the operator acts, and no delivery is counted.
        """
        moved = False
        try:
            arguments = [self.group, delivery.id, due, *fields]
            moved = bool(store.script("move_pending", [self.stream, target], arguments))
            self._unmark(store, [delivery.id])
        except StoreRejectedError as error:
            self.acknowledge(store, ["0-1"])
            self._log.error(
                "entry stays pending", key=self.stream, error=error, stream=self.stream,
                entry=delivery.id,
            )  # fmt: skip
        self.release([delivery.id])
        return moved

    def _fill(self, store: Store, taken: Taken, count: int) -> None:
        waits = False
        if self._own is not None:
            waits = self._take_own(store, taken, count)
        elif self._clock() >= self._reclaim_at:
            waits = self._take_idle(store, taken, count)
        if waits:
            return
        if self._alone is None:  # the one that was waited for is another consumer's meanwhile
            self._trial.end(self)
        if not taken.deliveries and self._own is None:
            self._take_new(store, taken, count)

    def _is_kept_waiting(self) -> bool:
        """Return whether a suspicious entry is tried now; if so, after a short wait."""
        if self._trial.owner is not self:
            return self._trial.owner is not None and self._wait()
        if self._alone is not None:
            if self._alone in self._held and self._must_wait((self._alone,)):
                return True
            self._alone = None
            self._trial.end(self)
        return False

    def _must_wait(self, entries: Collection[str]) -> bool:
        """Return whether some of these entries are still in progress; if so, after a short wait."""
        if not entries or self._clock() >= self._last_taken + self._alone_seconds:
            return False
        return self._wait()

    def _wait(self) -> bool:
        if self._block_ms:
            time.sleep(_WAIT_SECONDS)
        return True

    def _may_try(self, row: Pending) -> bool:
        """Return whether a suspicious entry may be claimed: the worker holds nothing else.

        From the first question on nothing else is taken. What takes longer than `alone_seconds` is
        not waited for.
        """
        if self._trial.owner is None:
            self._last_taken = self._clock()
        if not self._trial.begin(self) or self._must_wait(self._trial.held):
            return False
        self._alone = row.id
        return True

    def _mark(self, store: Store, delivery: Delivery) -> Delivery:
        """Store that a suspicious entry is tried, and return it with the deaths so far.

        Its delivery count is set to one that these deaths account for: programs of before the mark
        go by the count alone.
        """
        field = self._trial_field(delivery.id)
        before, _, owner = text_of(store.call("HGET", TRIALS, field) or b"").partition(" ")
        deaths = int(before) if before.isdecimal() and len(before) < 10 else 0
        if owner and delivery.id not in self._marked:
            deaths += not (self._trial.blameless and owner == self.name)
        self._marked.add(delivery.id)
        store.call("HSET", TRIALS, field, f"{deaths} {self.name}")
        store.call("EXPIRE", TRIALS, _TRIALS_SECONDS)
        most = SUSPICIOUS_DELIVERIES + 1 + deaths
        if delivery.deliveries > most:
            store.call(
                "XCLAIM", self.stream, self.group, self.name, 0, delivery.id, "RETRYCOUNT", most,
                "JUSTID",
            )  # fmt: skip
        return delivery._replace(deaths=deaths)

    def _unmark(self, store: Store, ids: Sequence[str]) -> None:
        """Remove the marks of entries that have ended."""
        if ended := self._marked.intersection(ids):
            store.call("HDEL", TRIALS, *map(self._trial_field, ended))
            self._marked -= ended

    def _trial_field(self, entry_id: str) -> str:
        return f"{self.stream} {self.group} {entry_id}"

    def _take_own(self, store: Store, taken: Taken, count: int) -> bool:
        """Take own pending entries; a suspicious one alone.

        A claim counts as a delivery. If one entry crashes its worker at every attempt, the entries
        claimed together with it would reach the delivery limit too, and be dead-lettered without
        fault. So the counts are read (XPENDING) before anything is claimed. A suspicious entry is
        claimed only when no other entry is held, and no other is taken until it is finished or
        `alone_seconds` have passed. Returns whether it waits for that.
        """
        while self._own is not None and not taken.deliveries:
            rows = self._pending(store, self._own, self._room(taken, count), own=True)
            fresh = [row for row in rows if row.id not in self._held]
            chosen = list(takewhile(lambda row: not row.suspicious_next, fresh))
            if fresh and not chosen:
                if not self._may_try(fresh[0]):
                    return True
                chosen = fresh[:1]
            # The minimum idle time skips entries that another consumer has reclaimed since.
            claimed = self._claim(store, chosen, min((row.idle_ms for row in chosen), default=0))
            self._recovered.update(item.id for item in claimed.deliveries)
            self.bodiless += len(claimed.deleted)
            self._add(taken, claimed.deliveries)
            last = chosen[-1] if chosen else rows[-1] if rows else None
            self._own = f"({last.id}" if last is not None else None
        return False

    def _take_idle(self, store: Store, taken: Taken, count: int) -> bool:
        """Reclaim entries pending for long with any consumer, including this one.

        A suspicious one is taken alone here, too.
        """
        size = min(PAGE_RECLAIMED, self._room(taken, count))
        claimed = self._claim_idle(store, self._reclaim_idle_ms, self._reclaim_from, size)
        if claimed is None:
            return True
        self.reclaimed += len(claimed.deliveries)
        self.bodiless += len(claimed.deleted)
        self._add(taken, claimed.deliveries)
        self._reclaim_from = claimed.next_start
        if claimed.next_start == "0-0":
            self._reclaim_at = self._clock() + self._reclaim_idle_ms / 2_000
        return False

    def _take_new(self, store: Store, taken: Taken, count: int) -> None:
        if self._pace_seconds and (wait := self._paced_until - self._clock()) > 0:
            time.sleep(min(wait, self._pace_seconds))
        room = self._room(taken, count)
        page = self._read_new(store, room, self._block_ms)
        self._add(taken, page)
        while self._pace_seconds and len(page) == room and (room := self._room(taken, count)) > 0:
            page = self._read_new(store, room, 0)
            self._add(taken, page)
        if taken.deliveries and self._room(taken, count) > 0:
            self._paced_until = self._clock() + self._pace_seconds

    def _room(self, taken: Taken, count: int) -> int:
        """Return the number of entries to request within the bounds on entries and bytes.

        Sizes are known only after reading, so the page size is derived from the mean size before.
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
        # The estimate grows at once and shrinks slowly, because large entries come in bursts.
        average = max(size / len(page), _LEAST_GUESS_BYTES)
        self._entry_bytes = max(average, 0.8 * self._entry_bytes + 0.2 * average)

    def _read_new(self, store: Store, count: int, block_ms: int) -> list[Delivery]:
        """Read entries not yet delivered to the group; waits up to `block_ms` for the first.

        `block_ms` 0 does not wait. Raises ValueError if it exceeds the timeout of the connection.
        """
        if block_ms >= store.timeout_seconds * 1000:
            raise ValueError(f"block_ms {block_ms} exceeds the timeout of the connection")
        block: list[Argument] = ["BLOCK", block_ms] if block_ms else []
        try:
            reply = store.call(
                "XREADGROUP", "GROUP", self.group, self.name, "COUNT", count, *block,
                "STREAMS", self.stream, ">",
            )  # fmt: skip
        except StoreRejectedError as error:
            # UNBLOCKED: the stream was deleted during the wait.
            if "NOGROUP" not in str(error) and "UNBLOCKED" not in str(error):
                raise
            self._ensure_group(store)
            return []
        return list(_deliveries(self.stream, reply[0][1])) if reply else []

    def _claim_idle(self, store: Store, min_idle_ms: int, start: str, count: int) -> Claimed | None:
        """Reclaim entries pending for long with any consumer of the group.

        This consumer's own are included, for example those of a lost reply, except held ones.
        Start with "0-0" and continue at `next_start` until it is "0-0" again. Returns None while a
        suspicious entry is next and others are in progress.
        """
        rows = self._pending(store, "-" if start == "0-0" else start, count, min_idle_ms)
        fresh = [row for row in rows if row.id not in self._held]
        chosen = list(takewhile(lambda row: not row.suspicious_next, fresh))
        if fresh and not chosen:
            if not self._may_try(fresh[0]):
                return None
            chosen = fresh[:1]
        found = self._claim(store, chosen, min_idle_ms)
        if len(chosen) < len(fresh):
            return replace(found, next_start=f"({chosen[-1].id}")
        return replace(found, next_start=f"({rows[-1].id}" if len(rows) == count else "0-0")

    def _pending(
        self, store: Store, start: str, count: int, min_idle_ms: int = 0, *, own: bool = False
    ) -> list[Pending]:
        """Return pending entries of any consumer or of this one in id order, without delivering.

        `start` is "-", or "(" and the last id of the previous page.
        """
        names = [self.name] if own else []
        try:
            rows = store.call(
                "XPENDING", self.stream, self.group, "IDLE", min_idle_ms, start, "+", count, *names
            )
        except StoreRejectedError as error:
            if "NOGROUP" not in str(error):
                raise
            self._ensure_group(store)
            return []
        return [Pending(entry_id.decode(), int(idle), int(n)) for entry_id, _, idle, n in rows]

    def _claim(self, store: Store, rows: Sequence[Pending], min_idle_ms: int) -> Claimed:
        """Claim those of the entries that are still idle for `min_idle_ms`; counts a delivery.

        Entries whose bodies are gone are acknowledged.
        """
        counts = {row.id: row.deliveries for row in rows}
        found: list[Delivery] = []
        for part in _slices(list(counts)):
            reply = store.call("XCLAIM", self.stream, self.group, self.name, min_idle_ms, *part)
            # Redis 6.2 returns nil if the body is gone, later versions omit the entry.
            bodies = [item for item in reply if item is not None and item[1] is not None]
            for item in _deliveries(self.stream, bodies):
                delivery = item._replace(deliveries=counts[item.id] + 1)
                found.append(self._mark(store, delivery) if delivery.suspicious else delivery)
        taken = {item.id for item in found}
        # The others have another consumer now, unless their bodies are gone.
        gone = [
            entry_id for entry_id in counts
            if entry_id not in taken and not store.call("XRANGE", self.stream, entry_id, entry_id)
        ]  # fmt: skip
        self.acknowledge(store, gone)
        return Claimed("0-0", found, gone)


def ensure_group(store: Store, stream: str, group: str) -> bool:
    """Create the stream and the group, at the beginning of the stream, if missing.

    Returns whether the group was missing.
    """
    try:
        store.call("XGROUP", "CREATE", stream, group, "0", "MKSTREAM")
    except StoreRejectedError as error:
        if "BUSYGROUP" not in str(error):
            raise
        return False
    return True


def trim(store: Store, stream: str, group: str = "") -> int:
    """Remove entries that every group has acknowledged; returns their number.

    A stream without groups is not trimmed, nor one without `group`: it was destroyed, and may not
    have read what the others have. One call removes at most about a million entries; the
    next one continues. Raises StoreUnavailableError and StoreRejectedError.
    """
    total = 0
    for _ in range(_TRIM_CALLS):
        removed = int(store.script("trim", [stream], [BATCH_TRIMMED, group]))
        total += removed
        if not removed:
            break
    return total


def _slices(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + BATCH_IDS] for start in range(0, len(ids), BATCH_IDS))


def _deliveries(stream: str, page: Sequence[Any]) -> Iterator[Delivery]:
    for entry_id, flat in page:
        if flat and len(flat) == 2:  # entries of this program
            yield Delivery(stream, entry_id.decode(), {flat[0]: flat[1]})
            continue
        fields = dict(zip(flat[::2], flat[1::2], strict=True)) if flat else None
        yield Delivery(stream, entry_id.decode(), fields)
