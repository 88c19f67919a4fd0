"""A backfiller on a real Valkey, fetching over HTTP from hosts on loopback."""

import gc
import json
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.atproto.car import read_car, write_car
from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.mst import Tree
from rsky_pipeline.backfiller.fetch import HostSlots
from rsky_pipeline.backfiller.role import run
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.consume import GroupReader
from rsky_pipeline.streams.dead_letters import DeadLetter, list_dead_letters
from rsky_pipeline.streams.event import REPO_FIELD, RepoJob, encode_repo_job
from tests.data import test_data
from tests.integration.backfiller.hosts import FakeHosts, refusal

KEY = PrivateKey.from_seed("k256", b"account")


@pytest.fixture
def store(clean_redis: str) -> Iterator[Store]:
    connection = connect(clean_redis, name="test")
    yield connection
    connection.close()


@pytest.fixture
def hosts() -> Iterator[FakeHosts]:
    with FakeHosts() as running:
        yield running


def document(did: str, key: PrivateKey = KEY) -> dict[str, Any]:
    method = {
        "id": f"{did}#atproto",
        "type": "Multikey",
        "controller": did,
        "publicKeyMultibase": key.multibase,
    }
    return {"id": did, "alsoKnownAs": ["at://a.test"], "verificationMethod": [method]}


def make_repo(did: str, count: int, key: PrivateKey = KEY) -> tuple[bytes, set[str]]:
    """Return the CAR of a repo of likes and foreign records, and the rkeys of the likes."""
    records = {}
    for number in range(count):
        record = encode({"$type": "app.bsky.feed.like", "n": number})
        records[f"app.bsky.feed.like/{number:05d}"] = record
    records["com.example.other/1"] = encode({"n": 0})
    tree = Tree.build({path: Cid.of(record) for path, record in records.items()})
    commit = sign_commit(did, "3jzfcijpj2z2a", tree.root, None, key)
    blocks = [(Cid.of(commit), commit), *tree.blocks()]
    blocks += [(Cid.of(record), record) for record in records.values()]
    return write_car([Cid.of(commit)], blocks), {f"{number:05d}" for number in range(count)}


def settings(redis_url: str, hosts: FakeHosts, **changes: Any) -> Settings:
    base = Settings(
        redis_url=redis_url,
        plc_url=hosts.url,
        allow_private_hosts=True,
        backfiller_retry_initial_ms=10,
        backfiller_retry_max_ms=50,
        backfiller_http_timeout_seconds=5,
    )
    return replace(base, **changes)


class Running:
    """A backfiller in the test's own process."""

    def __init__(self, configured: Settings) -> None:
        self.registry = CollectorRegistry()
        self.ready = trio.Event()
        self.context = WorkerContext(
            configured, "backfiller", 1, "test-backfiller-1", self.registry,
            self.ready.set, lambda _: None, lambda _: None,
        )  # fmt: skip

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"backfiller_{name}", labels) or 0.0


@asynccontextmanager
async def backfiller(configured: Settings) -> Any:
    running = Running(configured)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, running.context)
        with trio.fail_after(10):
            await running.ready.wait()
        yield running
        running.context.stopping.set()


def queue(store: Store, *dids: str, rev: str = "", deleted: tuple[str, ...] = ()) -> None:
    jobs = [
        encode_repo_job(RepoJob(did, "https://relay.test", rev, None, True, deleted))
        for did in dids
    ]
    append(store, [Entry("repo_backfill", REPO_FIELD, job) for job in jobs])


async def settled(store: Store, seconds: float = 20.0) -> None:
    with trio.fail_after(seconds):
        while store.call("XLEN", "repo_backfill"):
            await trio.sleep(0.02)


def output(store: Store) -> list[dict[str, Any]]:
    return [json.loads(body[1]) for _, body in store.call("XRANGE", "firehose_backfill", "-", "+")]


def letters(store: Store) -> list[DeadLetter]:
    return list_dead_letters(store, "repo_backfill")


