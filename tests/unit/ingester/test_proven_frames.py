"""Frames on their way past the verifier: in order, in bounds, and none that is false."""

import json
from collections import Counter
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.atproto.identity import parse_did_document
from rsky_pipeline.configuration.settings import Verify
from rsky_pipeline.ingester import pipeline
from rsky_pipeline.ingester.commits import signatures
from rsky_pipeline.ingester.commits.relays import RelayDedup
from rsky_pipeline.ingester.commits.resync import BURST, Resyncs
from rsky_pipeline.ingester.commits.signatures import SignatureVerifier
from rsky_pipeline.ingester.commits.states import RepoStates, make_state
from rsky_pipeline.ingester.frames import FrameCounters
from rsky_pipeline.ingester.pipeline import STRANGERS_PER_MINUTE, FrameIntake, SharedState
from rsky_pipeline.ingester.sequence import GapWatch
from rsky_pipeline.network.directory import IdentityNotFoundError, IdentityUnavailableError
from tests.data import test_data
from tests.data_frames import corpus_documents, corpus_frames
from tests.unit.ingester.claims import (
    DID,
    KEY,
    NEW_KEY,
    TIME,
    Accounts,
    Written,
    frame,
    identity,
)
from tests.unit.ingester.support import Converting


def start(
    nursery: trio.Nursery, accounts: Accounts, verify: Verify = "signature"
) -> tuple[FrameIntake, Written, FrameCounters]:
    made, written = Converting(verify), Written()
    intake = made.intake(written, 0, nursery, SignatureVerifier(accounts))
    return intake, written, made.counters


async def test_a_forged_commit_is_fetched_and_never_written() -> None:
    accounts = Accounts()
    async with trio.open_nursery() as nursery:
        intake, written, tally = start(nursery, accounts)
        await intake.take([frame(1, key=NEW_KEY), frame(2), identity(3)])
    assert written.seqs == [1, 2, 3]
    assert [[entry.stream for entry in item.entries] for item in written.frames] == [
        ["repo_backfill_high"], ["firehose_live"], ["firehose_live"],
    ]  # fmt: skip
    assert json.loads(written.frames[0].entries[0].payload)["did"] == DID
    assert tally.verdicts == {"forged": 1, "valid": 1}
    assert tally.resyncs == {"forged": 1}


async def test_a_gap_is_noted_with_the_frame_behind_it_and_counts_in_its_size() -> None:
    accounts, written, made = Accounts(), Written(), Converting("signature")
    gaps = GapWatch("relay.test", 4, None)
    gaps.outdated = True
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 4, nursery, SignatureVerifier(accounts), gaps)
        await intake.take([frame(9), frame(10, key=NEW_KEY)])
    assert [[entry.stream for entry in item.entries] for item in written.frames] == [
        ["rsky_pipeline:gaps", "firehose_live"], ["repo_backfill_high"],
    ]  # fmt: skip
    for item in written.frames:
        assert item.size == sum(len(entry.payload) for entry in item.entries)
    assert made.counters.gaps == {"outdated_cursor": 1}


async def test_a_gap_is_never_noted_behind_a_cursor_that_covers_it() -> None:
    written, made = Written(), Converting()
    gaps = GapWatch("relay.test", 4, None)
    gaps.outdated = True
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 4, nursery, SignatureVerifier(Accounts()), gaps)
        await intake.take([identity(9), identity(10)])
    assert [[entry.stream for entry in item.entries] for item in written.frames] == [
        ["rsky_pipeline:gaps", "firehose_live"], ["firehose_live"],
    ]  # fmt: skip


async def test_many_signatures_are_checked_beside_the_reading_and_in_order() -> None:
    accounts = Accounts()
    async with trio.open_nursery() as nursery:
        intake, written, tally = start(nursery, accounts)
        await intake.take([frame(1)])
        with trio.fail_after(5):
            while not written.frames:
                await trio.testing.wait_all_tasks_blocked()
        forged = {17, 70, 199}
        frames = [frame(seq, key=NEW_KEY if seq in forged else KEY) for seq in range(2, 200)]
        await intake.take(frames)
        assert len(written.frames) < 199
    assert written.seqs == list(range(1, 200))
    assert tally.verdicts == {"forged": 3, "valid": 196}
    streams = {item.seq: [entry.stream for entry in item.entries] for item in written.frames}
    assert {seq for seq, found in streams.items() if "firehose_live" not in found} == forged
    assert tally.seconds["signature"] > 0


