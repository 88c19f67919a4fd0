"""A backfiller on a real Valkey and PostgreSQL, fetching over HTTP from hosts on loopback."""

import json
import threading
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio

from rsky_pipeline.atproto.car import read_car, write_car
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.backfiller.role import run
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.health.rules import PROGRESS
from rsky_pipeline.repos.hosts import PARK_AFTER, HostState
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.names import TRIALS, WAITING_KEY
from rsky_pipeline.streams.repo_job import REPO_FIELD, decode_repo_job
from rsky_pipeline.streams.waiting import all_waiting, hurry_waiting
from tests.consumers import GroupReader
from tests.data import test_data
from tests.integration.backfiller.hosts import FakeHosts, Reply, refusal
from tests.integration.backfiller.kit import (
    Configure,
    Running,
    backfiller,
    document,
    eventually,
    letters,
    make_repo,
    output,
    queue,
    settled,
)
from tests.small_disk import small_disk


async def test_all_records_come_before_one_closing_event(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    car, rkeys = make_repo("did:plc:a", 1_200)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    async with backfiller(configure()) as running:
        queue(store, "did:plc:a")
        await settled(store)
    events = output(store)
    assert [event["type"] for event in events] == ["create"] * 1_200 + ["repo"]
    assert {event["rkey"] for event in events[:-1]} == rkeys
    assert {event["seq"] for event in events} == {-1}
    assert (events[-1]["rev"], events[-1]["complete"]) == ("3jzfcijpj2z2a", True)
    assert running.value("repos_processed_total") == 1
    assert running.value("records_extracted_total") == 1_200
    assert running.value("records_filtered_total") == 1


@pytest.mark.parametrize(("rev", "short"), [("3jzfcijpj2z2", 1), ("3jzfcijpj2z", 1),
                                            ("3jzfcijpj2z22", 0)])  # fmt: skip
async def test_a_rev_with_a_shortened_clock_id_is_a_rev(
    store: Store, configure: Configure, hosts: FakeHosts, rev: str, short: int
) -> None:
    car, rkeys = make_repo("did:plc:a", 3, rev=rev)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    async with backfiller(configure()) as running:
        queue(store, "did:plc:a")
        await settled(store)
    events = output(store)
    assert {event["rkey"] for event in events if event["type"] == "create"} == rkeys
    assert {event["rev"] for event in events} == {rev}
    assert not letters(store)
    assert running.value("short_revs_total") == short


@pytest.mark.parametrize("rev", ["zzzzzzzzzzzz", "1", "1700000000000", "3jzfcijpj2z2a2"])
async def test_a_rev_that_no_time_can_be_read_from_is_refused(
    store: Store, configure: Configure, hosts: FakeHosts, rev: str
) -> None:
    car, _ = make_repo("did:plc:a", 3, rev=rev)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    async with backfiller(configure()) as running:
        queue(store, "did:plc:a")
        await settled(store)
    assert [letter.reason for letter in letters(store)] == ["invalid_rev"]
    assert running.value("failures_total", reason="invalid_rev") == 3


async def test_recorded_repos_give_exactly_their_records(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    documents = json.loads(test_data("recorded/dids.json").read_text())
    expected = set()
    for path in sorted(test_data("recorded/cars").glob("*.car")):
        did = path.stem.replace("_", ":")
        hosts.add(did, documents[did], path.read_bytes())
        expected |= {(did, str(cid)) for cid in read_car(path.read_bytes()).blocks}
    wanted = ("app.bsky.", "chat.bsky.", "com.germnetwork.declaration")
    async with backfiller(configure()) as running:
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
        uri for uri in uris
        if uri.startswith(hosted) and not uri.split("/", 3)[3].startswith(wanted)
    }  # fmt: skip
    assert running.value("repos_failed_total") == 0


@pytest.mark.parametrize(
    ("code", "status"), [("RepoDeactivated", 400), ("RepoTakendown", 403), ("RepoNotFound", 404)]
)
async def test_a_final_refusal_is_not_repeated(
    store: Store, configure: Configure, hosts: FakeHosts, code: str, status: int
) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), b"")
    hosts.replies["did:plc:a"] = [lambda: refusal(status, code)]
    async with backfiller(configure()) as running:
        queue(store, "did:plc:a")
        await settled(store)
    assert (output(store), letters(store)) == ([], [])
    assert running.value("repos_skipped_total") == 1
    assert running.value("failures_total", reason=code) == 1