async def test_all_records_come_before_one_closing_event(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    car, rkeys = make_repo("did:plc:a", 1_200)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    async with backfiller(settings(clean_redis, hosts)) as running:
        queue(store, "did:plc:a")
        await settled(store)
    events = output(store)
    assert [event["type"] for event in events] == ["create"] * 1_200 + ["repo"]
    assert {event["rkey"] for event in events[:-1]} == rkeys
    assert {event["seq"] for event in events} == {-1}
    assert events[-1]["rev"] == "3jzfcijpj2z2a"
    assert running.value("repos_processed_total") == 1
    assert running.value("records_extracted_total") == 1_200
    assert running.value("records_filtered_total") == 1


async def test_recorded_repos_give_exactly_their_records(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    documents = json.loads(test_data("recorded/dids.json").read_text())
    expected = set()
    for path in sorted(test_data("recorded/cars").glob("*.car")):
        did = path.stem.replace("_", ":")
        hosts.add(did, documents[did], path.read_bytes())
        expected |= {(did, str(cid)) for cid in read_car(path.read_bytes()).blocks}
    wanted = ("app.bsky.", "chat.bsky.")
    async with backfiller(settings(clean_redis, hosts)) as running:
        queue(store, *hosts.repos)
        await settled(store)
    events = output(store)
    creates = [event for event in events if event["type"] == "create"]
    assert sum(event["type"] == "repo" for event in events) == 40
    assert all((event["did"], event["cid"]) in expected for event in creates)
    assert all(event["collection"].startswith(wanted) for event in creates)
    truth = test_data("recorded/appview-expected/record.jsonl").read_text().splitlines()
    uris = {json.loads(line)["uri"] for line in truth}
    mine = {f"at://{e['did']}/{e['collection']}/{e['rkey']}" for e in creates}
    hosted = tuple(f"at://{did}/" for did in hosts.repos)
    assert {uri for uri in uris if uri.startswith(hosted)} - mine == {
        uri for uri in uris if uri.startswith(hosted) and "/app.bsky." not in uri
        and "/chat.bsky." not in uri
    }  # fmt: skip
    assert running.value("repos_failed_total") == 0


@pytest.mark.parametrize(
    ("code", "status"), [("RepoDeactivated", 400), ("RepoTakendown", 403), ("RepoNotFound", 404)]
)
async def test_a_final_refusal_is_not_repeated(
    store: Store, clean_redis: str, hosts: FakeHosts, code: str, status: int
) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), b"")
    hosts.replies["did:plc:a"] = [lambda: refusal(status, code)]
    async with backfiller(settings(clean_redis, hosts)) as running:
        queue(store, "did:plc:a")
        await settled(store)
    assert (output(store), letters(store)) == ([], [])
    assert running.value("repos_skipped_total") == 1
    assert running.value("failures_total", reason=code) == 1


