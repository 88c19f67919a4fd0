"""Repos that nothing is known of, and accounts that come back."""

import json
from typing import Any

from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.demo.simulator.accounts import make_account
from rsky_pipeline.demo.simulator.repo import Write
from rsky_pipeline.ingester.commits.resync import BURST, Discovery
from rsky_pipeline.ingester.frames import PendingFrame
from rsky_pipeline.streams.names import REPO_BACKFILL, REPO_BACKFILL_HIGH, RESYNC_LATER
from tests.unit.ingester.support import Converting, shared_state

TIME = "2026-01-01T00:00:00.000Z"
REVS = ("3mbtypluud22a", "3mbtypluud32a", "3mbtypluud42a", "3mbtypluud52a")


def commits(number: int = 0) -> list[bytes]:
    """Return the first commits of an account."""
    account, frames = make_account(1, number), []
    for seq, rev in enumerate(REVS, start=1):
        record = {"$type": "app.bsky.feed.post", "text": str(seq), "createdAt": TIME}
        body = account.repo.apply([Write(f"app.bsky.feed.post/{rev}", record)], rev, 0)
        frames.append(encode_frame("#commit", body | {"seq": 10 * number + seq, "time": TIME}))
    return frames


def account_frame(active: bool, seq: int, number: int = 0) -> bytes:
    status = {} if active else {"status": "deactivated"}
    time = f"2026-01-01T01:{seq % 60:02d}:00.000Z"
    body = {"seq": seq, "did": make_account(1, number).did, "active": active, "time": time}
    return encode_frame("#account", body | status)


def discovering(per_minute: int = 600) -> Converting:
    made = Converting("none")
    made.shared.discovery = Discovery(per_minute)
    return made


def jobs(frame: PendingFrame) -> list[tuple[str, Any]]:
    return [
        (entry.stream, json.loads(entry.payload)["reason"])
        for entry in frame.entries
        if entry.field == b"repo"
    ]


def test_a_repo_whose_beginning_was_not_seen_is_queued_once() -> None:
    made, frames = discovering(), commits()
    found = [jobs(made.convert(frame)) for frame in frames[1:]]
    assert found == [[(REPO_BACKFILL, "unseen")], [], []]
    assert made.counters.resyncs == {"unseen": 1}


def test_a_repo_that_was_seen_from_its_first_commit_on_is_complete() -> None:
    made = discovering()
    assert [jobs(made.convert(frame)) for frame in commits()] == [[], [], [], []]


def test_a_new_repo_whose_commit_is_too_big_is_fetched_at_once() -> None:
    """The rate of discovery does not hold it up: its records are written nowhere else."""
    made = discovering(1)
    made.convert(commits(1)[1])
    record = {"$type": "app.bsky.feed.post", "text": "x", "createdAt": TIME}
    repo = make_account(1, 0).repo
    repo.apply([Write(f"app.bsky.feed.post/{REVS[0]}", record)], REVS[0], 0)
    body = repo.apply([Write(f"app.bsky.feed.post/{REVS[1]}", record)], REVS[1], 0)
    large = encode_frame("#commit", body | {"seq": 1, "time": TIME, "tooBig": True})
    assert jobs(made.convert(large)) == [(REPO_BACKFILL_HIGH, "too_big")]


def test_its_live_records_are_written_all_the_same() -> None:
    made = discovering()
    frame = made.convert(commits()[1])
    assert sum(entry.field == b"event" for entry in frame.entries) == 1
    assert frame.state


def test_without_discovery_an_unseen_repo_is_remembered_and_nothing_is_queued() -> None:
    made = discovering(0)
    assert [jobs(made.convert(frame)) for frame in commits()[1:]] == [[], [], []]


def test_above_the_limit_a_repo_waits_and_is_found_at_a_later_commit() -> None:
    made, frames = discovering(1), [commits(number) for number in range(2)]
    assert jobs(made.convert(frames[0][1])) == [(REPO_BACKFILL, "unseen")]
    late = made.convert(frames[1][1])
    assert jobs(late) == []
    assert late.entries
    assert late.state is None
    made.shared.discovery = Discovery(600)
    assert jobs(made.convert(frames[1][2])) == [(REPO_BACKFILL, "unseen")]


def test_the_limit_is_a_rate_with_a_burst() -> None:
    limit = Discovery(6_000)
    assert sum(limit.admits(0.0) for _ in range(1_000)) == BURST
    assert sum(limit.admits(1.0) for _ in range(1_000)) == 100
    assert not Discovery(0).admits(1e9)


def test_an_account_that_comes_back_has_its_repo_fetched() -> None:
    made = discovering()
    first, *_ = commits()
    made.convert(first)
    gone = made.convert(account_frame(False, 21))
    assert jobs(gone) == []
    assert gone.state
    back = made.convert(account_frame(True, 22))
    assert jobs(back) == [(REPO_BACKFILL_HIGH, "reactivated")]
    assert [entry.field for entry in back.entries] == [b"event", b"repo"]


def test_an_account_that_comes_back_without_having_gone_has_its_repo_fetched() -> None:
    made = discovering()
    made.convert(commits()[0])
    found = [jobs(made.convert(account_frame(True, seq))) for seq in (20, 21, 22)]
    assert found == [
        [(REPO_BACKFILL_HIGH, "reactivated")], [(RESYNC_LATER, "reactivated")], [],
    ]  # fmt: skip


def test_an_account_that_nothing_is_known_of_is_fetched_when_it_is_active() -> None:
    """It may have been away when its host was listed, and Redis lost what was known of it."""
    made = discovering()
    assert jobs(made.convert(account_frame(False, 1))) == []
    active = made.convert(account_frame(True, 2))
    assert jobs(active) == [(REPO_BACKFILL, "unseen")]
    assert [entry.field for entry in active.entries] == [b"event", b"repo"]
    assert active.state is None
    assert [jobs(made.convert(frame)) for frame in commits()] == [[], [], [], []]


def test_active_accounts_that_nothing_is_known_of_are_discovered_within_the_limit() -> None:
    for per_minute, expected in ((0, 0), (2, 2)):
        made = discovering(per_minute)
        frames = [made.convert(account_frame(True, number, number)) for number in range(1, 5)]
        assert sum(len(jobs(frame)) for frame in frames) == expected


def test_an_account_event_is_written_for_each_relay_and_has_consequences_once() -> None:
    """Which hosting status stands follows from the order of each relay's own events."""
    shared = shared_state("a", "b")
    first, second = (Converting(shared=shared, relay=relay) for relay in ("a", "b"))
    first.convert(commits()[0])
    for seq, active, expected in ((21, False, []), (22, True, ["reactivated"])):
        raw = account_frame(active, seq)
        assert [reason for _, reason in jobs(first.convert(raw))] == expected
        copy = second.convert(raw)
        assert [entry.field for entry in copy.entries] == [b"event"]
        assert json.loads(copy.entries[0].payload)["relay"] == "b"
    assert second.counters.replays == 2


def test_nothing_is_discovered_while_its_stream_is_at_the_mark() -> None:
    discovery = Discovery(600, high_water_mark=10)
    discovery.observe_length(8)
    assert [discovery.admits(1.0) for _ in range(4)] == [True, True, False, False]
    discovery.observe_length(9)
    assert [discovery.admits(1.0) for _ in range(2)] == [True, False]
