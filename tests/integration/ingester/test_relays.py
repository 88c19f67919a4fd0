"""Two relays of one network: no gap, no duplicate, whichever of them fails."""

import json
import random
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio_websocket import WebSocketRequest, serve_websocket

from rsky_pipeline.atproto.syntax import tid_microseconds, tid_number
from rsky_pipeline.configuration.endpoints import Endpoint, HostKey, parse_endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.health.rules import RELAY_STALLED, Limits
from rsky_pipeline.ingester import follower, read_again, report
from rsky_pipeline.ingester.commits.states import (
    REPO_KEYS,
    make_state,
    repo_digest,
    rev_of,
    state_key,
    with_activity,
)
from rsky_pipeline.ingester.listing import gap_repair
from rsky_pipeline.ingester.listing.enumeration import load_ranges
from rsky_pipeline.ingester.listing.gap_repair import GapRepair, list_gaps, move_gaps, repair_marks
from rsky_pipeline.ingester.read_again import report_lost_cursors
from rsky_pipeline.network import listing as network_listing
from rsky_pipeline.network.http import HttpError
from rsky_pipeline.network.listing import ListedRepo, Page
from rsky_pipeline.operations.cursors import (
    CursorRefusedError,
    forget_repos,
    list_cursors,
    set_cursor,
)
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.append import append
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.gap import DATABASE_LOST, REDIS_LOST, Gap
from rsky_pipeline.streams.marks import (
    READ_AGAIN,
    again_until,
    note_positions,
    request_reading,
    requested_since,
    set_back,
)
from rsky_pipeline.streams.names import CURSOR_POSITIONS, REPO_BACKFILL_HIGH, cursor_key
from tests.integration.ingester.relay import TIME, Relay, commit, like, rev, running
from tests.integration.ingester.test_live import cursor, likes, total
from tests.integration.ingester.worker import entries, eventually, ingesting, value
from tests.stores import redis_client

REPOS = [f"did:plc:{letter * 24}" for letter in "abcdefgh"]


def story(count: int) -> list[tuple[str, int, dict[str, Any]]]:
    """Return commits of several repos in their order: the repo, its own count, the record."""
    seen = dict.fromkeys(REPOS, 0)
    chosen = random.Random(7)
    told = []
    for _ in range(count):
        repo = chosen.choice(REPOS)
        seen[repo] += 1
        record = {"$type": "app.bsky.feed.like", "n": seen[repo]}
        told.append((repo, seen[repo], {f"app.bsky.feed.like/k{seen[repo]}": record}))
    return told


def frames(told: list[tuple[str, int, dict[str, Any]]], first_seq: int) -> list[tuple[int, bytes]]:
    """Return the frames of a relay, which numbers them in its own way."""
    return [
        (seq, commit(seq, records, repo=repo, rev=rev(number), since=rev(number - 1)))
        for seq, (repo, number, records) in enumerate(told, start=first_seq)
    ]


def written(url: str) -> list[tuple[str, str]]:
    """Return repo and record key of every live event, in the order of the stream."""
    events = [json.loads(entry[b"event"]) for entry in entries(url, "firehose_live")]
    return [(event["did"], event["rkey"]) for event in events]


def check_complete(url: str, told: list[tuple[str, int, dict[str, Any]]]) -> None:
    found = written(url)
    assert len(found) == len(set(found)), "an event was written twice"
    assert sorted(found) == sorted((repo, f"k{number}") for repo, number, _ in told)
    for repo in REPOS:
        own = [key for did, key in found if did == repo]
        assert own == [f"k{number}" for number in range(1, len(own) + 1)]


@pytest.mark.parametrize("seed", range(3))
async def test_one_relay_that_is_cut_off_at_any_moment_makes_no_gap_and_no_duplicate(
    clean_redis: str, seed: int
) -> None:
    chosen = random.Random(seed)
    told = story(400)
    one, two = frames(told, 1_000), frames(told, 9_000_000)
    first, second = Relay(), Relay()
    async with (
        running(first),
        running(second),
        ingesting(clean_redis, first.url, second.url) as ingester,
    ):
        await ingester.ready.wait()
        for start in range(0, 400, 20):
            ahead, behind = chosen.sample([(first, one), (second, two)], 2)
            ahead[0].add(*ahead[1][start : start + 20])
            if chosen.random() < 0.3:
                await trio.sleep(chosen.random() * 0.05)
            behind[0].add(*behind[1][start : start + 20])
            if chosen.random() < 0.25:
                chosen.choice([first, second]).disconnect_all()
        ends = ((first, one[-1][0]), (second, two[-1][0]))
        await eventually(lambda: all(cursor(clean_redis, r) == str(s) for r, s in ends), 60)
        firsts = [
            total(ingester, "first_frames", host=f"127.0.0.1:{relay.port}")
            for relay in (first, second)
        ]
        assert sum(firsts) == 400
        replays = [
            total(ingester, "replayed_frames", host=f"127.0.0.1:{relay.port}")
            for relay in (first, second)
        ]
        assert sum(replays) >= 400
        assert total(ingester, "resyncs", reason="broken_chain") == 0
    check_complete(clean_redis, told)


