"""The ingester: tasks for each relay's firehose and list of repos, each labeler, logs of bsync."""

import logging
import ssl
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

import trio

from rsky_pipeline.configuration.endpoints import Endpoint, parse_endpoint
from rsky_pipeline.configuration.expectations import high_water_marks
from rsky_pipeline.configuration.selection import Selection, path_prefixes
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseUnavailableError
from rsky_pipeline.health.pairing import MismatchError, open_paired
from rsky_pipeline.health.rules import RuleVerdict
from rsky_pipeline.health.self_check import SelfCheck, watch, watch_stores
from rsky_pipeline.ingester.bsync import SILENCE_SECONDS, BsyncClient, BsyncFollower
from rsky_pipeline.ingester.clock import (
    ClockWatch,
    time_of_database,
    time_of_host,
    time_of_redis,
)
from rsky_pipeline.ingester.commits.convert import SUBSCRIBE_REPOS, RepoConverter
from rsky_pipeline.ingester.commits.homes import AccountHomes, describer
from rsky_pipeline.ingester.commits.relays import RelayDedup
from rsky_pipeline.ingester.commits.resync import Discovery, Resyncs, release_resyncs
from rsky_pipeline.ingester.commits.signatures import MAX_KEYS, SignatureVerifier
from rsky_pipeline.ingester.commits.states import RepoStates, reader
from rsky_pipeline.ingester.follower import Backpressure, Feed, Follower
from rsky_pipeline.ingester.frames import FrameCounters, RawDeadLetters
from rsky_pipeline.ingester.labels import (
    SUBSCRIBE_LABELS,
    LabelConverter,
    LabelIntake,
    LabelSignatureCheck,
)
from rsky_pipeline.ingester.listing.enumeration import LIST_REPOS, Enumerator, ListingSource
from rsky_pipeline.ingester.listing.gap_repair import GapRepair, repair_marks
from rsky_pipeline.ingester.others import OtherIngesters
from rsky_pipeline.ingester.pipeline import Admission, FrameIntake, SharedState
from rsky_pipeline.ingester.read_again import read_again_when_asked, report_lost_cursors
from rsky_pipeline.ingester.report import FeedReport, Reporter, report_ready
from rsky_pipeline.ingester.sequence import GapWatch, SeqGate
from rsky_pipeline.ingester.writer import BatchRule, SourceCursor, Writer
from rsky_pipeline.network.directory import Directory
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.network.listing import Pace, list_repos, list_repos_by_collection
from rsky_pipeline.network.plc_export import PlcExport
from rsky_pipeline.network.subscription import DisconnectReason, Timeouts
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.errors import StoreError
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.streams.bsync import BSYNC_LOGS
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.errors import store_reason
from rsky_pipeline.streams.identities import SharedIdentities
from rsky_pipeline.streams.names import (
    BSYNC_LIVE,
    FIREHOSE_BACKFILL,
    FIREHOSE_LIVE,
    FIREHOSE_RAW_LETTERS,
    LABEL_LIVE,
    LABEL_RAW_LETTERS,
    REPO_BACKFILL_HIGH,
    REPO_STREAMS,
    RESYNC_LATER,
    STREAMS,
    cursor_key,
)
from rsky_pipeline.streams.repo_job import FIREHOSE_REASONS
from rsky_pipeline.streams.selection import read_selection

_log = logging.getLogger(__name__)
# Memory for frames that are read and not yet written, over all relays and over all labelers.
MAX_EVENTS = 40_000
MAX_BYTES = 48 * 1024 * 1024
MAX_LABEL_BYTES = 16 * 1024 * 1024
# Repos that may wait to be fetched again, as a multiple of those that may be queued. Each is about
# 250 bytes; beyond that, reading is held up.
MAX_WAITING = 5
# A document that was looked up just now is not asked for again; see `signatures.REFRESH_SECONDS`.
FORCED_PAUSE_SECONDS = 5.0
LATEST_REPO = "/xrpc/com.atproto.sync.listRepos?limit=1"  # an answer whose Date is of interest
_LABEL_QUEUE_BYTES = 512 * 1024
_TROUBLE_SECONDS = 60.0  # minimum interval of log lines about one trouble of bsync
SELECTION_SECONDS = 2.0  # between two looks at what operators have blocked


