"""The chain of each repo: what is a replay, what follows, what has the repo fetched."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.demo.simulator.repo import SimulatedRepo, Write
from rsky_pipeline.ingester import pipeline
from rsky_pipeline.ingester.commits.relays import AccountUpdate
from rsky_pipeline.ingester.commits.resync import (
    UNPROVEN_BURST,
    Discovery,
    Rate,
    Resyncs,
    merged,
)
from rsky_pipeline.ingester.commits.signatures import SignatureStatus
from rsky_pipeline.ingester.commits.states import (
    DESYNCHRONIZED,
    SHOWS_PREV_DATA,
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
from tests.unit.ingester.claims import KEY, TIME, frame
from tests.unit.ingester.support import Converting, shared_state

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
    assert step.state == make_state(5, data(5), SHOWS_PREV_DATA)
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
        (commit(5)._replace(prev_data=None), None),  # whose operations are not checked
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
    sync = RepoUpdate(DID, 5, data=data(5), kind="sync")  # which says nothing but its tree
    assert follow(make_state(4, None), sync).broken is FetchReason.SYNC


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


async def test_states_that_were_asked_for_before_the_loss_are_asked_for_again() -> None:
    """The answer may be of before the store lost its newest data."""
    answers = [make_state(9, None), b""]

    async def read(where: Sequence[tuple[str, bytes]]) -> list[bytes]:
        if len(answers) == 2:
            states.forget()
        return [answers.pop(0)] * len(where)

    states = RepoStates(read)
    await states.prefetch([DID])
    assert (states.get(DID), answers) == (None, [])


def test_nothing_that_the_writer_dropped_counts_as_seen() -> None:
    """Commits, copies of events and queued jobs: all of them are sent again and must be written."""
    shared = shared_state("a", "b")
    event = AccountUpdate(DID, ("account", True), 0.0)
    shared.states.set(DID, make_state(9, None))
    shared.dedup.first("a", DID, 9, 0.0)
    assert not shared.dedup.is_repeat("a", event)
    assert [shared.resyncs.stream(DID, False, 0.0) for _ in range(3)][2] is None
    shared.dropped()
    assert shared.states.get(DID) is None
    assert not shared.dedup.repeated("b", DID, 9, 1.0)
    assert not shared.dedup.is_repeat("b", event)
    assert shared.resyncs.stream(DID, False, 1.0) == REPO_BACKFILL_HIGH


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


async def test_a_newer_unwritten_state_is_not_evicted_with_the_written_one() -> None:
    states = RepoStates(Reading(), max_cached=1)
    first = states.set(DID, make_state(1, None))
    states.set(DID, make_state(2, None))
    states.written(dict([first]))
    for number in range(3):
        await states.prefetch([f"did:plc:{number}"])
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
    *readable, odd = merged([b"{", *map(encode_repo_job, jobs)])
    assert odd == b"{"  # it is kept, as a dead letter in the end
    found = [decode_repo_job(payload) for payload in readable]
    assert [job.did for job in found] == [DID, "did:plc:other"]
    assert (found[0].rev, found[0].deleted) == ("3b", ("a/1", "a/2"))
    assert json.loads(encode_repo_job(found[0]))["reason"] == "broken_chain"


def test_a_commit_that_two_relays_hold_at_once_is_written_once() -> None:
    """Both are converted before either is admitted, so that only its turn tells which is first."""
    made = Converting("signature")
    frames = [made.converter.convert(frame(1)) for _ in range(2)]
    for item in frames:
        item.status = SignatureStatus.VALID
        made.admission.admit(item)
    assert [len(item.entries) for item in frames] == [1, 0]
    assert frames[1].state is None
    assert made.counters.replays == 1


LIKE = {"$type": "app.bsky.feed.like", "createdAt": "2026-01-01T00:00:00.000Z"}
Strip = Callable[[dict[str, Any]], None]


class Hosted:
    """A repo on its host, and an ingester that checks everything and follows it."""

    def __init__(self, legacy: bool = False) -> None:
        self.repo = SimulatedRepo(DID, KEY)
        self.made = Converting("full")
        self.legacy = legacy
        self._seq = 0

    def commit(self, *writes: Write) -> dict[str, Any]:
        """Return the frame's body of a true commit."""
        self._seq += 1
        rev = tid_from(1_700_000_000_000_000 + self._seq)
        body = self.repo.apply(writes, rev, 0) | {"seq": self._seq, "time": TIME}
        if self.legacy:
            strip(body)
        return body

    def take(self, body: dict[str, Any]) -> list[str]:
        """Have the ingester take a frame; return why the repo is fetched, if it is."""
        before = Counter(self.made.counters.resyncs)
        self.made.now += 100.0
        self.made.convert(encode_frame("#commit", body), SignatureStatus.VALID)
        return list((self.made.counters.resyncs - before).elements())


def like(name: str) -> Write:
    return Write(f"app.bsky.feed.like/{name}", LIKE)


def gone(name: str) -> Write:
    return Write(f"app.bsky.feed.like/{name}", None)


def strip(body: dict[str, Any]) -> None:
    """Leave out what a commit of before Sync 1.1 does not have."""
    body.pop("prevData", None)
    for op in body["ops"]:
        op.pop("prev", None)


def strip_chain(body: dict[str, Any]) -> None:
    body.pop("prevData", None)


def drop(body: dict[str, Any], name: str) -> None:
    body["ops"] = [op for op in body["ops"] if not op["path"].endswith(name)]