async def test_a_repeat_is_not_covered_before_what_it_repeats(clean_redis: str) -> None:
    """While the first copy cannot be written, the cursor of the relay that repeats it stays."""
    told = story(30)
    first, second = Relay(frames(told, 1)), Relay()
    with redis_client(clean_redis) as client:
        for _ in range(5):
            client.xadd("firehose_live", {"event": json.dumps({"did": "x", "rkey": "y"})})
    async with running(first), running(second):
        settings = {"live_high_water_mark": 5}
        async with ingesting(clean_redis, first.url, second.url, **settings) as ingester:
            await eventually(lambda: total(ingester, "store_retries", action="full") > 0)
            second.add(*frames(told, 501))
            host = f"127.0.0.1:{second.port}"
            await eventually(lambda: total(ingester, "replayed_frames", host=host) == 30)
            assert cursor(clean_redis, first) is None
            assert cursor(clean_redis, second) is None
            with redis_client(clean_redis) as client:
                client.delete("firehose_live")
            await eventually(lambda: cursor(clean_redis, second) == "530")
            assert cursor(clean_redis, first) == "30"
    check_complete(clean_redis, told)


async def test_a_store_that_lost_its_newest_data_loses_nothing_of_two_relays(
    clean_redis: str,
) -> None:
    """What one relay brought is lost; that the other repeated it must not hide that."""
    told = story(60)
    first, second = Relay(frames(told[:40], 1)), Relay()
    async with (
        running(first),
        running(second),
        ingesting(clean_redis, first.url, second.url) as ingester,
    ):
        await eventually(lambda: cursor(clean_redis, first) == "40")
        # As after a crash: entries, states and the cursor are those of a moment ago.
        with redis_client(clean_redis) as client:
            found: Any = client.xrange("firehose_live")
            client.xdel("firehose_live", *[entry_id for entry_id, _ in found[20:]])
            client.delete(*client.keys("rsky_pipeline:repo:*"))
            client.set(f"firehose_live:cursor:127.0.0.1:{first.port}", "20")
        second.add(*frames(told, 501))
        await eventually(lambda: cursor(clean_redis, second) == "560")
        first.add(*frames(told, 1)[40:])
        await eventually(lambda: cursor(clean_redis, first) == "60")
        assert total(ingester, "error_reasons", reason="cursor_moved") >= 1
    found_keys = set(written(clean_redis))
    assert found_keys == {(repo, f"k{number}") for repo, number, _ in told}


async def test_the_leader_is_told_and_a_silent_relay_is_noticed(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        report, "RELAY_STALLED", replace(RELAY_STALLED, limits=Limits(warn=1.0), least=0.0)
    )
    told = story(60)
    first, second = Relay(frames(told[:40], 1)), Relay()
    async with (
        running(first),
        running(second),
        ingesting(clean_redis, first.url, second.url) as ingester,
    ):
        await eventually(lambda: cursor(clean_redis, first) == "40")
        await trio.sleep(0.3)
        second.add(*frames(told[:40], 501))
        hosts = [f"127.0.0.1:{relay.port}" for relay in (first, second)]
        await eventually(lambda: ingester.metric("ingester_relay_leads", host=hosts[0]) == 1)
        await eventually(
            lambda: ingester.metric("ingester_relay_behind_seconds", host=hosts[1]) > 0
        )
        assert ingester.health["leading_relay"] == hosts[0]
        await eventually(lambda: ingester.metric("ingester_relay_stalled", host=hosts[1]) == 1)
        assert f"{hosts[1]}: silent for" in ingester.health["problem"]


