"""The chain of each repo: what is a replay, what follows, what has the repo fetched."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.ingester.commits.resync import Resyncs, merged
from rsky_pipeline.ingester.commits.states import (
    DESYNCHRONIZED,
    RepoState,
    RepoStates,
    is_state,
    make_state,
    repo_digest,
    rev_of,
    state_key,
)
from rsky_pipeline.ingester.commits.validation import RepoUpdate, follow, is_future, is_replay
from rsky_pipeline.streams.names import REPO_BACKFILL_HIGH, RESYNC_LATER
from rsky_pipeline.streams.repo_job import FetchReason, RepoJob, decode_repo_job, encode_repo_job

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


def data(number: int) -> Cid:
    return Cid.of(b"tree %d" % number)


def commit(number: int, before: int | None = None) -> RepoUpdate:
    """Return the commit of a number, which follows on the one before unless another is given."""
    previous = number - 1 if before is None else before
    return RepoUpdate(DID, number, previous, data(previous), data(number))


def is_desynchronized(state: RepoState) -> bool:
    return bool(state[8] & DESYNCHRONIZED)


def test_what_follows_breaks_nothing() -> None:
    step = follow(make_state(4, data(4)), commit(5))
    assert step.broken is None
    assert step.state == make_state(5, data(5))
    assert not is_desynchronized(step.state)


@pytest.mark.parametrize(("since", "broken"), [(None, None), (4, FetchReason.UNSEEN)])
def test_of_an_unknown_repo_the_beginning_is_fetched(
    since: int | None, broken: FetchReason | None
) -> None:
    step = follow(None, commit(5)._replace(since=since))
    assert step.broken == broken
    assert rev_of(step.state) == 5


@pytest.mark.parametrize(
    ("update", "broken"),
    [
        (commit(9, 7), FetchReason.BROKEN_CHAIN),
        (commit(5)._replace(since=None), FetchReason.BROKEN_CHAIN),
        (commit(5)._replace(prev_data=data(9)), FetchReason.BROKEN_CHAIN),
        (commit(5)._replace(prev_data=None), None),  # of before Sync 1.1
        (RepoUpdate(DID, 5, data=data(4), kind="sync"), None),  # the same tree
        (RepoUpdate(DID, 5, data=data(5), kind="sync"), FetchReason.SYNC),
        (RepoUpdate(DID, 5, kind="sync"), FetchReason.SYNC),
        (commit(5)._replace(kind="too_big"), FetchReason.TOO_BIG),
    ],
)
def test_a_break_is_noticed_and_what_breaks_is_the_new_baseline(
    update: RepoUpdate, broken: FetchReason | None
) -> None:
    step = follow(make_state(4, data(4)), update)
    assert step.broken == broken
    assert is_desynchronized(step.state) == (broken is not None)
    if update.data is None:
        return
    after = follow(step.state, RepoUpdate(DID, update.rev + 1, update.rev, update.data, data(50)))
    assert after.broken is None


def test_a_state_without_data_is_compared_by_its_rev_alone() -> None:
    step = follow(make_state(4, None), commit(5))
    assert step.broken is None


def test_revs_of_the_future_are_refused_beyond_clock_skew() -> None:
    now = 1_800_000_000.0
    assert not is_future(int((now + 299) * 1e6) << 10, now)
    assert is_future(int((now + 301) * 1e6) << 10, now)
    assert not is_future(0, now)


@given(st.lists(st.integers(1, 12), max_size=60))
def test_any_order_and_repetition_takes_over_each_rev_once_and_only_upwards(
    numbers: list[int],
) -> None:
    state, taken, breaks = None, list[int](), 0
    for number in numbers:
        highest = max(taken, default=0)
        assert is_replay(state, number) == (number <= highest)
        if number > highest:
            step = follow(state, commit(number))
            follows = FetchReason.BROKEN_CHAIN if number != highest + 1 else None
            assert step.broken == (follows if taken else FetchReason.UNSEEN)
            breaks += step.broken is FetchReason.BROKEN_CHAIN
            taken.append(number)
            state = step.state
    assert taken == sorted(set(taken))
    if numbers:
        assert state is not None
        assert rev_of(state) == max(numbers)
    missing = set(range(taken[0], taken[-1] + 1)) - set(taken) if taken else set()
    assert bool(breaks) == bool(missing)


@given(st.integers(0, 2**63 - 1), st.none() | st.integers(0, 99), st.integers(0, 1))
def test_states_keep_what_they_are_made_of(rev: int, number: int | None, flags: int) -> None:
    state = make_state(rev, None if number is None else data(number), flags)
    assert is_state(state)
    assert (rev_of(state), is_desynchronized(state)) == (rev, bool(flags))
    assert len(state) <= 17


class Reading:
    """A store of states that counts how often it is asked."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, bytes], bytes] = {}
        self.calls: list[int] = []

    async def __call__(self, where: Sequence[tuple[str, bytes]]) -> list[bytes]:
        self.calls.append(len(where))
        return [self.stored.get((key, field), b"") for key, field in where]


