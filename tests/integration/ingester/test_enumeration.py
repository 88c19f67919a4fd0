"""Listing repos into a real store, from relays that list badly."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.endpoints import Endpoint, parse_endpoint
from rsky_pipeline.ingester.listing import enumeration
from rsky_pipeline.ingester.listing.enumeration import (
    DONE,
    FIRST_RETRY_SECONDS,
    LIST_REPOS,
    Enumerator,
    ListingSource,
    StoredRange,
    add_range,
    load_ranges,
    progress_key,
    ranges_key,
)
from rsky_pipeline.network import listing as network_listing
from rsky_pipeline.network.http import HttpError
from rsky_pipeline.network.listing import ListedRepo, Pace, Page
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.streams.connection import connect
from tests.integration.ingester.worker import entries, eventually, value
from tests.stores import redis_client

RELAY = parse_endpoint("https://Relay.Test/")
KEY = "repo_backfill:cursor:relay.test"
AGAIN_SECONDS = 604_800


class Listing:
    """A relay's listRepos: repos numbered from 1, the cursor is the last number seen."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.broken: set[int] = set()
        self.inactive: dict[int, str] = {}
        self.down = False
        self.cursor_of: Callable[[int], str | None] = str
        self.requests: list[tuple[str | None, int]] = []

    async def fetch(self, endpoint: Endpoint, cursor: str | None, limit: int) -> Page:
        self.requests.append((cursor, limit))
        await trio.lowlevel.checkpoint()
        first = int(cursor or 0) + 1
        numbers = range(first, min(first + limit, self.size + 1))
        if self.down or not self.broken.isdisjoint(numbers):
            raise HttpError("status", "500 from listRepos", status=500)
        repos = tuple(
            ListedRepo(f"did:plc:{n}", f"rev{n}", n not in self.inactive, self.inactive.get(n))
            for n in numbers
        )
        more = bool(numbers) and numbers[-1] < self.size
        return Page(repos, self.cursor_of(numbers[-1]) if more else None)


class Run:
    """A running enumeration."""

    def __init__(self, enumerator: Enumerator, metrics: CollectorRegistry) -> None:
        self.enumerator = enumerator
        self._registry = metrics

    def metric(self, name: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(f"ingester_{name}", labels)


@asynccontextmanager
async def listing(
    url: str,
    source: Listing,
    mark: int = 1_000_000,
    now: float = 1_000_000.0,
    name: str = LIST_REPOS,
) -> AsyncIterator[Run]:
    registry, stopping = CollectorRegistry(), trio.Event()
    chosen = ListingSource(RELAY, name, source.fetch, AGAIN_SECONDS)
    metrics = IngesterMetrics(registry)
    enumerator = Enumerator(
        chosen, lambda: connect(url, name="test"), mark, metrics, Pace(60_000), clock=lambda: now
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enumerator.run, stopping)
        try:
            yield Run(enumerator, registry)
        finally:
            stopping.set()


def jobs(url: str) -> list[str]:
    return [json.loads(entry[b"repo"])["did"] for entry in entries(url, "repo_backfill")]


def known_ranges(url: str) -> list[StoredRange]:
    store = connect(url, name="test")
    found = load_ranges(store, "relay.test")
    store.close()
    return sorted(found.values(), key=lambda hole: hole.start)


def dids(*numbers: int) -> list[str]:
    return [f"did:plc:{number}" for number in numbers]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_listing, "SEARCH_SECONDS", 0.01)
    monkeypatch.setattr(network_listing, "STUCK_SECONDS", (0.02, 0.02))
    monkeypatch.setattr(network_listing, "Backoff", lambda: Backoff(base=0.01, cap=0.02))
    monkeypatch.setattr(enumeration, "PAGE_REPOS", 100)
    monkeypatch.setattr(enumeration, "_throttled", ThrottledLog(logging.getLogger("test")))
    monkeypatch.setattr(enumeration, "_FULL_POLL_SECONDS", 0.02)
    monkeypatch.setattr(enumeration, "_CHECK_SECONDS", 0.02)
    monkeypatch.setattr(enumeration, "Backoff", lambda: Backoff(base=0.01, cap=0.02))


async def test_all_repos_are_queued_with_what_the_relay_says_of_them(clean_redis: str) -> None:
    async with listing(clean_redis, Listing(250)) as run:
        await eventually(lambda: run.enumerator.state.done)
        assert run.metric("backfill_repos_fetched_total") == 250
        assert run.metric("backfill_repos_written_total") == 250
        assert run.enumerator.state.repos == 250
        where = {"host": "relay.test", "source": "listRepos"}
        await eventually(lambda: run.metric("listing_done", **where) == 1)
        assert run.metric("listing_pages_total", **where) == 3
        assert run.metric("listing_repos", **where) == 250
    assert jobs(clean_redis) == dids(*range(1, 251))
    assert value(clean_redis, KEY) == DONE
    assert [json.loads(entry[b"repo"]) for entry in entries(clean_redis, "repo_backfill")][:2] == [
        {"did": "did:plc:1", "host": "https://relay.test", "rev": "rev1", "status": None,
         "active": True},
        {"did": "did:plc:2", "host": "https://relay.test", "rev": "rev2", "status": None,
         "active": True},
    ]  # fmt: skip