async def test_a_failing_host_is_tried_again_and_then_given_up(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:b", 3)
    for did in ("did:plc:a", "did:plc:b"):
        hosts.add(did, document(did), car)
    hosts.replies["did:plc:a"] = [lambda: (500, {}, b"oops")] * 9
    hosts.replies["did:plc:b"] = [lambda: (503, {}, b""), lambda: (200, {}, car[:-9])]
    async with backfiller(settings(clean_redis, hosts)) as running:
        queue(store, "did:plc:a", "did:plc:b", "did:plc:missing")
        await settled(store)
    (letter,) = letters(store)
    assert (letter.reason, letter.attempts) == ("server_error", 3)
    assert "did:plc:a" in letter.error
    assert "500" in letter.error
    assert [event["type"] for event in output(store)] == ["create"] * 3 + ["repo"]
    assert running.value("retries_attempted_total") == 4
    assert running.value("failures_total", reason="did_not_found") == 1
    assert running.value("failures_total", reason="invalid_car") == 1


async def test_a_rate_limit_is_waited_for_and_does_not_count(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:a", 1)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    hosts.replies["did:plc:a"] = [lambda: refusal(429, "", Retry_After="0")] * 5
    async with backfiller(settings(clean_redis, hosts)) as running:
        queue(store, "did:plc:a")
        await settled(store)
    assert len(output(store)) == 2
    assert running.value("failures_total", reason="rate_limited") == 5


async def test_what_is_not_the_accounts_own_is_refused(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    other, _ = make_repo("did:plc:other", 2)
    hosts.add("did:plc:a", document("did:plc:a"), other)
    forged, _ = make_repo("did:plc:b", 2, PrivateKey.from_seed("k256", b"forger"))
    hosts.add("did:plc:b", document("did:plc:b"), forged)
    whole, _ = make_repo("did:plc:c", 40)
    car = read_car(whole)
    partial = [item for item in car.blocks.items() if b"app.bsky.feed.like" not in item[1]]
    hosts.add("did:plc:c", document("did:plc:c"), write_car(car.roots, partial))
    async with backfiller(settings(clean_redis, hosts, backfiller_max_attempts=1)) as running:
        queue(store, "did:plc:a", "did:plc:b", "did:plc:c")
        await settled(store)
    assert output(store) == []
    assert {letter.reason for letter in letters(store)} == {
        "wrong_did",
        "bad_signature",
        "incomplete",
    }
    assert running.value("verification_errors_total") == 2


async def test_a_key_that_was_rotated_is_looked_up_again(
    store: Store, clean_redis: str, hosts: FakeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsky_pipeline.network.directory.FORCED_PAUSE_SECONDS", 0.0)
    new = PrivateKey.from_seed("p256", b"new key")
    before, _ = make_repo("did:plc:a", 1)
    after, _ = make_repo("did:plc:a", 2, new)
    hosts.add("did:plc:a", document("did:plc:a"), before)
    async with backfiller(settings(clean_redis, hosts)) as running:
        queue(store, "did:plc:a")
        await settled(store)
        hosts.add("did:plc:a", document("did:plc:a", new), after)
        queue(store, "did:plc:a")
        await settled(store)
    assert len(output(store)) == 2 + 3
    assert running.value("repos_failed_total") == 0


async def test_above_the_mark_it_waits_and_loses_nothing(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:a", 1_600)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    seen: list[dict[str, Any]] = []
    async with backfiller(settings(clean_redis, hosts, backfill_high_water_mark=400)) as running:
        queue(store, "did:plc:a")
        with trio.fail_after(30):
            while store.call("XLEN", "repo_backfill"):
                await trio.sleep(0.05)
                length = store.call("XLEN", "firehose_backfill")
                assert length < 400 + 500
                if length >= 400:
                    seen += output(store)
                    store.call("DEL", "firehose_backfill")
        assert running.value("backpressure_waits_total") > 0
    seen += output(store)
    assert [event["type"] for event in seen] == ["create"] * 1_600 + ["repo"]


async def test_pending_entries_of_an_earlier_life_are_done_first(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:a", 2)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    hosts.replies["did:plc:a"] = [lambda: (500, {}, b"")]
    configured = settings(clean_redis, hosts, backfiller_retry_initial_ms=60_000,
                          backfiller_retry_max_ms=60_000)  # fmt: skip
    async with backfiller(configured) as running:
        queue(store, "did:plc:a")
        with trio.fail_after(10):
            while not running.value("repos_waiting"):
                await trio.sleep(0.02)
    assert store.call("XLEN", "repo_backfill") == 1
    async with backfiller(configured):
        await settled(store)
    assert len(output(store)) == 3


async def test_a_malformed_job_is_a_dead_letter(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    append(store, [Entry("repo_backfill", REPO_FIELD, b"{}"), Entry("repo_backfill", b"x", b"y")])
    async with backfiller(settings(clean_redis, hosts)):
        await settled(store)
    assert [letter.reason for letter in letters(store)] == ["missing_field", "invalid_json"]


async def test_a_repo_beyond_the_memory_is_refused(
    store: Store, clean_redis: str, hosts: FakeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsky_pipeline.backfiller.work.SMALL_REPO", 10_000)
    for did, count in (("did:plc:small", 10), ("did:plc:large", 2_000)):
        hosts.add(did, document(did), make_repo(did, count)[0])
    async with backfiller(settings(clean_redis, hosts)) as running:
        queue(store, *hosts.repos)
        await settled(store)
    assert running.value("records_extracted_total") == 2_010
    asked = [path for path in hosts.requests if "getRepo" in path and "large" in path]
    assert len(asked) == 2


async def test_deletions_are_queued_only_where_the_tree_proves_them(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:a", 1)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    gone, there = "app.bsky.feed.like/gone", "app.bsky.feed.like/00000"
    async with backfiller(settings(clean_redis, hosts)):
        queue(store, "did:plc:a", rev="3jzfcijpj2z2a", deleted=(gone, there, "no path"))
        await settled(store)
    deletes = [event for event in output(store) if event["type"] == "delete"]
    assert [(event["rkey"], event["rev"], event["seq"]) for event in deletes] == [
        ("gone", "3jzfcijpj2z2a", -1)
    ]
    assert [event["type"] for event in output(store)] == ["delete", "create", "repo"]


async def test_a_repo_older_than_the_deletions_proves_nothing(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:a", 1)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    async with backfiller(settings(clean_redis, hosts)):
        queue(store, "did:plc:a", rev="3zzzzzzzzzzzz", deleted=("app.bsky.feed.like/gone",))
        await settled(store)
    assert output(store) == []
    assert [letter.reason for letter in letters(store)] == ["stale_repo"]


async def test_deletions_of_a_repo_that_cannot_be_fetched_are_kept(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), b"")
    hosts.replies["did:plc:a"] = [lambda: refusal(400, "RepoDeactivated")]
    async with backfiller(settings(clean_redis, hosts)):
        queue(store, "did:plc:a", deleted=("app.bsky.feed.like/gone",))
        await settled(store)
    (letter,) = letters(store)
    assert letter.reason == "RepoDeactivated"
    assert b"app.bsky.feed.like/gone" in letter.fields[REPO_FIELD]


def pending_of_an_earlier_life(store: Store, deliveries: dict[str, int]) -> None:
    """Queue a job a DID and leave each pending with this many deliveries."""
    queue(store, *deliveries)
    reader = GroupReader(store, "repo_backfill", Settings().backfiller_group, "test-backfiller-1")
    reader.ensure()
    for item, count in zip(reader.read_new(100, 0), deliveries.values(), strict=True):
        store.call(
            "XCLAIM", "repo_backfill", reader.group, reader.consumer, 0, item.id,
            "RETRYCOUNT", count, "JUSTID",
        )  # fmt: skip


def delivery_counts(store: Store) -> list[int]:
    group = Settings().backfiller_group
    return [int(row[3]) for row in store.call("XPENDING", "repo_backfill", group, "-", "+", 100)]


async def test_what_may_have_crashed_the_worker_is_tried_with_nothing_read_behind_it(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    for did in ("did:plc:a", "did:plc:b"):
        hosts.add(did, document(did), make_repo(did, 1)[0])
    hold = threading.Event()
    car = hosts.repos["did:plc:a"]
    hosts.replies["did:plc:a"] = [lambda: (200, {}, car if hold.wait(20) else b"")]
    pending_of_an_earlier_life(store, {"did:plc:a": 3, "did:plc:b": 1})
    running = Running(settings(clean_redis, hosts))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, running.context)
        with trio.fail_after(10):
            while not running.value("repos_running"):
                await trio.sleep(0.02)
        await trio.sleep(0.2)
        assert delivery_counts(store) == [4, 1]
        assert not running.ready.is_set()
        hold.set()
        await settled(store)
        running.context.stopping.set()
    assert len(output(store)) == 4


async def test_a_job_that_keeps_crashing_the_worker_becomes_a_dead_letter(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), make_repo("did:plc:a", 1)[0])
    pending_of_an_earlier_life(store, {"did:plc:a": Settings().max_deliveries})
    async with backfiller(settings(clean_redis, hosts)):
        await settled(store)
    assert [letter.reason for letter in letters(store)] == ["crashes_worker"]
    assert output(store) == []


async def test_a_stop_is_no_crash_of_what_was_in_flight(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), b"")
    hosts.replies["did:plc:a"] = [lambda: (500, {}, b"")]
    pending_of_an_earlier_life(store, {"did:plc:a": 2})
    configured = settings(
        clean_redis, hosts, backfiller_retry_initial_ms=60_000, backfiller_retry_max_ms=60_000
    )
    async with backfiller(configured) as running:
        with trio.fail_after(10):
            while not running.value("repos_waiting"):
                await trio.sleep(0.02)
    assert delivery_counts(store) == [1]


async def test_it_stops_while_the_store_is_away(hosts: FakeHosts) -> None:
    running = Running(settings("redis://127.0.0.1:1", hosts))
    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, running.context)
            while not running.value("store_errors_total"):
                await trio.sleep(0.02)
            running.context.stopping.set()
    assert not running.ready.is_set()


async def test_memory_and_hosts_are_given_back(
    store: Store, clean_redis: str, hosts: FakeHosts
) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), make_repo("did:plc:a", 1)[0])
    async with backfiller(settings(clean_redis, hosts)) as running:
        queue(store, "did:plc:a")
        await settled(store)
        assert running.value("memory_reserved_bytes") == 0
    slots = HostSlots()
    held = slots.of("https://a.test")
    assert slots.of("https://a.test") is held
    del held
    gc.collect()
    assert len(slots) == 0