@dataclass(slots=True)
class _Parts:
    """Everything that one ingester runs."""

    metrics: IngesterMetrics
    verifier: SignatureVerifier
    tls: ssl.SSLContext | None
    shared: SharedState
    writers: list[Writer] = field(default_factory=list)
    relays: list[tuple[Follower, FeedReport]] = field(default_factory=list)
    labelers: list[tuple[Follower, FeedReport]] = field(default_factory=list)
    bsync: list[BsyncFollower] = field(default_factory=list)
    enumerators: list[Enumerator] = field(default_factory=list)
    converters: list[RepoConverter] = field(default_factory=list)

    def select(self, selection: Selection) -> None:
        """Leave out from now on what operators have blocked."""
        if selection != self.shared.selection:
            _log.info("blocks changed", extra={"version": selection.version})
        self.shared.selection = selection
        for converter in self.converters:
            converter.left_out = path_prefixes(selection.collections)


async def run(context: WorkerContext) -> None:
    """Run until `stopping`, then write the frames that were read; cursors cover exactly those."""
    settings = context.settings
    relays, labelers = settings.relays, settings.labelers
    metrics = IngesterMetrics(
        context.registry,
        disconnect_reasons=[reason.value for reason in DisconnectReason],
        relays=[endpoint.key for endpoint in relays],
        labelers=[endpoint.key for endpoint in labelers],
        bsync=BSYNC_LOGS if settings.bsync_url else (),
        resync_reasons=[reason.word for reason in FIREHOSE_REASONS],
    )
    groups = dict.fromkeys((FIREHOSE_LIVE, FIREHOSE_BACKFILL), (settings.indexer_group,))
    groups |= dict.fromkeys((LABEL_LIVE, BSYNC_LIVE), (settings.indexer_group,))
    groups |= dict.fromkeys(REPO_STREAMS, (settings.backfiller_group,))
    stream_metrics = StreamMetrics(context.registry, "ingester", groups)
    self_check = SelfCheck(context.registry, "ingester", settings, STREAMS)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            HttpClient(
                allow_private=settings.allow_private_hosts,
                boundary=_boundary(metrics),
                proxy=settings.proxy,
            )
        )
        shared = SharedIdentities(
            str(settings.redis_url), context.consumer, lambda it: metrics.error(store_reason(it))
        )
        stack.callback(shared.close)
        lookups = await stack.enter_async_context(trio.open_nursery())
        stack.callback(lookups.cancel_scope.cancel)
        lookups.start_soon(shared.run)
        builder = _Builder(context, stack, http, metrics, [*relays, *labelers], lookups, shared)
        parts = builder.build(relays, labelers)
        if settings.bsync_url:
            bsync = HttpClient(
                allow_private=True, silence_seconds=SILENCE_SECONDS, boundary=_boundary(metrics),
                proxy=settings.proxy,
            )  # fmt: skip
            await stack.enter_async_context(bsync)
            builder.add_bsync(parts, bsync, parse_endpoint(settings.bsync_url))
        watching = builder.link("watch", lambda _: stream_metrics.errors.inc())
        letters = [builder.letters, builder.label_letters]
        reporter = Reporter(
            context, parts.relays, parts.labelers, parts.enumerators, parts.writers, parts.shared,
            metrics, parts.bsync,
        )  # fmt: skip
        others = OtherIngesters(context)
        repair = builder.gap_repair() if parts.relays and settings.database_url else None

        def verdicts() -> list[RuleVerdict]:
            failed = repair.verdicts if repair is not None else ()
            return [*reporter.verdicts, *others.verdicts, *failed, *builder.directory.verdicts]

        async with trio.open_nursery() as services:
            services.start_soon(watch_stores, self_check, context, verdicts)
            await watching.retry(Store.ping, until=context.stopping)
            selecting = builder.link("selection")
            look_again = partial(_read_selection, parts, settings.indexer_group)
            await selecting.retry(look_again, until=context.stopping)
            services.start_soon(_follow_selection, selecting, look_again)
            services.start_soon(reporter.report_health)
            look = partial(watch, metrics=stream_metrics, self_check=self_check)
            services.start_soon(reporter.watch_streams, watching, look, letters)
            if parts.relays:
                mark = settings.repo_high_water_mark
                pause = settings.resync_pause_seconds
                services.start_soon(release_resyncs, builder.link("release"), mark, pause)
            if repair is not None:
                services.start_soon(partial(repair.watch, relays, repair=settings.repair_gaps))
            if settings.follow_plc_export:
                export = PlcExport(http, settings.plc_url, parts.verifier.forget)
                services.start_soon(export.run)
            cursors = [cursor for writer in parts.writers for cursor in writer.cursors]
            services.start_soon(others.watch, builder.link("others"))
            again = builder.link("again")
            hosts, keys = [endpoint.key for endpoint in relays], [each.key for each in cursors]
            report = partial(report_lost_cursors, keys=keys, hosts=hosts)
            await again.retry(report, until=context.stopping)
            services.start_soon(read_again_when_asked, again, cursors)
            services.start_soon(report_ready, context, [follower for follower, _ in parts.relays])
            await _run_all(context, parts)
            services.cancel_scope.cancel()