async def test_a_repo_that_fails_alone_is_given_up_and_its_host_is_not(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:b", 3)
    for did in ("did:plc:a", "did:plc:b"):
        hosts.add(did, document(did), car)
    hosts.replies["did:plc:a"] = [lambda: (500, {}, b"oops")] * 99
    hosts.replies["did:plc:b"] = [lambda: (503, {}, b""), lambda: (200, {}, car[:-9])]
    async with backfiller(configure(backfiller_host_patience_hours=1)) as running:
        queue(store, "did:plc:a", "did:plc:b")
        await settled(store)
    (letter,) = letters(store)
    assert (letter.reason, letter.attempts) == ("server_error", 3)
    assert "did:plc:a" in letter.error
    assert "500" in letter.error
    assert [event["type"] for event in output(store)] == ["create"] * 3 + ["repo"]
    assert running.value("failures_total", reason="truncated") == 1


PAGES: list[Reply] = [
    (200, {"Content-Type": "text/html"}, b"<!doctype html><title>Maintenance</title>" * 20),
    (200, {}, b""),
    (200, {"Content-Type": "application/json"}, b'{"error": "RepoNotFound"}'),
    (200, {"Content-Type": "application/vnd.ipld.car"}, b"upstream connect error"),
    (404, {"Content-Type": "text/html"}, b"<html><h1>404 page not found</h1>"),
    (403, {}, b"error code: 1020"),
    (302, {"Location": "http://login.invalid/?next=getRepo"}, b""),
    (302, {"Location": "ftp://login.test/"}, b""),
    (502, {}, b"<html>Bad Gateway"),
]


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_instead_of_repos_is_trouble_of_the_host(
    store: Store,
    configure: Configure,
    hosts: FakeHosts,
    page: Reply,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = list[int]()

    def failed(state: HostState, problem: str, now: float) -> None:
        noted(state, problem, now)
        failures.append(state.failures)

    def answer(did: str) -> Reply:  # the maintenance ends after 20 requests
        return page if len(failures) < 20 else (200, {}, hosts.repos[did])

    noted = HostState.failed
    monkeypatch.setattr(HostState, "failed", failed)
    dids = [f"did:plc:{number}" for number in range(10)]
    for did in dids:
        hosts.add(did, document(did), make_repo(did, 1)[0])
        hosts.replies[did] = [partial(answer, did)] * 99
    async with backfiller(configure(backfiller_host_patience_hours=1)) as running:
        queue(store, *dids)
        await settled(store)
    assert running.value("retries_attempted_total") > 0
    assert letters(store) == []
    assert max(failures) > PARK_AFTER
    assert len([event for event in output(store) if event["type"] == "repo"]) == len(dids)


async def test_a_repo_that_is_cut_at_the_same_byte_is_evidence(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:a", 3)
    for did, cuts in (("did:plc:a", [9, 9, 9]), ("did:plc:b", [9, 20, 9, 20])):
        car, _ = make_repo(did, 3)
        hosts.add(did, document(did), car)
        hosts.replies[did] = [lambda car=car, cut=cut: (200, {}, car[:-cut]) for cut in cuts]  # type: ignore[misc]
    async with backfiller(configure(backfiller_max_attempts=9)):
        queue(store, "did:plc:a", "did:plc:b")
        await settled(store)
    assert [(letter.reason, letter.attempts) for letter in letters(store)] == [("truncated", 3)]
    assert {event["did"] for event in output(store)} == {"did:plc:b"}


async def test_an_account_that_the_directory_does_not_know_yet_is_asked_for_again(
    store: Store, configure: Configure, hosts: FakeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsky_pipeline.repos.fetch.FORCED_PAUSE_SECONDS", 0.0)
    hosts.add("did:plc:a", document("did:plc:a"), make_repo("did:plc:a", 1)[0])
    whole = hosts.documents.pop("did:plc:a")
    async with backfiller(configure()) as running:
        queue(store, "did:plc:a", "did:plc:missing")
        await eventually(lambda: running.value("failures_total", reason="did_not_found") > 2)
        hosts.documents["did:plc:a"] = whole | {"service": []}  # nor is it complete at first
        await eventually(lambda: running.value("failures_total", reason="no_pds") > 0)
        hosts.documents["did:plc:a"] = whole
        await settled(store)
    assert running.value("outcomes_total", outcome="unavailable") == 1  # the missing one
    assert letters(store) == []
    assert {event["did"] for event in output(store)} == {"did:plc:a"}


async def test_a_rate_limit_is_waited_for_and_does_not_count(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:a", 1)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    hosts.replies["did:plc:a"] = [lambda: refusal(429, "", Retry_After="0")] * 5
    async with backfiller(configure()) as running:
        queue(store, "did:plc:a")
        await settled(store)
    assert len(output(store)) == 2
    assert running.value("failures_total", reason="rate_limited") == 5


async def test_what_is_not_the_accounts_own_is_refused(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    other, _ = make_repo("did:plc:other", 2)
    hosts.add("did:plc:a", document("did:plc:a"), other)
    forged, _ = make_repo("did:plc:b", 2, PrivateKey.from_seed("k256", b"forger"))
    hosts.add("did:plc:b", document("did:plc:b"), forged)
    whole, _ = make_repo("did:plc:c", 40)
    car = read_car(whole)
    partial = [item for item in car.blocks.items() if b"app.bsky.feed.like" not in item[1]]
    hosts.add("did:plc:c", document("did:plc:c"), write_car(car.roots, partial))
    async with backfiller(configure(backfiller_max_attempts=1)) as running:
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
    store: Store, configure: Configure, hosts: FakeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsky_pipeline.repos.fetch.FORCED_PAUSE_SECONDS", 0.0)
    new = PrivateKey.from_seed("p256", b"new key")
    before, _ = make_repo("did:plc:a", 1)
    after, _ = make_repo("did:plc:a", 2, new)
    hosts.add("did:plc:a", document("did:plc:a"), before)
    async with backfiller(configure()) as running:
        queue(store, "did:plc:a")
        await settled(store)
        hosts.add("did:plc:a", document("did:plc:a", new), after)
        queue(store, "did:plc:a")
        await settled(store)
    assert len(output(store)) == 2 + 3
    assert running.value("repos_failed_total") == 0


async def test_a_key_that_was_rotated_just_after_it_was_looked_up_costs_no_repo(
    store: Store, configure: Configure, hosts: FakeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsky_pipeline.repos.fetch.FORCED_PAUSE_SECONDS", 1.0)
    new = PrivateKey.from_seed("p256", b"new key")
    hosts.add("did:plc:a", document("did:plc:a"), make_repo("did:plc:a", 1)[0])
    async with backfiller(configure()) as running:
        queue(store, "did:plc:a")
        await settled(store)
        hosts.add("did:plc:a", document("did:plc:a", new), make_repo("did:plc:a", 2, new)[0])
        queue(store, "did:plc:a")
        await settled(store)
    assert running.value("failures_total", reason="bad_signature") == 1
    assert letters(store) == []
    assert len(output(store)) == 2 + 3


async def test_above_the_mark_it_waits_and_loses_nothing(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:a", 1_600)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    seen: list[dict[str, Any]] = []
    async with backfiller(configure(backfill_high_water_mark=400)) as running:
        queue(store, "did:plc:a")
        with trio.fail_after(60):
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
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:a", 2)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    hold = threading.Event()
    hosts.replies["did:plc:a"] = [lambda: (500, {}, str(hold.wait(20)).encode())]
    async with backfiller(configure()) as running:
        queue(store, "did:plc:a")
        await eventually(lambda: running.value("downloads_running") > 0)
        running.context.escalated.set()
    hold.set()
    assert store.call("XLEN", "repo_backfill") == 1
    async with backfiller(configure()):
        await settled(store)
    assert len(output(store)) == 3


async def test_a_repo_that_waits_for_its_next_attempt_survives_a_restart(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), make_repo("did:plc:a", 2)[0])
    hosts.replies["did:plc:a"] = [lambda: (500, {}, b"")]
    slow = configure(backfiller_retry_initial_ms=60_000, backfiller_retry_max_ms=60_000)
    async with backfiller(slow) as running:
        queue(store, "did:plc:a")
        await eventually(lambda: running.value("repos_waiting") == 1)
    assert store.call("XLEN", "repo_backfill") == 0
    (entry,) = all_waiting(store)
    job = decode_repo_job(entry.payload)
    assert (job.attempts, job.failing, job.in_row) == (0, "host", 1)
    async with backfiller(slow):
        hurry_waiting(store, [entry])
        await settled(store)
    assert len(output(store)) == 3


async def test_a_malformed_job_is_a_dead_letter(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    append(store, [Entry("repo_backfill", REPO_FIELD, b"{}"), Entry("repo_backfill", b"x", b"y")])
    async with backfiller(configure()):
        await settled(store)
    assert {letter.reason for letter in letters(store)} == {"missing_field", "invalid_json"}


async def test_a_repo_beyond_the_memory_goes_to_disk_and_gives_the_same(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    for did, count in (("did:plc:small", 10), ("did:plc:large", 4_000)):
        hosts.add(did, document(did), make_repo(did, count)[0])
    configured = configure(backfiller_memory_mb=1)
    async with backfiller(configured) as running:
        queue(store, *hosts.repos)
        await settled(store)
    assert running.value("records_extracted_total") == 4_010
    assert running.value("repos_spilled_total") == 1
    assert running.value("disk_reserved_bytes") == 0
    assert running.value("memory_reserved_bytes") == 0
    large = {event["rkey"] for event in output(store)
             if event["did"] == "did:plc:large" and event["type"] == "create"}  # fmt: skip
    assert large == {f"{number:05d}" for number in range(4_000)}
    assert configured.data_dir is not None
    assert list((configured.data_dir / "backfill").iterdir()) == []


@pytest.mark.parametrize(
    "limits",
    [{"backfiller_max_repo_mb": 1}, {"backfiller_memory_mb": 1, "backfiller_disk_mb": 1}],
    ids=["largest_size", "all_of_the_disk"],
)
async def test_a_repo_beyond_a_limit_is_refused(
    store: Store, configure: Configure, hosts: FakeHosts, limits: dict[str, int]
) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), make_repo("did:plc:a", 12_000)[0])
    async with backfiller(configure(**limits)) as running:
        queue(store, "did:plc:a")
        await settled(store)
        assert running.value("disk_reserved_bytes") == 0
    assert output(store) == []
    assert [letter.reason for letter in letters(store)] == ["too_big"]


async def test_repos_wait_while_the_file_system_has_no_room(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    """No inodes: nothing becomes a dead letter, and all is fetched when there is room again."""
    hosts.add("did:plc:a", document("did:plc:a"), make_repo("did:plc:a", 12_000)[0])
    with small_disk(inodes=50) as small:
        configured = replace(
            configure(backfiller_memory_mb=1, backfiller_max_attempts=1), data_dir=small.folder
        )
        async with backfiller(configured) as running:
            small.use_up_inodes()
            queue(store, "did:plc:a")
            await eventually(lambda: running.value("repos_waiting") == 1)
            assert running.value("failures_total", reason="no_disk") == 1
            assert running.value("memory_reserved_bytes") == 0
            assert letters(store) == []
            small.make_room()
            store.call("ZADD", WAITING_KEY, "XX", 0, *store.call("ZRANGE", WAITING_KEY, 0, -1))
            await settled(store)
        assert running.value("records_extracted_total") == 12_000


async def test_deletions_are_queued_only_where_the_tree_proves_them(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:a", 1)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    gone, there = "app.bsky.feed.like/gone", "app.bsky.feed.like/00000"
    async with backfiller(configure()):
        queue(store, "did:plc:a", rev="3jzfcijpj2z2a", deleted=(gone, there, "no path"))
        await settled(store)
    deletes = [event for event in output(store) if event["type"] == "delete"]
    assert [(event["rkey"], event["rev"], event["seq"]) for event in deletes] == [
        ("gone", "3jzfcijpj2z2a", -1)
    ]
    assert [event["type"] for event in output(store)] == ["delete", "create", "repo"]


async def test_a_repo_older_than_the_deletions_proves_nothing(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    car, _ = make_repo("did:plc:a", 1)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    async with backfiller(configure()):
        queue(store, "did:plc:a", rev="3zzzzzzzzzzzz", deleted=("app.bsky.feed.like/gone",))
        await settled(store)
    assert output(store) == []
    assert [letter.reason for letter in letters(store)] == ["stale_repo"]


async def test_deletions_of_a_repo_that_cannot_be_fetched_are_kept(
    store: Store, configure: Configure, hosts: FakeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsky_pipeline.repos.fetch.FORCED_PAUSE_SECONDS", 0.1)
    hosts.add("did:plc:a", document("did:plc:a"), b"")
    hosts.replies["did:plc:a"] = [lambda: refusal(400, "RepoDeactivated")] * 2
    async with backfiller(configure()):
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
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    for did in ("did:plc:a", "did:plc:b"):
        hosts.add(did, document(did), make_repo(did, 1)[0])
    hold = threading.Event()
    car = hosts.repos["did:plc:a"]
    hosts.replies["did:plc:a"] = [lambda: (200, {}, car if hold.wait(20) else b"")]
    pending_of_an_earlier_life(store, {"did:plc:a": 3, "did:plc:b": 1})
    running = Running(configure())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, running.context)
        with trio.fail_after(60):
            while not running.value("repos_running"):
                await trio.sleep(0.02)
        await trio.sleep(0.2)
        assert delivery_counts(store) == [3, 1]  # not 4: nobody is known to have died of it
        assert not running.ready.is_set()
        hold.set()
        await settled(store)
        running.context.stopping.set()
    assert len(output(store)) == 4


async def test_unfinished_jobs_of_an_earlier_life_leave_the_worker_healthy(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), make_repo("did:plc:a", 1)[0])
    pending_of_an_earlier_life(store, {"did:plc:a": 1})
    now = 0.0
    async with backfiller(configure(), lambda: now) as running:
        await settled(store)
        assert running.health.trouble() is None
        now = (PROGRESS.limits.fail or 0.0) + 1
        running.health.beat()
        await eventually(lambda: running.health.trouble() is None)


async def test_a_job_that_keeps_crashing_the_worker_becomes_a_dead_letter(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), make_repo("did:plc:a", 1)[0])
    pending_of_an_earlier_life(store, {"did:plc:a": Settings().max_deliveries})
    (row,) = store.call("XRANGE", "repo_backfill", "-", "+")
    field = f"repo_backfill {Settings().backfiller_group} {row[0].decode()}"
    store.call("HSET", TRIALS, field, "2 test-backfiller-1")  # and the third did not end it
    async with backfiller(configure()):
        await settled(store)
    assert [letter.reason for letter in letters(store)] == ["crashes_worker"]
    assert output(store) == []
    assert store.call("HLEN", TRIALS) == 0


async def test_a_job_has_all_of_its_deliveries(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), make_repo("did:plc:a", 1)[0])
    pending_of_an_earlier_life(store, {"did:plc:a": Settings().max_deliveries - 1})
    (row,) = store.call("XRANGE", "repo_backfill", "-", "+")
    field = f"repo_backfill {Settings().backfiller_group} {row[0].decode()}"
    store.call("HSET", TRIALS, field, "1 test-backfiller-1")  # two deaths, of three
    async with backfiller(configure()):
        await settled(store)
    assert letters(store) == []
    assert [event["type"] for event in output(store)] == ["create", "repo"]


async def test_a_stop_is_no_crash_of_what_was_in_flight(
    store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), b"")
    hold = threading.Event()
    hosts.replies["did:plc:a"] = [lambda: (500, {}, str(hold.wait(20)).encode())]
    pending_of_an_earlier_life(store, {"did:plc:a": 1})
    async with backfiller(configure()) as running:
        await eventually(lambda: running.value("downloads_running") > 0)
        assert delivery_counts(store) == [2]
        running.context.escalated.set()
    hold.set()
    assert delivery_counts(store) == [1]


async def test_it_stops_while_the_store_is_away(configure: Configure) -> None:
    running = Running(configure(redis_url="redis://127.0.0.1:1"))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, running.context)
            while not running.value("store_errors_total"):
                await trio.sleep(0.02)
            running.context.stopping.set()
    assert not running.ready.is_set()


async def test_memory_is_given_back(store: Store, configure: Configure, hosts: FakeHosts) -> None:
    hosts.add("did:plc:a", document("did:plc:a"), make_repo("did:plc:a", 1)[0])
    async with backfiller(configure()) as running:
        queue(store, "did:plc:a")
        await settled(store)
    assert running.value("memory_reserved_bytes") == 0