async def test_a_relay_whose_connections_end_before_any_event_is_named(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks connected, again and again. The other one is not delayed."""
    rule = replace(RELAY_STALLED, limits=Limits(warn=0.5))
    monkeypatch.setattr(report, "RELAY_STALLED", rule)
    monkeypatch.setattr(follower, "Backoff", partial(Backoff, 0.1, 0.1))

    async def breaks(request: WebSocketRequest) -> None:
        socket = await request.accept()
        await socket._stream.send_all(b"\x83\x00")
        await trio.sleep_forever()

    good = Relay(likes(*range(1, 21)))
    async with trio.open_nursery() as nursery, running(good):
        serve: Any = partial(serve_websocket, breaks, "127.0.0.1", 0, None)
        server = await nursery.start(serve)
        bad = f"127.0.0.1:{server.port}"
        async with ingesting(clean_redis, good.url, f"ws://{bad}") as ingester:
            await eventually(lambda: cursor(clean_redis, good) == "20")
            await eventually(lambda: ingester.metric("ingester_relay_stalled", host=bad) == 1)
            problem = f"{bad}: its connections end before an event comes: closed with code 1002"
            await eventually(lambda: problem in (ingester.health["problem"] or ""))
            good.add(*likes(21))
            await eventually(lambda: cursor(clean_redis, good) == "21")
        nursery.cancel_scope.cancel()


async def test_a_relay_that_is_silent_since_the_start_is_judged_by_one_that_it_kept_pace_with(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = replace(RELAY_STALLED, limits=Limits(warn=1.0))
    monkeypatch.setattr(report, "RELAY_STALLED", rule)
    told = story(60)
    first, second, quiet = Relay(frames(told[:40], 1)), Relay(frames(told[:40], 501)), Relay()
    async with running(first), running(second), running(quiet):
        urls = [relay.url for relay in (first, second, quiet)]
        hosts = [f"127.0.0.1:{relay.port}" for relay in (first, second, quiet)]
        async with ingesting(clean_redis, *urls):
            await eventually(lambda: cursor(clean_redis, first) == "40")
            await eventually(lambda: cursor(clean_redis, second) == "540")
        async with ingesting(clean_redis, *urls) as ingester:
            await ingester.ready.wait()
            first.add(*frames(told, 1)[40:])
            stalled = partial(ingester.metric, "ingester_relay_stalled")
            await eventually(lambda: stalled(host=hosts[1]) == 1)
            assert f"{hosts[1]}: silent for" in ingester.health["problem"]
            assert f"while {hosts[0]} sends events" in ingester.health["problem"]
            assert stalled(host=hosts[0]) == stalled(host=hosts[2]) == 0


async def test_a_restart_goes_on_from_the_states(clean_redis: str) -> None:
    told = story(50)
    relay = Relay(frames(told[:30], 1))
    async with running(relay):
        async with ingesting(clean_redis, relay.url):
            await eventually(lambda: cursor(clean_redis, relay) == "30")
        last = {repo: number for repo, number, _ in told[:30]}
        states = {repo: state_of(clean_redis, repo) for repo in last}
        assert states == {repo: tid_number(rev(last[repo])) for repo in last}
        # Another relay, which begins with what we have: only what is new is written.
        other = Relay(frames(told, 7_001))
        async with running(other), ingesting(clean_redis, other.url) as ingester:
            await eventually(lambda: cursor(clean_redis, other) == "7050")
            assert total(ingester, "resyncs", reason="broken_chain") == 0
    check_complete(clean_redis, told)


def state_of(url: str, did: str) -> int:
    key, field = state_key(repo_digest(did))
    with redis_client(url) as client:
        state: Any = client.hget(key, field)
    return rev_of(state)


async def test_a_gap_is_noted_with_the_events_behind_it_and_repaired(
    clean_redis: str, schema_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = "2026-07-04T20:00:00Z"
    told = story(20)
    relay = Relay(frames(told[:10], 1))
    gone, back, same = (f"did:plc:{letter * 24}" for letter in "xyz")
    listed = tuple(ListedRepo(repo, rev(99), True, None) for repo in REPOS)
    known = tuple(ListedRepo(repo, rev(1), True, None) for repo in REPOS)
    missed = (
        ListedRepo(gone, "", False, "takendown"), ListedRepo(back, rev(1), True, None),
        ListedRepo(same, "", False, "deactivated"),
    )  # fmt: skip

    async def listing(endpoint: Endpoint, position: str | None, limit: int) -> Page:
        await trio.lowlevel.checkpoint()
        if position == "1000":
            raise HttpError("status", "500 from listRepos", status=500)
        return Page((*known, *missed), "1000") if position is None else Page(listed[:3], None)

    async with running(relay):
        async with ingesting(clean_redis, relay.url):
            await eventually(lambda: cursor(clean_redis, relay) == "10")
        repo, number, records = told[10]
        relay.add(
            (12, commit(12, records, repo=repo, rev=rev(number), since=rev(number - 1), time=late))
        )
        async with ingesting(clean_redis, relay.url) as ingester:
            await eventually(lambda: cursor(clean_redis, relay) == "12")
            assert total(ingester, "gaps", kind="time_jump") == 1
    store = connect(clean_redis, name="test")
    endpoint = parse_endpoint(relay.url)

    def connected() -> Database:
        return Database.connect(schema_database, name="test")

    with connected() as database:
        database.execute(
            'INSERT INTO actor (did, "indexedAt", "upstreamStatus") VALUES '
            "(%s, '', NULL), (%s, '', 'deactivated'), (%s, '', 'deactivated')",
            [gone, back, same],
        )
    monkeypatch.setattr(network_listing, "SEARCH_SECONDS", 0.01)
    redis = Link(lambda: connect(clean_redis, name="test"), purpose="test")
    postgres = Link(connected, purpose="test")
    marks = repair_marks(Settings())
    repair = GapRepair(redis, postgres, connected, listing, marks, patient=True)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await repair.watch([endpoint], repair=True)

            nursery.start_soon(watch)
            with connected() as database:
                await eventually(lambda: [g.status for g in list_gaps(database)] == ["repaired"])
                [gap] = list_gaps(database)
            nursery.cancel_scope.cancel()
    assert (gap.kind, gap.from_seq, gap.to_seq) == ("time_jump", 10, 12)
    assert (gap.from_time, gap.to_time) == (TIME, late)
    # The relay fails for ever at cursor 1000; the listing of repos asks for that range again.
    assert "1000 to 1001 cannot be listed: 500 from listRepos" in str(gap.error)
    assert [(each.start, each.end) for each in load_ranges(store, endpoint.key).values()] == [
        (1_000, 1_001)
    ]
    unseen = [repo for repo in REPOS if repo not in {did for did, _, _ in told[:11]}]
    assert (gap.repos_listed, gap.repos_queued) == (len(REPOS) + 6, 4 + len(unseen))
    jobs = [json.loads(entry[b"repo"]) for entry in entries(clean_redis, "repo_backfill_high")]
    assert [job["did"] for job in jobs] == [*unseen, back, *REPOS[:3]]
    assert {job["reason"] for job in jobs} == {"gap"}
    assert entries(clean_redis, "rsky_pipeline:gaps") == []
    # What became of accounts meanwhile, as of the first event after the gap.
    news = [json.loads(entry[b"event"]) for entry in entries(clean_redis, "firehose_live")][-2:]
    assert [(event["did"], event["active"], event.get("status")) for event in news] == [
        (gone, False, "takendown"), (back, True, None),
    ]  # fmt: skip
    assert {(event["type"], event["time"], event["seq"]) for event in news} == {
        ("account", "2026-07-04T20:00:00.000Z", 11)  # those of the stream outrank them
    }
    for connection in (store, redis, postgres):
        connection.close()


async def test_setting_a_cursor_refuses_what_skips_events_and_notes_a_forced_gap(
    clean_redis: str,
) -> None:
    relay = Relay(likes(*range(1, 21)))
    store = connect(clean_redis, name="test")
    async with running(relay):
        host = f"127.0.0.1:{relay.port}"
        async with ingesting(clean_redis, relay.url) as ingester:
            await eventually(lambda: cursor(clean_redis, relay) == "20")
            for seq in (25, None):
                with pytest.raises(CursorRefusedError, match="--force"):
                    set_cursor(store, "firehose_live", relay.key, seq, force=False)
            # A running ingester goes on from a cursor that was set back; nothing is written twice.
            set_cursor(store, "firehose_live", relay.key, 5, force=False)
            relay.add(*likes(21))
            await eventually(lambda: cursor(clean_redis, relay) == "21")
            assert total(ingester, "disconnects", reason="cursor_moved") == 1
            assert relay.cursors == [0, 5]
            set_cursor(store, "firehose_live", relay.key, None, force=True)
            relay.add(*likes(22))
            await eventually(lambda: cursor(clean_redis, relay) == "22")
            assert relay.cursors == [0, 5, 0]
    events = [json.loads(entry[b"event"])["seq"] for entry in entries(clean_redis, "firehose_live")]
    assert events == list(range(1, 23))
    [gap] = entries(clean_redis, "rsky_pipeline:gaps")
    assert json.loads(gap[b"gap"])["kind"] == "cursor_set"
    [shown] = list_cursors(store, Settings(relay_hosts=(relay.url,)))
    assert (shown.host, shown.seq, shown.time, shown.configured) == (host, 22, TIME, True)
    assert value(clean_redis, f"firehose_live:cursor:{host}") == "22"
    store.close()


async def test_states_can_be_forgotten_to_take_commits_over_again(clean_redis: str) -> None:
    relay = Relay(likes(*range(1, 6)))
    store = connect(clean_redis, name="test")
    async with running(relay):
        async with ingesting(clean_redis, relay.url):
            await eventually(lambda: cursor(clean_redis, relay) == "5")
            with pytest.raises(CursorRefusedError, match="test-ingester-1 is connected"):
                forget_repos(store)
        # The store looks at sockets that were closed in its own time.
        await eventually(lambda: b"test-ingester-1" not in store.call("CLIENT", "LIST"))
        assert forget_repos(store) == 1
        set_cursor(store, "firehose_live", relay.key, 2, force=False)
        async with ingesting(clean_redis, relay.url):
            await eventually(lambda: cursor(clean_redis, relay) == "5")
    events = [json.loads(entry[b"event"])["seq"] for entry in entries(clean_redis, "firehose_live")]
    assert events == [1, 2, 3, 4, 5, 3, 4, 5]
    store.close()


async def test_repos_that_cannot_be_queued_do_not_stop_what_is_live(clean_redis: str) -> None:
    """Where the queue of broken repos is full they wait, and are queued when there is room."""
    with redis_client(clean_redis) as client:
        for _ in range(3):
            client.xadd("repo_backfill_high", {"repo": "{}"})
    broken = [(seq, like(seq, repo=REPOS[seq], tooBig=True)) for seq in range(1, 5)]
    relay = Relay([*broken, *likes(*range(5, 50))])
    settings = {"repo_high_water_mark": 3, "resync_pause_seconds": 1}
    async with (
        running(relay),
        ingesting(clean_redis, relay.url, **settings) as ingester,
    ):
        await eventually(lambda: cursor(clean_redis, relay) == "49")
        assert len(entries(clean_redis, "firehose_live")) == 45
        assert len(entries(clean_redis, "repo_backfill_high")) == 3
        assert total(ingester, "store_retries", action="detour") >= 1
        with redis_client(clean_redis) as client:
            client.delete("repo_backfill_high")
        await eventually(lambda: len(entries(clean_redis, "repo_backfill_high")) == 4)
        assert entries(clean_redis, "rsky_pipeline:resync_later") == []
    jobs = [
        json.loads(entry[b"repo"])["did"] for entry in entries(clean_redis, "repo_backfill_high")
    ]
    assert sorted(jobs) == REPOS[1:5]


async def test_what_the_database_lost_is_read_and_written_again(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the states of the repos say that it was written; and nothing more than that."""
    monkeypatch.setattr(read_again, "_CHECK_SECONDS", 0.05)
    relay = Relay(likes(*range(1, 21)))
    store = connect(clean_redis, name="test")

    def numbers() -> list[int]:
        found = entries(clean_redis, "firehose_live")
        return [json.loads(entry[b"event"])["seq"] for entry in found]

    async with running(relay):
        key = cursor_key("firehose_live", relay.key)
        async with ingesting(clean_redis, relay.url):
            await eventually(lambda: cursor(clean_redis, relay) == "20")
            note_positions(store, {key: [(100.0, 5)]})
            note_positions(store, {key: [(100.0, 5), (900.0, 20)]})
            request_reading(store, DATABASE_LOST, 500.0, None, [relay.key])
            await eventually(lambda: numbers() == [*range(1, 21), *range(6, 21)])
            await eventually(lambda: not store.call("HLEN", READ_AGAIN))
            relay.add(*likes(21))
            await eventually(lambda: cursor(clean_redis, relay) == "21")
            # Whoever asks for it once more, and is killed in between, has it too.
            request_reading(store, DATABASE_LOST, 1_000.0, None, [relay.key])
            relay.add(*likes(22))
            await eventually(lambda: cursor(clean_redis, relay) == "22")
            await eventually(lambda: not store.call("HLEN", READ_AGAIN))
    assert numbers()[35:] in ([21, *range(6, 23)], [21, 22, *range(6, 23)])
    gaps = [json.loads(entry[b"gap"]) for entry in entries(clean_redis, "rsky_pipeline:gaps")]
    assert [(gap["host"], gap["kind"]) for gap in gaps] == [(relay.key, "database_lost")] * 2
    store.close()


async def test_what_was_lost_right_after_the_first_start_is_read_again(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_again, "_CHECK_SECONDS", 0.05)
    relay = Relay(likes(*range(1, 6)))
    with closing(connect(clean_redis, name="test")) as store:
        async with running(relay), ingesting(clean_redis, relay.url):
            await eventually(lambda: cursor(clean_redis, relay) == "5")
            request_reading(store, DATABASE_LOST, time.time(), None, [relay.key])
            await eventually(
                lambda: (
                    [
                        json.loads(entry[b"event"])["seq"]
                        for entry in entries(clean_redis, "firehose_live")
                    ]
                    == [*range(1, 6), *range(1, 6)]
                )
            )


def test_a_cursor_that_has_not_moved_since_stays(clean_redis: str) -> None:
    """As of a labeler that has said nothing for hours."""
    key = cursor_key("label_live", HostKey("labeler.test"))
    with closing(connect(clean_redis, name="test")) as store:
        store.call("SET", key, "57")
        assert set_back(store, key, 1_000.0) is None, "nothing is known of it"
        note_positions(store, {key: [(500.0, 57)]})
        assert set_back(store, key, 1_000.0) == 57
        assert store.call("GET", key) == b"57"
        assert again_until(store, key) == -1


def test_a_cursor_goes_back_to_well_before_the_loss_and_never_forward(clean_redis: str) -> None:
    key = cursor_key("firehose_live", HostKey("relay.test"))
    with closing(connect(clean_redis, name="test")) as store:
        for position, moment in ((5, 300.0), (9, 950.0), (20, 1_300.0)):
            note_positions(store, {key: [(moment, position)]})
        store.call("SET", key, "20")
        assert set_back(store, key, 1_000.0) == 5, "clocks differ"
        assert (store.call("GET", key), again_until(store, key)) == (b"5", 20)
        store.call("SET", key, "8")  # it has read on, and is set back once more
        assert set_back(store, key, 1_000.0) == 5
        assert (store.call("GET", key), again_until(store, key)) == (b"5", 20)
        store.call("SET", key, "3")
        assert set_back(store, key, 1_000.0) == 5
        assert store.call("GET", key) == b"3"


def test_of_two_requests_the_earlier_counts(clean_redis: str) -> None:
    with closing(connect(clean_redis, name="test")) as store:
        for since in (900.0, 500.0, 700.0):
            request_reading(store, DATABASE_LOST, since, None, [])
        assert requested_since(store) == 500.0


async def test_a_repair_waits_for_room(
    clean_redis: str, schema_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gap_repair, "_FULL_SECONDS", 0.02)
    relay = parse_endpoint("https://relay.test")

    async def listing(endpoint: Endpoint, position: str | None, limit: int) -> Page:
        await trio.lowlevel.checkpoint()
        return Page((ListedRepo(REPOS[0], rev(1), True, None),), None)

    def connected() -> Database:
        return Database.connect(schema_database, name="test")

    redis = Link(lambda: connect(clean_redis, name="test"), purpose="test")
    postgres = Link(connected, purpose="test")
    repair = GapRepair(redis, postgres, connected, listing, {REPO_BACKFILL_HIGH: 1})
    with closing(redis), closing(postgres), closing(connect(clean_redis, name="test")) as store:
        store.call("XADD", REPO_BACKFILL_HIGH, "*", "repo", "{}")
        request_reading(store, DATABASE_LOST, 0.0, None, [relay.key])
        await redis.call(lambda one: move_gaps(one, connected))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(repair.repair_all, [relay])
            await trio.sleep(0.3)
            with connected() as database:
                assert [gap.status for gap in list_gaps(database)] == ["repairing"]
            store.call("DEL", REPO_BACKFILL_HIGH)
    jobs = [json.loads(entry[b"repo"]) for entry in entries(clean_redis, REPO_BACKFILL_HIGH)]
    assert [job["did"] for job in jobs] == [REPOS[0]]


async def test_a_repair_begins_anew_when_redis_fails_over(
    clean_redis: str, schema_database: str
) -> None:
    """The jobs of the first pages may be lost, and PostgreSQL must not note them as queued."""
    relay = parse_endpoint("https://relay.test")
    asked: list[str | None] = []
    redis = Link(lambda: connect(clean_redis, name="test"), purpose="test")

    async def listing(endpoint: Endpoint, position: str | None, limit: int) -> Page:
        asked.append(position)
        if position == "1" and len(asked) == 2:
            await redis.call(lambda store: store.call("REPLICAOF", "127.0.0.1", "1"))
            await redis.call(lambda store: store.call("REPLICAOF", "NO", "ONE"))
            await redis.call(lambda store: store.call("DEL", REPO_BACKFILL_HIGH))
        number = int(position or 0)
        following = "1" if number == 0 else None
        return Page((ListedRepo(REPOS[number], rev(1), True, None),), following)

    def connected() -> Database:
        return Database.connect(schema_database, name="test")

    postgres = Link(connected, purpose="test")
    repair = GapRepair(redis, postgres, connected, listing, {})
    with closing(redis), closing(postgres):
        await redis.call(
            lambda store: request_reading(store, DATABASE_LOST, 0.0, None, [relay.key])
        )
        await redis.call(lambda one: move_gaps(one, connected))
        assert await repair.repair_all([relay]) == 1
    assert asked == [None, "1", None, "1"]
    jobs = [json.loads(entry[b"repo"]) for entry in entries(clean_redis, REPO_BACKFILL_HIGH)]
    assert {job["did"] for job in jobs} == set(REPOS[:2])


@pytest.mark.parametrize("away", [True, False])
async def test_an_account_that_came_back_in_a_gap_is_fetched_at_its_known_rev(
    clean_redis: str, schema_database: str, away: bool
) -> None:
    """It may have changed while it was away; one that was there has lost nothing."""
    relay, did, number = parse_endpoint("https://relay.test"), REPOS[0], rev(1)

    async def listing(endpoint: Endpoint, position: str | None, limit: int) -> Page:
        await trio.lowlevel.checkpoint()
        return Page((ListedRepo(did, number, True, None),), None)

    def connected() -> Database:
        return Database.connect(schema_database, name="test")

    redis = Link(lambda: connect(clean_redis, name="test"), purpose="test")
    postgres = Link(connected, purpose="test")
    repair = GapRepair(redis, postgres, connected, listing, {})
    with closing(redis), closing(postgres), closing(connect(clean_redis, name="test")) as store:
        known = with_activity(make_state(tid_number(number), None), not away)
        store.call("HSET", *state_key(repo_digest(did)), known)
        append(store, [Gap(relay.key, "time_jump", 10, 12, None, None).entry()])
        await redis.call(lambda one: move_gaps(one, connected))
        assert await repair.repair_all([relay]) == 1
    assert len(entries(clean_redis, REPO_BACKFILL_HIGH)) == away


def test_a_cursor_that_redis_lost_is_set_to_where_it_was(clean_redis: str) -> None:
    """The ingester still has the positions that it noted."""
    key, kept = cursor_key("firehose_live", HostKey("relay.test")), [(100.0, 5), (900.0, 20)]
    with closing(connect(clean_redis, name="test")) as store:
        note_positions(store, {key: kept[:1]})
        store.call("FLUSHALL")
        note_positions(store, {key: kept})
        assert set_back(store, key, 500.0) == 5
        assert store.call("GET", key) == b"5"
        assert again_until(store, key) == 20


async def test_events_of_streams_that_were_flushed_are_read_again(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_again, "_CHECK_SECONDS", 0.05)
    relay = Relay(likes(*range(1, 21)))

    def numbers() -> list[int]:
        found = entries(clean_redis, "firehose_live")
        return [json.loads(entry[b"event"])["seq"] for entry in found]

    with closing(connect(clean_redis, name="test")) as store:
        async with running(relay):
            key = cursor_key("firehose_live", relay.key)
            store.call("SET", key, "17")
            async with ingesting(clean_redis, relay.url, initial_cursor="live"):
                await eventually(lambda: numbers() == [18, 19, 20])
                await eventually(lambda: store.call("HGET", READ_AGAIN, key) is None)
                store.call("FLUSHALL")
                request_reading(store, REDIS_LOST, time.time(), None, [relay.key])
                await eventually(lambda: {18, 19, 20} <= set(numbers()))
                await eventually(lambda: cursor(clean_redis, relay) == "20")


@pytest.mark.parametrize("kept", [None, "12"])
async def test_a_redis_that_comes_back_with_an_older_cursor_has_events_read_again(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch, kept: str | None
) -> None:
    """Of its append-only file it left out transactions: cursors, entries, states, and no more."""
    monkeypatch.setattr(read_again, "_CHECK_SECONDS", 0.05)
    relay = Relay(likes(*range(1, 21)))

    def numbers() -> set[int]:
        found = entries(clean_redis, "firehose_live")
        return {json.loads(entry[b"event"])["seq"] for entry in found}

    with closing(connect(clean_redis, name="test")) as store:
        async with running(relay):
            key = cursor_key("firehose_live", relay.key)
            async with ingesting(clean_redis, relay.url, initial_cursor="oldest"):
                await eventually(lambda: cursor(clean_redis, relay) == "20")
            noted = f"rsky_pipeline:cursor_history:{key}"
            store.call("DEL", noted, "firehose_live", *store.call("KEYS", REPO_KEYS))
            for moment, position in ((time.time() - 500.0, 12), (time.time(), 20)):
                note_positions(store, {key: [(moment, position)]})
            if kept is None:
                store.call("DEL", key, CURSOR_POSITIONS)
            else:
                store.call("SET", key, kept)
                note = {"seq": int(kept), "time": "2026-01-01T00:00:00.000Z"}
                store.call("HSET", CURSOR_POSITIONS, key, json.dumps(note))
            async with ingesting(clean_redis, relay.url, initial_cursor="live"):
                await eventually(lambda: set(range(13, 21)) <= numbers())
    gaps = [json.loads(entry[b"gap"]) for entry in entries(clean_redis, "rsky_pipeline:gaps")]
    assert [(gap["host"], gap["kind"]) for gap in gaps] == [(relay.key, "redis_lost")]


@pytest.mark.parametrize("note", [{"reset": True}, {"seq": 12, "time": None}, {"seq": 20}])
def test_a_cursor_that_was_set_is_not_lost(clean_redis: str, note: dict[str, object]) -> None:
    """By a command, which notes it, or by hand, which leaves the note."""
    key = cursor_key("firehose_live", HostKey("relay.test"))
    with closing(connect(clean_redis, name="test")) as store:
        for moment, position in ((500.0, 3), (600.0, 20)):
            note_positions(store, {key: [(moment, position)]})
        store.call("HSET", CURSOR_POSITIONS, key, json.dumps({"time": "2026-01-01"} | note))
        if "reset" not in note:
            store.call("SET", key, "12")
        report_lost_cursors(store, [key], [HostKey("relay.test")])
        assert requested_since(store) is None


@pytest.mark.parametrize("seq", [None, 2])
def test_a_cursor_that_went_on_after_it_was_set_is_not_lost(
    clean_redis: str, seq: int | None
) -> None:
    """Its ingester ends before it notes a position again, once a minute."""
    host = HostKey("relay.test")
    key = cursor_key("firehose_live", host)
    with closing(connect(clean_redis, name="test")) as store:
        for moment, position in ((500.0, 3), (600.0, 20)):
            note_positions(store, {key: [(moment, position)]})
        store.call("SET", key, "20")
        set_cursor(store, "firehose_live", host, seq, force=True)
        store.call("SET", key, "5")
        store.call("HSET", CURSOR_POSITIONS, key, json.dumps({"seq": 5, "time": TIME}))
        report_lost_cursors(store, [key], [host])
        assert requested_since(store) is None


async def test_after_a_loss_of_the_database_its_own_revs_count(
    clean_redis: str, schema_database: str
) -> None:
    has, lacks, parts = REPOS[:3]
    relay = Relay([(seq, commit(seq, {}, repo=repo)) for seq, repo in enumerate(REPOS[:3], 1)])

    async def listing(endpoint: Endpoint, position: str | None, limit: int) -> Page:
        await trio.lowlevel.checkpoint()
        repos = [ListedRepo(repo, rev(seq), True, None) for seq, repo in enumerate(REPOS[:3], 1)]
        return Page(tuple(repos), None)

    def connected() -> Database:
        return Database.connect(schema_database, name="test")

    store = connect(clean_redis, name="test")
    async with running(relay), ingesting(clean_redis, relay.url):
        await eventually(lambda: cursor(clean_redis, relay) == "3")
    with connected() as database:
        for seq, repo in ((1, has), (3, parts)):
            sql = 'INSERT INTO actor_sync (did, "commitCid", "repoRev") VALUES (%s, \'\', %s)'
            database.execute(sql, [repo, rev(seq)])
        sql = "INSERT INTO rsky_pipeline.repo_floor (did, rev) VALUES (%s, %s)"
        database.execute(sql, [has, rev(1)])
    redis = Link(lambda: connect(clean_redis, name="test"), purpose="test")
    postgres = Link(connected, purpose="test")
    commits_at = tid_microseconds(rev(1)) / 1e6
    long_after = datetime.fromtimestamp(commits_at + 3_600, UTC).isoformat()
    before = datetime.fromtimestamp(commits_at - 1, UTC).isoformat()
    for since, enumerates, expected in (
        (long_after, False, [lacks]),
        (long_after, True, [lacks, parts]),
        # A commit that came after the loss was applied: the rev tells nothing of those before it.
        (before, False, [has, lacks, parts]),
    ):
        store.call("DEL", "repo_backfill_high")
        request_reading(store, DATABASE_LOST, 0.0, since, [relay.key])
        repair = GapRepair(
            redis, postgres, connected, listing, repair_marks(Settings()), enumerates=enumerates
        )
        await redis.call(lambda one: move_gaps(one, connected))
        assert await repair.repair_all([parse_endpoint(relay.url)]) == 1
        jobs = [json.loads(entry[b"repo"]) for entry in entries(clean_redis, "repo_backfill_high")]
        assert [job["did"] for job in jobs] == expected
    for connection in (store, redis, postgres):
        connection.close()