async def test_it_goes_on_at_the_stored_cursor(clean_redis: str) -> None:
    with redis_client(clean_redis) as client:
        client.set(KEY, "120")
    source = Listing(250)
    async with listing(clean_redis, source) as run:
        await eventually(lambda: run.enumerator.state.done)
    assert source.requests[0][0] == "120"
    assert jobs(clean_redis) == dids(*range(121, 251))


async def test_it_pauses_at_the_high_water_mark_and_the_cursor_with_it(clean_redis: str) -> None:
    async with listing(clean_redis, Listing(450), mark=150) as run:
        await eventually(lambda: run.enumerator.state.problem)
        await trio.sleep(0.1)
        assert len(jobs(clean_redis)) == 200
        assert value(clean_redis, KEY) == "200"
        for _ in range(2):
            with redis_client(clean_redis) as client:
                client.xtrim("repo_backfill", 0)
            await eventually(lambda: value(clean_redis, KEY) in {"400", DONE})
        await eventually(lambda: run.enumerator.state.done)
    assert run.metric("backfill_repos_written_total") == 450


async def test_a_finished_listing_is_repeated_after_a_day(clean_redis: str) -> None:
    source = Listing(3)
    async with listing(clean_redis, source, now=1_000.0) as run:
        await eventually(lambda: run.enumerator.state.done)
    async with listing(clean_redis, source, now=1_000.0 + AGAIN_SECONDS - 1) as run:
        await eventually(lambda: run.enumerator.state.done)
        await trio.sleep(0.1)
    assert len(source.requests) == 1
    async with listing(clean_redis, source, now=1_000.0 + AGAIN_SECONDS) as run:
        await eventually(lambda: len(source.requests) == 2)
        await eventually(lambda: value(clean_redis, KEY) == DONE)
        await trio.sleep(0.1)
    assert len(source.requests) == 2
    assert jobs(clean_redis) == dids(1, 2, 3, 1, 2, 3)


async def test_a_listing_that_the_original_service_finished_is_respected(
    clean_redis: str,
) -> None:
    with redis_client(clean_redis) as client:
        client.set(KEY, DONE)
    source = Listing(3)
    async with listing(clean_redis, source, now=5_000.0) as run:
        await eventually(lambda: run.enumerator.state.done)
        await trio.sleep(0.1)
    assert source.requests == []
    async with listing(clean_redis, source, now=5_000.0 + AGAIN_SECONDS):
        await eventually(lambda: len(source.requests) == 1)


async def test_an_empty_page_with_a_cursor_is_not_the_end(clean_redis: str) -> None:
    source = Listing(150)
    whole = source.fetch
    empty = iter([True, False, True])

    async def fetch(endpoint: Endpoint, cursor: str | None, limit: int) -> Page:
        if next(empty, False):
            return Page((), f"{int(cursor or 0) + 1}")
        return await whole(endpoint, cursor, limit)

    source.fetch = fetch  # type: ignore[method-assign]
    async with listing(clean_redis, source) as run:
        await eventually(lambda: run.enumerator.state.done)
    assert jobs(clean_redis) == dids(*range(2, 102), *range(103, 151))


async def test_a_cursor_that_repeats_is_the_end(clean_redis: str) -> None:
    source = Listing(250)
    source.cursor_of = lambda _: "100"
    async with listing(clean_redis, source) as run:
        await eventually(lambda: run.enumerator.state.done)
    assert len(source.requests) == 2


async def test_a_relay_that_fails_for_a_while_is_asked_again(clean_redis: str) -> None:
    source = Listing(150)
    source.down = True
    async with listing(clean_redis, source) as run:
        await eventually(lambda: (run.metric("backfill_fetch_errors_total") or 0) > 15)
        assert "listRepos failed" in str(run.enumerator.state.problem)
        assert run.metric("backfill_cursor_skips_total") == 0
        source.down = False
        await eventually(lambda: run.enumerator.state.done)
        assert run.enumerator.state.problem is None
    assert jobs(clean_redis) == dids(*range(1, 151))


