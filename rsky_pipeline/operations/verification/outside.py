"""Checks of systems outside of the pipeline: PostgreSQL (schema, stale writes), relays, clock."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import trio

from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.database.schema import check
from rsky_pipeline.embedded.locations import embedded_stores
from rsky_pipeline.health import rules
from rsky_pipeline.health.pairing import look
from rsky_pipeline.health.rules import RuleVerdict, Status, judged
from rsky_pipeline.network.http import HttpClient, HttpError, read_date
from rsky_pipeline.operations.verification.probe import probe_rev_guard
from rsky_pipeline.streams import server as streams_server
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.errors import StoreRejectedError, StoreUnavailableError

TIMEOUT_SECONDS = 10.0
REDIS_SECONDS = 5.0
_STATEMENT_MS = 20_000
_PATH = "/xrpc/com.atproto.sync.listRepos?limit=1"
_MAX_BYTES = 1_000_000
_PAGE_TOMBSTONES = 10_000  # that are looked at for records that came back
_RESURRECTED = f"""
    SELECT count(*) FROM (SELECT uri, rev FROM rsky_pipeline.tombstone LIMIT {_PAGE_TOMBSTONES}) t
    JOIN record r ON r.uri = t.uri WHERE r.rev <= t.rev"""
# Who reads the log: name, seconds that its rows are late (NULL: not at the moment), bytes of the
# log that it has not confirmed (NULL: not for this role to see). One that is away has a slot.
_REPLICAS = """
    SELECT application_name || coalesce(' at ' || host(client_addr), ''),
      extract(epoch FROM replay_lag)::float8,
      pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(replay_lsn, flush_lsn))::float8
    FROM pg_stat_replication
    WHERE NOT pg_is_in_recovery() AND (state IS NULL OR state IN ('streaming', 'catchup'))
    UNION ALL SELECT 'slot ' || slot_name, NULL,
      pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::float8
    FROM pg_replication_slots
    WHERE NOT pg_is_in_recovery() AND NOT active AND restart_lsn IS NOT NULL
    ORDER BY 1"""


@dataclass(frozen=True, slots=True)
class RelayAnswer:
    """The answer of a relay: an error, or how far its clock is ahead, if it sent a time."""

    relay: str
    seconds: float = 0.0
    ahead: float | None = None
    error: str | None = None


def ask_relays(settings: Settings) -> list[RelayAnswer]:
    """Ask all relays at once. Not for use within a trio loop."""
    endpoints = settings.relays
    found: dict[str, RelayAnswer] = {}

    async def ask(http: HttpClient, endpoint: Endpoint) -> None:
        found[endpoint.key] = await _ask(http, endpoint)

    async def ask_all() -> None:
        async with (
            HttpClient(allow_private=settings.allow_private_hosts, proxy=settings.proxy) as http,
            trio.open_nursery() as nursery,
        ):
            for endpoint in endpoints:
                nursery.start_soon(ask, http, endpoint)

    trio.run(ask_all)
    return [found[endpoint.key] for endpoint in endpoints]


async def _ask(
    http: HttpClient, endpoint: Endpoint, clock: Callable[[], float] = time.time
) -> RelayAnswer:
    url, began = endpoint.http_url(_PATH), clock()
    try:
        async with http.get(
            url, max_bytes=_MAX_BYTES, total_seconds=TIMEOUT_SECONDS, trusted=True
        ) as answer:
            ended, date = clock(), answer.headers.get("date", "")
    except HttpError as error:
        return RelayAnswer(endpoint.key, error=str(error))
    return RelayAnswer(endpoint.key, ended - began, _ahead(date, (began + ended) / 2))


def _ahead(date: str, now: float) -> float | None:
    """Return how far a Date header, which has whole seconds, is ahead of a moment."""
    moment = read_date(date)
    return None if moment is None else moment + 0.5 - now


def check_redis_settings(settings: Settings) -> Iterator[RuleVerdict]:
    """Check the settings of Redis; one that cannot be reached is another check's failure."""
    try:
        found = streams_server.check(settings.redis_url or "")
    except (StoreUnavailableError, StoreRejectedError) as error:
        yield RuleVerdict(rules.STORE_SETTINGS, "", "skip", f"not checked: {error}")
        return
    # The policy of eviction is a check of its own.
    bad = [item for item in found if item.severity != "advice" and item.name != "maxmemory-policy"]
    figure = "; ".join(map(str, bad)) or "entries and cursors outlive a restart of the server"
    yield judged(rules.STORE_SETTINGS, "", len(bad), figure)