async def test_what_was_read_is_passed_on_though_the_connection_ends() -> None:
    accounts = Accounts()
    async with trio.open_nursery() as nursery:
        intake, written, _ = start(nursery, accounts)
        await intake.take([frame(1)])
        await trio.testing.wait_all_tasks_blocked()
        await intake.take([frame(seq) for seq in range(2, 100)])
        nursery.cancel_scope.cancel()
    assert written.seqs == list(range(1, 100))


async def test_reading_pauses_when_what_waits_for_proof_is_large() -> None:
    accounts = Accounts()
    accounts.slow[DID] = trio.Event()
    padding = bytes(1_000_000)
    async with trio.open_nursery() as nursery:
        intake, written, _ = start(nursery, accounts)
        with trio.fail_after(1):
            await intake.take([frame(seq, padding=padding) for seq in range(1, 31)])
        with trio.move_on_after(0.05) as waited:
            await intake.take([frame(seq, padding=padding) for seq in range(31, 41)])
        assert waited.cancelled_caught
        assert not written.frames
        accounts.slow[DID].set()
    assert written.seqs == list(range(1, 41))


async def test_nothing_is_admitted_after_the_writer_has_dropped_its_frames() -> None:
    """A state that is set then would make a replay of a commit that nobody wrote."""
    accounts, written, made = Accounts(), Written(), Converting("signature")
    accounts.slow[DID] = trio.Event()
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 0, nursery, SignatureVerifier(accounts))
        await intake.take([frame(1)])
        await trio.testing.wait_all_tasks_blocked()
        written.closed = True
        made.shared.dropped()
        accounts.slow[DID].set()
    assert made.shared.states.get(DID) is None
    assert written.frames == []


async def test_the_cursor_of_a_damaged_number_is_the_one_before_it() -> None:
    async with trio.open_nursery() as nursery:
        intake, written, _ = start(nursery, Accounts())
        await intake.take([frame(1), frame(10**6), frame(2), frame(3)])
    assert written.seqs == [1, 1, 2, 3]


async def test_results_of_signatures_are_those_of_their_own_commits() -> None:
    """Of an account whose key is not known there is none: the next result is another's."""
    accounts, other = Accounts(), "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"
    accounts.keys[other] = KEY.public
    async with trio.open_nursery() as nursery:
        intake, written, tally = start(nursery, accounts)
        await intake.take([frame(1)])
        await trio.testing.wait_all_tasks_blocked()
        await intake.take([frame(2, other, NEW_KEY), frame(3), frame(4, key=NEW_KEY)])
    assert tally.verdicts == {"valid": 2, "forged": 2}
    streams = [{entry.stream for entry in item.entries} for item in written.frames]
    assert ["firehose_live" in found for found in streams] == [True, False, True, False]


async def test_a_check_that_raises_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> pipeline.Checked:
        raise ValueError

    async with trio.open_nursery() as nursery:
        intake, _, tally = start(nursery, Accounts())
        await intake.take([frame(1)])
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(pipeline, "_check_together", fail)
        monkeypatch.setattr(pipeline, "verify_commit", fail)
        await intake.take([frame(2, key=NEW_KEY), frame(3)])
    assert tally.verdicts == {"valid": 2, "forged": 1}


async def test_the_state_of_an_account_is_read_before_its_event_is_admitted() -> None:
    async def read(where: Sequence[tuple[str, bytes]]) -> list[bytes]:
        return [make_state(5, None)] * len(where)

    shared = SharedState(RepoStates(read), RelayDedup(["relay.test"]), Resyncs(60))
    written, made = Written(), Converting(shared=shared)
    body = {"seq": 1, "did": DID, "active": True, "time": TIME}
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 0, nursery, SignatureVerifier(Accounts()))
        await intake.take([encode_frame("#account", body)])
    assert [entry.stream for entry in written.frames[0].entries] == [
        "firehose_live", "repo_backfill_high",
    ]  # fmt: skip


async def test_an_account_that_cannot_be_looked_up_is_fetched_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signatures, "DIRECTORY_SECONDS", 1.0)
    accounts = Accounts()
    accounts.keys[DID] = IdentityUnavailableError("down")
    async with trio.open_nursery() as nursery:
        intake, written, tally = start(nursery, accounts)
        await intake.take([frame(1)])
    assert [entry.stream for entry in written.frames[0].entries] == ["repo_backfill_high"]
    assert tally.resyncs == {"unverified": 1}


async def test_nothing_of_an_account_that_does_not_exist_is_written_but_a_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    accounts = Accounts()
    accounts.keys[DID] = IdentityNotFoundError("gone")
    async with trio.open_nursery() as nursery:
        intake, written, tally = start(nursery, accounts)
        await intake.take([frame(1)])
    assert written.seqs == [1]
    (entry,) = written.frames[0].entries
    assert entry.stream == "repo_backfill_high"
    assert json.loads(entry.payload)["reason"] == "unverified"
    assert tally.verdicts == {"no_account": 1}
    assert "commit of an account that does not exist yet" in caplog.messages