async def test_repos_that_cannot_be_listed_are_all_that_is_left_out(clean_redis: str) -> None:
    source = Listing(250)
    source.broken = {137, 138, 240}
    async with listing(clean_redis, source) as run:
        await eventually(lambda: run.enumerator.state.done, 60)
        assert run.metric("backfill_cursor_skips_total") == 2
        await eventually(lambda: run.metric("listing_holes", host="relay.test") == 2)
    expected = [number for number in range(1, 251) if number not in source.broken]
    assert jobs(clean_redis) == dids(*expected)
    found = known_ranges(clean_redis)
    assert [(each.start, each.end) for each in found] == [(136, 138), (239, 240)]
    assert "500 from listRepos" in known_ranges(clean_redis)[0].problem


@pytest.mark.parametrize("failure", [
    HttpError("status", "503 from listRepos", status=503), HttpError("unreachable", "broke off"),
    RuntimeError("a defect"),
])  # fmt: skip
async def test_a_range_that_fails_in_another_way_does_not_hold_up_the_listing(
    clean_redis: str, failure: Exception
) -> None:
    stored = StoredRange(60, 61, "500", 1, 2, 1)
    store = connect(clean_redis, name="test")
    add_range(store, "relay.test", stored)
    store.close()
    source = Listing(150)
    whole = source.fetch

    async def fetch(endpoint: Endpoint, cursor: str | None, limit: int) -> Page:
        if cursor == "60":
            raise failure
        return await whole(endpoint, cursor, limit)

    source.fetch = fetch  # type: ignore[method-assign]
    async with listing(clean_redis, source, now=1_000.0) as run:
        await eventually(lambda: run.enumerator.state.done)
    assert jobs(clean_redis) == dids(*range(1, 151))
    assert known_ranges(clean_redis) == [replace(stored, retry_at=1_000 + FIRST_RETRY_SECONDS)]