@pytest.mark.parametrize("without", [strip, strip_chain])
@pytest.mark.parametrize("hidden", ["b", "a"])  # a creation, a deletion
def test_an_operation_that_a_relay_hides_has_the_repo_fetched(without: Strip, hidden: str) -> None:
    hosted = Hosted()
    assert hosted.take(hosted.commit()) == []
    assert hosted.take(hosted.commit(like("a"))) == []
    body = hosted.commit(like("b"), gone("a"), like("c"))
    without(body)
    drop(body, hidden)
    assert hosted.take(body) == ["broken_chain"]
    assert hosted.take(hosted.commit(like("d"))) == []


def test_nothing_of_a_commit_with_the_wrong_operations_is_written() -> None:
    hosted = Hosted()
    hosted.take(hosted.commit(like("a")))
    body = hosted.commit(like("b"), gone("a"), like("c"))
    drop(body, "b")
    item = hosted.made.convert(encode_frame("#commit", body), SignatureStatus.VALID)
    (entry,) = item.entries
    job = decode_repo_job(entry.payload)
    assert (job.reason, job.deleted) == (FetchReason.INVERSION, ("app.bsky.feed.like/a",))
    assert item.state is not None
    assert is_desynchronized(item.state[1])
    # It is signed, so the next commit follows on it.
    assert hosted.take(hosted.commit(like("d"))) == []


def test_a_deletion_that_the_tree_does_not_show_is_not_written() -> None:
    hosted = Hosted()
    hosted.take(hosted.commit(like("a")))
    body = hosted.commit(like("b"))
    strip(body)
    body["ops"].append({"action": "delete", "path": "app.bsky.feed.like/a", "cid": None})
    item = hosted.made.convert(encode_frame("#commit", body), SignatureStatus.VALID)
    (entry,) = item.entries
    assert decode_repo_job(entry.payload).reason is FetchReason.INVALID_OPERATION


def test_whoever_has_shown_its_chain_once_cannot_hide_it_twice() -> None:
    hosted = Hosted()
    hosted.take(hosted.commit(like("a")))
    hosted.take(hosted.commit(like("b")))
    for name in ("a", "b"):
        body = hosted.commit(gone(name))
        strip(body)
        assert hosted.take(body) == ["broken_chain"]


@pytest.mark.parametrize("without", [strip, strip_chain])
def test_a_commit_that_a_relay_leaves_out_has_the_repo_fetched(without: Strip) -> None:
    hosted = Hosted()
    hosted.take(hosted.commit())
    hosted.take(hosted.commit(like("a")))
    hidden, after = hosted.commit(like("b")), hosted.commit(like("c"))
    without(after)
    after["since"] = hidden["since"]
    assert hosted.take(after) == ["broken_chain"]


def test_a_first_commit_that_is_none_has_the_repo_fetched() -> None:
    """Whoever leaves `since` out does not make a repo new."""
    hosted = Hosted()
    hosted.made.shared.discovery = Discovery(60)
    hosted.commit(like("a"))
    body = hosted.commit(like("b"))
    strip_chain(body)
    body["since"] = None
    assert hosted.take(body) == ["unseen"]
    new = Hosted()
    new.made.shared.discovery = Discovery(60)
    assert new.take(new.commit(like("a"))) == []


def test_a_stripped_commit_that_can_be_undone_and_follows_is_whole() -> None:
    hosted = Hosted()
    hosted.take(hosted.commit(like("a")))
    for writes in ([like("b"), like("c")], [gone("b"), like("d")]):
        body = hosted.commit(*writes)
        strip_chain(body)
        assert hosted.take(body) == []


def test_an_account_that_never_showed_its_chain_is_fetched_at_a_bounded_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "UNPROVEN_BURST", 1)
    monkeypatch.setattr(pipeline, "UNPROVEN_PER_MINUTE", 0)
    hosted = Hosted(legacy=True)
    assert hosted.take(hosted.commit(like("a"))) == []
    assert hosted.take(hosted.commit(like("b"))) == []  # can be undone, and leads back to "a"
    assert hosted.take(hosted.commit(gone("a"))) == ["no_prev_data"]
    assert hosted.take(hosted.commit(gone("b"), like("c"))) == []
    assert hosted.made.counters.resyncs_owed == 1
    # It is fetched later, by which commit ever: one that follows makes nothing good.
    assert hosted.take(hosted.commit(like("d"))) == []
    hosted.made.admission._unproven = Rate(60, 1)
    assert hosted.take(hosted.commit(like("e"))) == ["unverified"]
    assert hosted.take(hosted.commit(like("f"))) == []


def test_forged_frames_of_a_relay_cause_a_bounded_number_of_fetches() -> None:
    made = Converting("signature")
    known = "did:web:known.test"
    assert made.convert(frame(1, known), SignatureStatus.VALID).state is not None
    for number in range(2, UNPROVEN_BURST + 52):
        made.convert(frame(number, f"did:web:host{number}.test"), SignatureStatus.FORGED)
    made.convert(frame(5_000, known), SignatureStatus.FORGED)
    assert made.counters.resyncs == {"forged": UNPROVEN_BURST}
    assert made.counters.resyncs_owed == 51
    # Of an account that is known nothing is lost: a later commit of it has it fetched.
    made.now = 60.0
    body = follows(5_001, known, 1)
    made.convert(body, SignatureStatus.VALID)
    assert made.counters.resyncs["unverified"] == 1


def follows(seq: int, did: str, before: int) -> bytes:
    return frame(seq, did, since=tid_from(1_783_000_000_000_000 + before))