async def test_made_up_accounts_cost_a_bounded_number_of_jobs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    accounts, count = Accounts(), STRANGERS_PER_MINUTE + 9
    dids = [f"did:plc:{number:024d}" for number in range(count)]
    accounts.keys |= dict.fromkeys(dids, IdentityNotFoundError("made up"))
    async with trio.open_nursery() as nursery:
        intake, written, tally = start(nursery, accounts)
        for number, did in enumerate(dids):
            await intake.take([frame(number + 1, did)])
    streams = Counter(entry.stream for item in written.frames for entry in item.entries)
    assert streams["repo_backfill_high"] in range(BURST, count)
    assert streams.total() == count  # a dead letter names each of the others
    assert tally.errors["no_account"] == count - streams["repo_backfill_high"]


async def test_connections_shorter_than_a_lookup_make_progress(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A look-up takes five seconds, and every connection breaks after two."""
    accounts, made, written = Accounts(), Converting("signature"), Written()
    accounts.slow[DID] = trio.Event()
    async with trio.open_nursery() as lookups:
        verifier = SignatureVerifier(accounts, nursery=lookups)
        began = trio.current_time()
        for connection in range(4):
            async with trio.open_nursery() as nursery:
                intake = made.intake(written, 0, nursery, verifier)
                await intake.take([frame(1), frame(2)])
                await trio.sleep(2.0)
                nursery.cancel_scope.cancel()
            if connection == 1:
                await trio.sleep_until(began + 5.0)
                accounts.slow[DID].set()
            if written.frames:
                break
    assert written.seqs == [1, 2]
    assert accounts.lookups == [(DID, False)]


async def test_connections_shorter_than_our_patience_make_progress_without_a_directory(
    autojump_clock: trio.testing.MockClock,
) -> None:
    accounts, made, written = Accounts(), Converting("signature"), Written()
    accounts.keys[DID] = IdentityUnavailableError("down")
    async with trio.open_nursery() as lookups:
        verifier = SignatureVerifier(accounts, nursery=lookups)
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                intake = made.intake(written, 0, nursery, verifier)
                await intake.take([frame(1)])
                await trio.sleep(2.0)
                nursery.cancel_scope.cancel()
            if written.frames:
                break
    assert [entry.stream for entry in written.frames[0].entries] == ["repo_backfill_high"]


async def test_lookups_run_at_once_and_frames_leave_in_order() -> None:
    accounts = Accounts()
    dids = [f"did:web:host{number}.test" for number in range(100)]
    for did in dids:
        accounts.keys[did] = KEY.public
        accounts.slow[did] = trio.Event()
    async with trio.open_nursery() as nursery:
        intake, written, _ = start(nursery, accounts)
        await intake.take([frame(seq, did=did) for seq, did in enumerate(dids, start=1)])
        await intake.take([identity(101)])
        with trio.fail_after(5):
            while len(accounts.lookups) < signatures.MAX_LOOKUPS:
                await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()
        assert written.seqs == []
        assert accounts.most_at_once == signatures.MAX_LOOKUPS
        for did in reversed(dids[1:]):
            accounts.slow[did].set()
        await trio.testing.wait_all_tasks_blocked()
        assert written.seqs == []
        accounts.slow[dids[0]].set()
    assert written.seqs == list(range(1, 102))


async def test_reading_waits_while_too_many_frames_lack_proof() -> None:
    accounts = Accounts()
    slow = accounts.slow[DID] = trio.Event()
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        intake, written, _ = start(nursery, accounts)

        async def wait() -> None:
            await intake.take([frame(seq) for seq in range(1, 2_002)])
            done.set()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        slow.set()
    assert done.is_set()
    assert written.seqs == list(range(1, 2_002))


@pytest.mark.parametrize("mode", ["signature", "full"])
async def test_every_commit_of_the_real_window_is_valid(mode: Verify) -> None:
    corpus = test_data("fixtures/jetstream/corpus")
    documents = corpus_documents(corpus)
    accounts = Accounts()
    for did, document in documents.items():
        accounts.keys[did] = parse_did_document(document, did).signing_key
    async with trio.open_nursery() as nursery:
        intake, written, tally = start(nursery, accounts, mode)
        await intake.take(corpus_frames(corpus))
    assert tally.verdicts == {"valid": 148}
    assert len(written.frames) == 150
    assert (tally.errors, tally.resyncs, tally.replays) == ({}, {}, 0)
    assert sum(frame.state is not None for frame in written.frames) == 148