@pytest.mark.parametrize("stored", [
    b"no JSON", b"[1]", b"7", b'{"began": "long ago"}', b'{"began": 1, "ended": null}',
    b'{"began": 1.5}', b'{"began": true}', b'{"began": 1, "cursor": 100}', b'{"pages": "3"}',
    b'{"cursor": "\xff"}',
])  # fmt: skip
@pytest.mark.parametrize("cursor", [None, "100", DONE])
async def test_a_listing_begins_anew_where_its_stored_progress_is_unreadable(
    clean_redis: str, stored: bytes, cursor: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = connect(clean_redis, name="test")
    store.call("SET", progress_key(LIST_REPOS, "relay.test"), stored)
    if cursor is not None:
        store.call("SET", KEY, cursor)
    async with listing(clean_redis, Listing(150)) as run:
        await eventually(lambda: run.enumerator.state.done)
        await eventually(lambda: run.enumerator.state.progress.began == 1_000_000)
        assert run.metric("errors_total") == 0
        assert store.call("GET", progress_key(LIST_REPOS, "relay.test")) != stored
    store.close()
    first = {None: 1, "100": 101, DONE: 151}[cursor]
    assert jobs(clean_redis) == dids(*range(first, 151))
    assert "unreadable" in caplog.text


async def test_progress_and_ranges_of_a_newer_version_are_read(clean_redis: str) -> None:
    store = connect(clean_redis, name="test")
    store.call("SET", progress_key(LIST_REPOS, "relay.test"), b'{"began": 999999, "new": [1]}')
    kept = b'{"start": 60, "end": 61, "problem": "500", "found": 1, "retry_at": 9e9, "new": 1}'
    store.call("HSET", ranges_key("relay.test"), "60", kept.replace(b"9e9", b"9000000000"))
    store.close()
    async with listing(clean_redis, Listing(150)) as run:
        await eventually(lambda: run.enumerator.state.done)
        assert run.enumerator.state.progress.began == 999_999
    assert known_ranges(clean_redis) == [StoredRange(60, 61, "500", 1, 0, 9_000_000_000)]


@pytest.mark.parametrize("stored", [
    b"no JSON", b"[1]", b'{"start": "60", "end": 61, "problem": "500", "found": 1}',
    b'{"start": 60, "end": null, "problem": "500", "found": 1}',
    b'{"start": 60, "end": 61, "problem": "500", "found": 1, "retry_at": "soon"}',
    b'{"start": 60, "end": 61, "problem": "500", "found": 1, "tries": 1.5}',
    b'{"start": 60, "end": 61}', b'{"start": 61, "end": 60, "problem": "500", "found": 1}',
])  # fmt: skip
async def test_an_unreadable_range_holds_up_neither_the_listing_nor_the_other_ranges(
    clean_redis: str, stored: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store = connect(clean_redis, name="test")
    store.call("HSET", ranges_key("relay.test"), "60", stored)
    add_range(store, "relay.test", StoredRange(20, 21, "500", 1, 2, 1))
    async with listing(clean_redis, Listing(150)) as run:
        await eventually(lambda: run.enumerator.state.done)
        assert run.metric("errors_total") == 0
        assert run.metric("listing_hole_retries_total", result="closed") == 1
    assert store.call("HGETALL", ranges_key("relay.test")) == [b"60", stored]
    store.close()
    assert "unreadable" in caplog.text


async def test_a_range_is_tried_again_until_the_host_lists_it(clean_redis: str) -> None:
    source = Listing(150)
    source.broken = {60, 61}
    async with listing(clean_redis, source, now=1_000.0) as run:
        await eventually(lambda: run.enumerator.state.done)
    assert jobs(clean_redis) == dids(*range(1, 60), *range(62, 151))
    source.broken = {61}
    async with listing(clean_redis, source, now=1_000.0 + FIRST_RETRY_SECONDS) as run:
        await eventually(lambda: run.metric("listing_hole_retries_total", result="left") == 1)
    [left] = known_ranges(clean_redis)
    assert (left.start, left.end, left.tries) == (60, 61, 1)
    assert left.retry_at == 1_000 + 3 * FIRST_RETRY_SECONDS
    source.broken = set()
    async with listing(clean_redis, source, now=float(left.retry_at)) as run:
        await eventually(lambda: run.metric("listing_hole_retries_total", result="closed") == 1)
        await eventually(lambda: run.enumerator.state.done)
        assert run.enumerator.state.holes == 0
    assert known_ranges(clean_redis) == []
    assert sorted(set(jobs(clean_redis))) == sorted(dids(*range(1, 151)))


async def test_where_no_way_around_is_known_the_listing_waits_and_says_so(
    clean_redis: str,
) -> None:
    source = Listing(150)
    whole, broken = source.fetch, True

    async def fetch(endpoint: Endpoint, cursor: str | None, limit: int) -> Page:
        page = await whole(endpoint, cursor and cursor.removeprefix("opaque-"), limit)
        if broken and cursor == "opaque-100":
            raise HttpError("status", "500 from listRepos", status=500)
        return Page(page.repos, page.cursor and f"opaque-{page.cursor}")

    source.fetch = fetch  # type: ignore[method-assign]
    async with listing(clean_redis, source) as run:
        await eventually(lambda: run.enumerator.state.stuck)
        where = {"host": "relay.test", "source": "listRepos"}
        await eventually(lambda: run.metric("listing_stuck", **where) == 1)
        assert "stuck" in run.enumerator.health()["summary"]
        assert value(clean_redis, KEY) == "opaque-100"
        broken = False
        await eventually(lambda: run.enumerator.state.done and not run.enumerator.state.stuck)
    assert jobs(clean_redis) == dids(*range(1, 151))


async def test_a_list_of_a_collection_has_a_cursor_of_its_own(clean_redis: str) -> None:
    async with listing(clean_redis, Listing(5), name="app.bsky.actor.profile") as run:
        await eventually(lambda: run.enumerator.state.done)
    assert value(clean_redis, KEY) is None
    key = "rsky_pipeline:listing:app.bsky.actor.profile:cursor:relay.test"
    assert value(clean_redis, key) == DONE


async def test_accounts_that_their_host_would_refuse_are_counted_and_left_out(
    clean_redis: str,
) -> None:
    source = Listing(6)
    source.inactive = {1: "deactivated", 2: "throttled", 4: "takendown", 5: "something new"}
    async with listing(clean_redis, source) as run:
        await eventually(lambda: run.enumerator.state.done)
        counts = [
            run.metric("listing_skipped_repos_total", status=status)
            for status in ("deactivated", "takendown", "suspended", "other")
        ]
        assert counts == [1, 1, 0, 1]
        assert run.enumerator.state.progress.skipped == 3
    assert jobs(clean_redis) == dids(2, 3, 6)


async def test_a_list_that_goes_in_a_circle_ends(clean_redis: str) -> None:
    source = Listing(250)
    turns = iter(["100", "50", "100"])
    source.cursor_of = lambda _: next(turns)
    async with listing(clean_redis, source) as run:
        await eventually(lambda: run.enumerator.state.done)
    assert len(source.requests) == 3


async def test_nothing_is_stepped_over_while_the_relay_is_down(clean_redis: str) -> None:
    with redis_client(clean_redis) as client:
        client.set(KEY, "100")
    source = Listing(250)
    source.down = True
    async with listing(clean_redis, source) as run:
        await eventually(lambda: (run.metric("backfill_fetch_errors_total") or 0) > 20)
        assert value(clean_redis, KEY) == "100"
        assert run.metric("backfill_cursor_skips_total") == 0


async def test_a_listing_that_somebody_resets_begins_anew(clean_redis: str) -> None:
    async with listing(clean_redis, Listing(450), mark=150) as run:
        await eventually(lambda: run.enumerator.state.problem)
        with redis_client(clean_redis) as client:
            client.delete(KEY, "repo_backfill")
        await eventually(lambda: jobs(clean_redis) == dids(*range(1, 201)))
        assert run.metric("error_reasons_total") is None