async def test_states_are_read_once_for_many_repos_and_then_known() -> None:
    reading = Reading()
    reading.stored[state_key(repo_digest("did:plc:3"))] = make_state(7, data(7))
    states = RepoStates(reading, max_cached=100)
    names = [f"did:plc:{number}" for number in range(50)]
    await states.prefetch([*names, *names])
    await states.prefetch(names)
    assert reading.calls == [50]
    assert states.get("did:plc:3") == make_state(7, data(7))
    assert states.get("did:plc:4") is None
    assert (states.take_lookups(), states.take_lookups()) == (50, 0)


async def test_memory_is_bounded_but_never_loses_what_is_not_written() -> None:
    reading = Reading()
    states = RepoStates(reading, max_cached=10)
    unwritten = states.set("did:plc:first", make_state(1, None))
    for number in range(100):
        await states.prefetch([f"did:plc:{number}"])
    assert len(states) == 11
    assert states.get("did:plc:first") == make_state(1, None)
    states.written(dict([unwritten]))
    assert len(states) == 10


async def test_what_the_writer_dropped_is_not_known_any_more() -> None:
    states = RepoStates(Reading())
    states.set(DID, make_state(9, None))
    states.forget()
    await states.prefetch([DID])
    assert states.get(DID) is None


def test_a_newer_unwritten_state_is_not_taken_for_written() -> None:
    states = RepoStates(Reading())
    first = states.set(DID, make_state(1, None))
    states.set(DID, make_state(2, None))
    states.written(dict([first]))
    states.forget()
    assert len(states) == 0
    first = states.set(DID, make_state(1, None))
    states.set(DID, make_state(2, None))
    states.written(dict([first]))
    assert states.get(DID) == make_state(2, None)


def test_a_repo_is_queued_at_once_then_waits_then_is_spared() -> None:
    resyncs = Resyncs(60.0)
    assert resyncs.stream(DID, False, 100.0) == REPO_BACKFILL_HIGH
    assert resyncs.stream(DID, False, 101.0) == RESYNC_LATER
    assert resyncs.stream(DID, False, 102.0) is None
    assert resyncs.stream(DID, True, 103.0) == RESYNC_LATER
    assert [resyncs.stream(DID, True, 104.0) for _ in range(40)].count(RESYNC_LATER) < 20
    assert resyncs.stream("did:plc:other", False, 104.0) == REPO_BACKFILL_HIGH
    assert resyncs.stream(DID, False, 160.0) == REPO_BACKFILL_HIGH


def test_waiting_jobs_of_a_repo_become_one() -> None:
    jobs = [
        RepoJob(DID, "h", "3b", None, True, ("a/1",), FetchReason.FORGED),
        RepoJob("did:plc:other", "h", "3a", None, True, (), FetchReason.SYNC),
        RepoJob(DID, "h", "3a", None, True, ("a/2", "a/1"), FetchReason.BROKEN_CHAIN),
    ]
    found = [decode_repo_job(payload) for payload in merged([*map(encode_repo_job, jobs), b"{"])]
    assert [job.did for job in found] == [DID, "did:plc:other"]
    assert (found[0].rev, found[0].deleted) == ("3b", ("a/1", "a/2"))
    assert json.loads(encode_repo_job(found[0]))["reason"] == "broken_chain"