def open_store(settings: Settings) -> Store:
    """Return a connection to Redis on which nobody waits for long."""
    return connect(settings.redis_url or "", name="verify", timeout_seconds=REDIS_SECONDS)


def check_database(settings: Settings, *, redis: bool = True) -> Iterator[RuleVerdict]:
    """Check the database; one that cannot be reached is one failed check.

    Whether it belongs to Redis is checked where `redis` is known to answer.
    """
    url, schema = settings.database_url or "", settings.database_schema
    try:
        yield _schema(url, schema, bsync=settings.bsync_url is not None)
        with Database.connect(
            url,
            schema=schema,
            name="verify",
            statement_timeout_ms=_STATEMENT_MS,
            lock_timeout_ms=5_000,
        ) as database:
            if redis:
                yield _pairing(settings, database)
            yield _guard(database)
            yield _resurrected(database)
            yield from check_replicas(database)
    except DatabaseError as error:
        text = " ".join(str(error).split())
        remedy = rules.START_PIPELINE if embedded_stores(settings)[1] else ""
        yield RuleVerdict(rules.DATABASE, "", "fail", text, remedy=remedy)


def _schema(url: str, schema: str, *, bsync: bool) -> RuleVerdict:
    found = check(url, schema, bsync=bsync, statement_timeout_ms=_STATEMENT_MS)
    errors = [item for item in found if item.severity == "error"]
    warnings = sum(item.severity == "warning" for item in found)
    figure = f"as expected, {warnings} warnings"
    if errors:
        figure = f"{len(errors)} differences, the first: {errors[0].subject}"
    return judged(rules.SCHEMA, "", len(errors), figure)


def _pairing(settings: Settings, database: Database) -> RuleVerdict:
    try:
        with closing(open_store(settings)) as store:
            found = look(store, database, settings.indexer_group)
    except (StoreUnavailableError, StoreRejectedError) as error:
        return RuleVerdict(rules.PAIRING, "", "skip", f"not checked: {error}")
    return judged(rules.PAIRING, "", int(found.mismatch), found.describe())


def _guard(database: Database) -> RuleVerdict:
    failed = probe_rev_guard(database)
    figure = "; ".join(failed) or "stale writes were refused, in a transaction rolled back"
    return judged(rules.REV_GUARD, "", len(failed), figure)


def _resurrected(database: Database) -> RuleVerdict:
    count = int(database.query(_RESURRECTED)[0][0])
    figure = f"{count:,} of up to {_PAGE_TOMBSTONES:,} deleted records are there in an older state"
    return judged(rules.RESURRECTED, "", count, figure)


def check_replicas(database: Database) -> Iterator[RuleVerdict]:
    """Check how far the replicas are behind, which serve an AppView's reads."""
    for name, late, behind in database.query(_REPLICAS):
        if behind is None:
            text = "not shown to this role: GRANT pg_monitor TO it"
            yield RuleVerdict(rules.REPLICA, name, "skip", text)
            continue
        if not name.startswith("slot "):
            yield judged(rules.REPLICA, name, late or 0.0, f"{late or 0.0:,.1f} s late")
        yield judged(rules.RETAINED_WAL, name, behind, f"{behind / 1e6:,.1f} MB not confirmed")


def check_relays(answers: list[RelayAnswer]) -> Iterator[RuleVerdict]:
    """Check that relays answer, and our clock against theirs; one of several may be away. Pure."""
    others = any(answer.error is None for answer in answers)
    for answer in answers:
        if answer.error is not None:
            status: Status = "warn" if others else "fail"
            yield RuleVerdict(rules.RELAY, answer.relay, status, answer.error)
            continue
        figure = f"answered in {answer.seconds * 1000:,.0f} ms"
        yield RuleVerdict(rules.RELAY, answer.relay, "pass", figure, answer.seconds)
        if answer.ahead is None:
            yield RuleVerdict(rules.CLOCK, answer.relay, "skip", "the relay sends no time")
            continue
        off = abs(answer.ahead)
        figure = f"our clock and the relay's differ by {off:,.1f} s"
        yield RuleVerdict(
            rules.CLOCK, answer.relay, rules.CLOCK.verdict(off), figure, answer.ahead
        )  # fmt: skip