def _read_selection(parts: _Parts, group: str, store: Store) -> None:
    parts.select(read_selection(store, group, parts.shared.selection))


async def _follow_selection(link: Link[Store], look_again: Callable[[Store], None]) -> None:
    """Take changes of the blocks up until cancelled; while Redis is away they stay as they are."""
    while True:
        await trio.sleep(SELECTION_SECONDS)
        await link.attempt(look_again)


def _boundary(metrics: IngesterMetrics) -> Boundary:
    return Boundary(lambda: metrics.error("internal_error"))


async def _run_all(context: WorkerContext, parts: _Parts) -> None:
    """Run all tasks; they end after `stopping`, when all frames that were read are written."""
    async with trio.open_nursery() as nursery:
        for writer in parts.writers:
            nursery.start_soon(writer.run, context.escalated)
        for follower, _ in (*parts.relays, *parts.labelers):
            nursery.start_soon(follower.run, context.stopping)
        for each in parts.bsync:
            nursery.start_soon(each.run, context.stopping)
        for enumerator in parts.enumerators:
            nursery.start_soon(enumerator.run, context.stopping)
        await context.stopping.wait()
        for writer in parts.writers:
            writer.close()


class _Builder:
    """Puts the parts of an ingester together."""

    def __init__(
        self,
        context: WorkerContext,
        stack: AsyncExitStack,
        http: HttpClient,
        metrics: IngesterMetrics,
        endpoints: Sequence[Endpoint],
        lookups: trio.Nursery,
        shared: SharedIdentities,
    ) -> None:
        """Look-ups of accounts run in the nursery, whatever becomes of connections."""
        self._context = context
        self._lookups = lookups
        self._settings = context.settings
        self._stack = stack
        self._http = http
        self._metrics = metrics
        self._tls = None
        if any(endpoint.secure for endpoint in endpoints):
            self._tls = ssl.create_default_context()
        # One for repos and labelers: an answer for one account shows that it answers at all.
        self.directory = Directory(
            http, self._settings.plc_url, allow_private=self._settings.allow_private_hosts,
            max_cached=MAX_KEYS, forced_pause=FORCED_PAUSE_SECONDS,
            fresh_seconds=self._settings.identity_cache_seconds, shared=shared,
        )  # fmt: skip
        self._rule = BatchRule(
            max_events=self._settings.ingester_batch_size,
            max_age=self._settings.ingester_batch_timeout_ms / 1000,
        )
        self.letters = RawDeadLetters(FIREHOSE_RAW_LETTERS)
        self.label_letters = RawDeadLetters(LABEL_RAW_LETTERS)

    def build(self, relays: Sequence[Endpoint], labelers: Sequence[Endpoint]) -> _Parts:
        """Return the parts for these hosts."""
        rate = self._settings.discover_repos_per_minute if self._settings.enumerate_repos else 0
        shared = SharedState(
            RepoStates(reader(self.link("states"))),
            RelayDedup(endpoint.key for endpoint in relays),
            Resyncs(self._settings.resync_pause_seconds),
            Discovery(rate, self._settings.repo_high_water_mark),
        )
        parts = _Parts(self._metrics, self._verifier(), self._tls, shared)
        shared.known_host = parts.verifier.known_host
        if relays:
            self._add_relays(parts, relays)
        for endpoint in labelers:
            self._add_labeler(parts, endpoint, len(labelers))
        return parts

    def _add_relays(self, parts: _Parts, relays: Sequence[Endpoint]) -> None:
        """Add the followers of all relays, which share a writer."""
        settings = self._settings
        marks = {
            FIREHOSE_LIVE: settings.live_high_water_mark,
            REPO_BACKFILL_HIGH: settings.repo_high_water_mark,
            RESYNC_LATER: settings.repo_high_water_mark * MAX_WAITING,
        }
        # Repos that cannot be fetched yet must not stop live events.
        overflow = {REPO_BACKFILL_HIGH: RESYNC_LATER}
        writer = Writer(
            self.link(FIREHOSE_LIVE, self._count_retry), marks, self._rule, self._metrics,
            overflow, parts.shared.states.written, parts.shared.dropped,
        )  # fmt: skip
        parts.writers.append(writer)
        for endpoint in relays:
            converter = RepoConverter(
                endpoint.key, endpoint.http_url(), settings.collections, FrameCounters(),
                self.letters, verify=settings.verify,
            )  # fmt: skip
            timeouts = Timeouts(idle=float(settings.ingester_idle_timeout_seconds))
            feed = Feed(
                endpoint,
                SUBSCRIBE_REPOS,
                settings.initial_cursor,
                timeouts,
                self._tls,
                settings.proxy,
            )
            report = FeedReport(FIREHOSE_LIVE, endpoint.key, self._metrics, self.letters)
            cursor = writer.cursor(cursor_key(FIREHOSE_LIVE, endpoint.key), report.observe)
            admission = Admission(endpoint.key, converter, parts.shared)
            homes = AccountHomes(endpoint, self.directory, describer(self._http, endpoint))
            clock = self._clock(endpoint)

            def open_intake(
                gate: SeqGate, nursery: trio.Nursery, converter: RepoConverter = converter,
                cursor: SourceCursor = cursor, admission: Admission = admission,
                homes: AccountHomes = homes, clock: ClockWatch = clock,
            ) -> FrameIntake:  # fmt: skip
                gaps = GapWatch(converter.host, cursor.stored, cursor.position, cursor.refused)
                converter.numbering = cursor.numbering
                return FrameIntake(
                    converter, cursor, gate, nursery, parts.verifier, admission, gaps, homes,
                    cursor.again_until, clock,
                )  # fmt: skip

            follower = Follower(
                feed, converter, cursor, self._pressure(MAX_EVENTS, MAX_BYTES), self._metrics,
                open_intake,
            )  # fmt: skip
            parts.relays.append((follower, report))
            parts.converters.append(converter)
            if settings.enumerate_repos:
                parts.enumerators += self._enumerators(endpoint, parts.shared)

    def _clock(self, endpoint: Endpoint) -> ClockWatch:
        """Return the watch that asks others for the time when a relay seems to be ahead."""
        plc = str(self._settings.plc_url).rstrip("/")
        hosts = [
            time_of_host(self._http, endpoint.http_url(LATEST_REPO)),
            time_of_host(self._http, f"{plc}/_health"),
        ]
        stores = [time_of_redis(self.link("clock"))]
        if self._settings.database_url is not None:
            stores.append(time_of_database(self._database_link("clock")))
        return ClockWatch(hosts, stores)

    def _connect_database(self, purpose: str) -> Callable[[], Database]:
        settings, name = self._settings, f"{self._context.consumer}-{purpose}"
        open_store = partial(connect, settings.redis_url or "", name=name)
        open_any = partial(
            Database.connect, str(settings.database_url), schema=settings.database_schema, name=name
        )

        def connect_database() -> Database:
            try:
                return open_paired(open_store, open_any, settings.indexer_group)
            except MismatchError as error:  # reading the relays goes on, whatever the database is
                raise DatabaseUnavailableError(str(error)) from error

        return connect_database

    def _database_link(self, purpose: str) -> Link[Database]:
        link = Link(
            self._connect_database(purpose), purpose=purpose, failed=self._count,
            boundary=_boundary(self._metrics),
        )  # fmt: skip
        self._stack.callback(link.close)
        return link

    def _add_labeler(self, parts: _Parts, endpoint: Endpoint, count: int) -> None:
        """Add the follower of a labeler, with a writer of its own."""
        host = endpoint.key
        marks = {LABEL_LIVE: self._settings.live_high_water_mark}
        link = self.link(f"{LABEL_LIVE}-{host}", self._count_retry)
        writer = Writer(link, marks, self._rule, self._metrics)
        parts.writers.append(writer)
        # A labeler may be silent for days; its answers to pings show that it lives.
        timeouts = Timeouts(idle=None, max_queued_bytes=_LABEL_QUEUE_BYTES)
        feed = Feed(endpoint, SUBSCRIBE_LABELS, "oldest", timeouts, self._tls, self._settings.proxy)
        report = FeedReport(LABEL_LIVE, host, self._metrics, self.label_letters)
        cursor = writer.cursor(cursor_key(LABEL_LIVE, host), report.observe)
        converter = LabelConverter(host, FrameCounters(of_labeler=True), self.label_letters)
        mode = self._settings.label_signatures
        check = None
        if mode != "none":
            check = LabelSignatureCheck(self.directory, mode, converter, self._lookups)
        follower = Follower(
            feed, converter, cursor,
            self._pressure(MAX_EVENTS // count, MAX_LABEL_BYTES // count), self._metrics,
            lambda gate, _: LabelIntake(converter, cursor, gate, check),
        )  # fmt: skip
        parts.labelers.append((follower, report))

    def add_bsync(self, parts: _Parts, http: HttpClient, endpoint: Endpoint) -> None:
        """Add the followers of bsync's logs, which share a writer."""
        link, marks = self.link(BSYNC_LIVE, self._count_retry), high_water_marks(self._settings)
        writer = Writer(link, marks, self._rule, self._metrics)
        parts.writers.append(writer)
        client = BsyncClient(http, endpoint, self._settings.bsync_key)
        known = self.link("bsync")
        database = self._database_link("bsync") if self._settings.database_url else None
        troubles = ThrottledLog(_log, _TROUBLE_SECONDS)
        parts.bsync += [
            BsyncFollower(
                log, client, writer, known, database, self._metrics, _boundary(self._metrics),
                troubles,
            )
            for log in BSYNC_LOGS
        ]  # fmt: skip

    def gap_repair(self) -> GapRepair:
        """Return the repair of gaps; it connects to PostgreSQL only when there is one."""
        settings, connect_database = self._settings, self._connect_database("gaps")
        return GapRepair(
            self.link("gaps"), self._database_link("gaps"), connect_database,
            partial(list_repos, self._http), repair_marks(settings), patient=True,
            boundary=_boundary(self._metrics), enumerates=settings.enumerate_repos,
        )  # fmt: skip

    def _pressure(self, max_events: int, max_bytes: int) -> Backpressure:
        return Backpressure(max(2 * self._settings.ingester_batch_size, max_events), max_bytes)

    def link(
        self, purpose: str, failed: Callable[[StoreError], object] | None = None
    ) -> Link[Store]:
        """Return a connection of its own to Redis, which is closed at the end."""
        made = Link(
            partial(self.connect, purpose), purpose=purpose, failed=failed or self._count,
            boundary=_boundary(self._metrics),
        )  # fmt: skip
        self._stack.callback(made.close)
        return made

    def connect(self, purpose: str) -> Store:
        """Return a new connection to Redis."""
        return connect(str(self._settings.redis_url), name=f"{self._context.consumer}-{purpose}")

    def _count(self, error: StoreError) -> None:
        self._metrics.error(store_reason(error))

    def _count_retry(self, error: StoreError) -> None:
        self._count(error)
        self._metrics.store_retries.labels(store_reason(error).removeprefix("store_")).inc()

    def _verifier(self) -> SignatureVerifier:
        changes = self._metrics.key_changes
        return SignatureVerifier(
            self.directory, lambda how: changes.labels(how).inc(),
            _boundary(self._metrics), self._lookups, self._settings.identity_cache_seconds,
        )  # fmt: skip

    def _enumerators(self, endpoint: Endpoint, shared: SharedState) -> list[Enumerator]:
        """Return the readers of a host's lists; listings by collection may only stand by."""
        settings, again = self._settings, self._settings.enumeration_interval_hours * 3_600.0
        pace, found = Pace(settings.enumeration_requests_per_minute), list[Enumerator]()
        main = settings.enumeration_source != "by_collection"
        if main:
            fetch = partial(list_repos, self._http)
            source = ListingSource(endpoint, LIST_REPOS, fetch, again)
            found.append(self._enumerator(source, pace, shared))
        stands_by = settings.enumeration_source == "list_repos"

        def wanted() -> bool:
            return not stands_by or found[0].state.stuck

        for name in settings.enumeration_collections:
            by_collection = partial(list_repos_by_collection, self._http, name)
            source = ListingSource(endpoint, name, by_collection, again, wanted)
            found.append(self._enumerator(source, pace, shared))
        return found

    def _enumerator(self, source: ListingSource, pace: Pace, shared: SharedState) -> Enumerator:
        return Enumerator(
            source,
            partial(self.connect, f"list-{source.name}-{source.endpoint.key}"),
            self._settings.repo_high_water_mark,
            self._metrics,
            pace,
            lambda: shared.selection,
        )
