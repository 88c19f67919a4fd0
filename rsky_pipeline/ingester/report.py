"""Reports of the ingester: readiness, health, gauges of each host, the state of the streams."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import orjson
import trio

from rsky_pipeline.configuration.endpoints import HostKey
from rsky_pipeline.health.rules import (
    CLOCK,
    CURSOR_REFUSED,
    LABELER_STALLED,
    NO_RELAY,
    RELAY_STALLED,
    RuleVerdict,
    Status,
    judged,
)
from rsky_pipeline.ingester.bsync import BsyncFollower, bsync_verdicts
from rsky_pipeline.ingester.follower import STANDS_AFTER_SECONDS, Follower
from rsky_pipeline.ingester.frames import RawDeadLetters
from rsky_pipeline.ingester.listing.enumeration import Enumerator
from rsky_pipeline.ingester.pipeline import SharedState
from rsky_pipeline.ingester.sequence import timestamp
from rsky_pipeline.ingester.writer import SourceBatch, Writer
from rsky_pipeline.network.subscription import DisconnectReason
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.health import Activity
from rsky_pipeline.runtime.health_document import CursorHealth, RoleHealth
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import BSYNC_LIVE, FIREHOSE_LIVE, LABEL_LIVE, REPO_BACKFILL

_log = logging.getLogger(__name__)
_HEALTH_SECONDS = 1.0
_WATCH_SECONDS = 5.0
# How long the roles that consume our streams wait for a relay to answer. They have work to do
# without one, and a relay may be away for hours.
PATIENCE_SECONDS = 10.0
# What ends a connection though its host is well.
_NOT_OF_HOST = frozenset(
    {DisconnectReason.PRESSURE, DisconnectReason.CURSOR_MOVED, DisconnectReason.STORE}
)


class FeedReport:
    """The figures of one host, updated with every batch that the store has."""

    def __init__(
        self, stream: str, host: HostKey, metrics: IngesterMetrics, letters: RawDeadLetters
    ) -> None:
        self.stream = stream
        self.host = host
        self.written = 0  # events and labels
        self.lag_seconds: float | None = None
        self._metrics = metrics
        self._letters = letters

    def observe(self, part: SourceBatch, lengths: Mapping[str, int]) -> None:
        """Add the part of a batch that is of this host; `lengths` are those of its streams."""
        streams = [entry.stream for entry in part.entries]
        events = streams.count(FIREHOSE_LIVE)
        labels = sum(_labels(e.payload) for e in part.entries if e.stream == LABEL_LIVE)
        self.written += events + labels
        self._metrics.labels_written.inc(labels)
        self._metrics.stream_events.inc(events)
        if part.seq is not None:
            self._metrics.cursor.labels(self.stream, self.host).set(part.seq)
        if self._letters.stream in lengths:
            self._letters.observe_length(lengths[self._letters.stream])
        moment = None if part.time is None else timestamp(part.time)
        if moment is not None:
            self.lag_seconds = max(0.0, time.time() - moment)
            self._metrics.lag.labels(self.host).set(self.lag_seconds)
            self._metrics.event_time.labels(self.host).set(moment)


class Reporter:
    """Reports health every second and looks at the streams every few."""

    def __init__(
        self,
        context: WorkerContext,
        relays: Sequence[tuple[Follower, FeedReport]],
        labelers: Sequence[tuple[Follower, FeedReport]],
        enumerators: Sequence[Enumerator],
        writers: Sequence[Writer],
        shared: SharedState,
        metrics: IngesterMetrics,
        bsync: Sequence[BsyncFollower] = (),
    ) -> None:
        self._bsync = bsync
        self._context = context
        self._writers = writers
        self._shared = shared
        self._relays = relays
        self._feeds = [*relays, *labelers]
        self._enumerators = enumerators
        self._metrics = metrics
        self._log = ThrottledLog(_log, 60.0)
        self._raw_letters: dict[str, int] = {}
        self._labelers = labelers
        self._connected_at = trio.current_time()  # when a relay was connected last
        self._stalled_since: dict[HostKey, float] = {}
        self._problems: dict[HostKey, str] = {}  # of relays
        self.verdicts: list[RuleVerdict] = []  # of the last report
        metrics.events_in_memory.set_function(lambda: self._held()[0])
        metrics.bytes_in_memory.set_function(lambda: self._held()[1])

    async def report_health(self) -> None:
        """Report until cancelled."""
        before, then = self._written(), trio.current_time()
        batches = [0] * len(self._writers)
        with self._context.activity("writing") as writing:
            while True:
                for follower, _ in self._feeds:
                    follower.report_counts()
                    self._note_connected(follower)
                self._report_states()
                batches = self._note_progress(writing, batches)
                written, now = self._written(), trio.current_time()
                rate = (written - before) / (now - then) if now > then else 0.0
                before, then = written, now
                self._metrics.complete.set(bool(self._enumerators) and self._all_listed())
                self._context.health(self._details(rate))
                self.verdicts = [
                    *self._judge_relays(), *self._judge_hosts(), *bsync_verdicts(self._bsync)
                ]  # fmt: skip
                await trio.sleep(_HEALTH_SECONDS)

    async def watch_streams(
        self, link: Link[Store], look: Callable[[Store], object], letters: Sequence[RawDeadLetters]
    ) -> None:
        """Keep the stream gauges true until cancelled, whether traffic flows or not."""

        def measure(store: Store) -> int:
            look(store)
            for kept in letters:
                kept.observe_length(inspect(store, kept.stream).length)
            self._raw_letters = {kept.stream.removesuffix("_dlq"): kept.length for kept in letters}
            return inspect(store, REPO_BACKFILL).length

        while True:
            queued = await link.attempt(measure)
            if queued is not None:
                self._shared.discovery.observe_length(queued)
            await trio.sleep(_WATCH_SECONDS)

    def _note_progress(self, writing: Activity, batches: list[int]) -> list[int]:
        """Report progress where every writer wrote, had nothing to write, or found no room or no
        store, which the findings and the log name."""
        counts = [writer.batches for writer in self._writers]
        stuck = [
            writer
            for writer, before, after in zip(self._writers, batches, counts, strict=True)
            if before == after and not (writer.idle or writer.is_full or writer.store_is_away)
        ]
        if not stuck:
            writing.progress()
        return counts

    def _note_connected(self, follower: Follower) -> None:
        """Count the seconds of a connection that stands, though its host may say nothing."""
        since = follower.connected_at if follower.connected else None
        if since is not None and trio.current_time() - since >= STANDS_AFTER_SECONDS:
            self._metrics.connected_seconds.labels(follower.feed.endpoint.key).inc()

    def _report_states(self) -> None:
        states = self._shared.states
        self._metrics.states_cached.set(len(states))
        self._metrics.state_lookups.inc(states.take_lookups())

    def _relay_problems(self) -> dict[HostKey, str]:
        """Return the problem of each relay that does not do its part, and count the others."""
        now, dedup = trio.current_time(), self._shared.dedup
        problems: dict[HostKey, str] = {}
        for follower, report in self._relays:
            behind = dedup.behind.get(report.host, 0.0)
            problem = relay_problem(follower, behind, now, self._ahead_of(follower, now))
            self._metrics.relay_connected.labels(report.host).set(follower.connected)
            self._metrics.relay_stalled.labels(report.host).set(problem is not None)
            self._metrics.relay_leads.labels(report.host).set(dedup.leader == report.host)
            self._metrics.relay_behind.labels(report.host).set(dedup.behind.get(report.host, 0.0))
            if problem is not None:
                problems[report.host] = problem
                self._log.warning(
                    "relay in trouble", key=report.host, host=report.host, problem=problem
                )
        return problems

    def _ahead_of(self, follower: Follower, now: float) -> Follower | None:
        """Return a relay that sends events, and kept pace with this one until we began."""
        for other, _ in self._relays:
            ours, theirs = follower.began_at, other.began_at
            if other is follower or not other.connected or ours is None or theirs is None:
                continue
            sends = now - other.arrivals.last < RELAY_STALLED.seconds
            if sends and abs(ours - theirs) < RELAY_STALLED.seconds:
                return other
        return None

    def _details(self, rate: float) -> RoleHealth:
        # The age of the newest event says nothing while nobody sends one.
        lags = [
            report.lag_seconds
            for follower, report in self._relays
            if follower.connected and report.lag_seconds is not None
        ]
        self._problems = self._relay_problems()
        return {
            "rate": round(rate, 1),
            "lag_seconds": round(max(lags), 3) if lags else None,
            "degraded": self._degraded(),
            "relays": len(self._relays),
            "connected_relays": sum(follower.connected for follower, _ in self._relays),
            "connected_sockets": sum(follower.connected for follower, _ in self._feeds),
            "events_in_memory": self._held()[0],
            "raw_dead_letters": self._raw_letters,
            "held_up": any(writer.is_full for writer in self._writers),
            "leading_relay": self._shared.dedup.leader,
            "problem": "; ".join(f"{host}: {text}" for host, text in self._problems.items())
            or None,
            "repos_listed": sum(enumerator.state.repos for enumerator in self._enumerators),
            "listing_done": self._all_listed(),
            "listing_holes": sum(enumerator.state.holes for enumerator in self._enumerators),
            "cursors": [
                CursorHealth(stream=report.stream, host=report.host, seq=follower.cursor.stored)
                for follower, report in self._feeds
            ]
            + [
                CursorHealth(stream=BSYNC_LIVE, host=HostKey(each.log), seq=each.cursor.stored)
                for each in self._bsync
            ],
            "listings": [each.health() for each in self._enumerators if each.active],
            "blocks": self._shared.selection.count,
        }

    def _degraded(self) -> str | None:
        """Return why no relay is followed, if that lasts; a connection may end at any time."""
        now, relays = trio.current_time(), [follower for follower, _ in self._relays]
        if degradation(relays) is None or any(_is_held_up(each) for each in relays):
            self._connected_at = now
        lasts = NO_RELAY.verdict(now - self._connected_at) == "fail"
        return NO_RELAY.title if lasts else None

    def _judge_relays(self) -> Iterator[RuleVerdict]:
        """Yield what is wrong with the relays; a single one that stalls is only a warning."""
        now = trio.current_time()
        if self._degraded() is not None:
            away = now - self._connected_at
            why = "; ".join(_why_away(follower) for follower, _ in self._relays)
            yield judged(NO_RELAY, "", away, f"for {away:.0f} s: {why}")
        stalled = [host for host in self._stalled_since if host in self._problems]
        self._stalled_since = {host: self._stalled_since.get(host, now) for host in self._problems}
        alone = len(stalled) == len(self._relays)
        for host, problem in self._problems.items():
            seconds = now - self._stalled_since[host] if alone else 0.0
            status: Status = "fail" if RELAY_STALLED.verdict(seconds) == "fail" else "warn"
            yield RuleVerdict(RELAY_STALLED, host, status, problem, seconds)

    def _judge_hosts(self) -> Iterator[RuleVerdict]:
        """Yield what is wrong with single relays and labelers, whatever others do."""
        now = trio.current_time()
        for follower, report in self._feeds:
            ended = None if follower.connected else follower.ended
            if follower.refused:
                yield RuleVerdict(
                    CURSOR_REFUSED, report.host, "fail", follower.refusal, remedy=follower.advice
                )
            elif ended is not None and ended.reason is DisconnectReason.CLOCK:
                yield RuleVerdict(CLOCK, report.host, "fail", ended.detail)
        for follower, report in self._labelers:
            if not follower.connected and not follower.refused and not _is_held_up(follower):
                away = now - follower.heard_at
                figure = f"not connected for {away:.0f} s{_reason(follower)}"
                yield judged(LABELER_STALLED, report.host, away, figure)

    def _all_listed(self) -> bool:
        """Tell whether every listing that is read now is at its end."""
        return all(each.state.done for each in self._enumerators if each.active)

    def _written(self) -> int:
        return sum(report.written for _, report in self._feeds)

    def _held(self) -> tuple[int, int]:
        writers = self._writers
        return sum(writer.events for writer in writers), sum(writer.bytes for writer in writers)


def relay_problem(
    follower: Follower, behind: float, now: float, other: Follower | None = None
) -> str | None:
    """Return the problem of a relay in words, None if it has none. Times are monotonic seconds.

    A relay that answers pings and says nothing has one only if it was busy before: by its own
    habits, or, as long as it has said nothing to us, by `other`, which it kept pace with.
    """
    arrivals, ended = follower.arrivals, follower.ended
    if follower.refused:
        return follower.refusal
    if _is_held_up(follower):
        return None  # by ourselves; what that is about has a finding of its own
    away = now - follower.heard_at
    if not follower.connected and _lasts(away):
        return f"not connected for {away:.0f} s{_reason(follower)}"
    futile = follower.futile_since
    if futile is not None and ended is not None and _lasts(now - futile):
        return f"its connections end before an event comes: {ended.detail}"
    silent = now - arrivals.last
    if not arrivals.known and other is not None and _lasts(silent):
        return f"silent for {silent:.0f} s, while {other.feed.endpoint.key} sends events"
    unusual = arrivals.surprise(now) >= RELAY_STALLED.least
    if unusual and _lasts(silent):
        return f"silent for {silent:.0f} s, though it is usually busy"
    if _lasts(behind):
        return f"{behind:.0f} s behind the leading relay"
    return None


def _lasts(seconds: float) -> bool:
    return RELAY_STALLED.verdict(seconds) != "pass"


def _is_held_up(follower: Follower) -> bool:
    """Return whether reading stands still because of us: a full stream, a store that is away."""
    ended = follower.ended
    return not follower.connected and ended is not None and ended.reason in _NOT_OF_HOST


def _reason(follower: Follower) -> str:
    return "" if follower.ended is None else f": {follower.ended.detail}"


def _why_away(follower: Follower) -> str:
    host = follower.feed.endpoint.key
    return f"{host}: {follower.refusal}" if follower.refused else f"{host}{_reason(follower)}"


def _labels(payload: bytes) -> int:
    """Return how many labels an entry holds; labelers are too slow for this to cost anything."""
    return len(orjson.loads(payload)["labels"])


async def report_ready(context: WorkerContext, relays: Sequence[Follower]) -> None:
    """Report ready once every relay was tried and one is connected, or when that takes too long.

    Without a connection the worker is ready and degraded: the followers go on trying to connect.
    """
    with trio.move_on_after(PATIENCE_SECONDS):
        for follower in relays:
            await follower.attempted.wait()
        if relays:
            await _first_connection(relays)
    if degradation(relays) is not None:
        _log.warning(
            "ready without a relay; still trying to connect",
            extra={"relays": ", ".join(follower.feed.endpoint.key for follower in relays)},
        )
    context.ready()


def degradation(relays: Sequence[Follower]) -> str | None:
    """Return why the worker cannot do all of its work, None if it can."""
    if relays and not any(each.connected and not each.refused for each in relays):
        return NO_RELAY.title
    return None


async def _first_connection(relays: Sequence[Follower]) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(follower: Follower) -> None:
            await follower.was_connected.wait()
            nursery.cancel_scope.cancel()

        for follower in relays:
            nursery.start_soon(wait, follower)
