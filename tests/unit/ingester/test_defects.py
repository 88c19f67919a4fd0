"""A defect of ours that one frame meets costs that frame alone, whatever step of ours has it."""

import json
import logging
from typing import Any

import pytest
import trio
import trio.testing

from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.ingester import frames, pipeline
from rsky_pipeline.ingester.commits.convert import RepoConverter
from rsky_pipeline.ingester.commits.signatures import SignatureVerifier
from rsky_pipeline.ingester.frames import FrameCounters, RawDeadLetters
from rsky_pipeline.ingester.labels import LabelConverter
from tests.unit.ingester.claims import DID, NEW_KEY, Accounts, Written, frame, identity
from tests.unit.ingester.support import Converting

OTHER = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"
BROKEN = {
    "decoding": (frames, "decode_frame"),
    "a commit": (RepoConverter, "begin_commit"),
    "its blocks": (RepoConverter, "complete"),
    "another message": (RepoConverter, "convert_message"),
    "an account": (SignatureVerifier, "forget"),
    "a replay": (pipeline, "is_replay"),
}


def defect(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a defect")


def tracebacks(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.exc_info is not None for record in caplog.records)


@pytest.mark.parametrize("part", BROKEN)
async def test_frames_that_cannot_be_converted_are_kept_counted_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    written, made = Written(), Converting("signature")
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 0, nursery, SignatureVerifier(Accounts()))
        with monkeypatch.context() as broken:
            broken.setattr(*BROKEN[part], defect)
            of_account = part in {"another message", "an account"}
            await intake.take([identity(n) if of_account else frame(n) for n in (1, 2, 3)])
        await intake.take([frame(4)])
    *bad, good = written.frames
    assert [entry.stream for entry in good.entries] == ["firehose_live"]
    assert good.seq == 4
    letters = [json.loads(entry.payload) for each in bad for entry in each.entries]
    assert [letter["reason"] for letter in letters] == ["internal"] * 3
    assert made.counters.errors == {"internal": 3, "internal_error": 3}
    assert tracebacks(caplog) == 1


async def test_a_flood_of_info_frames_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    made, names = Converting(), ("OutdatedCursor", "anything", "else")
    for name in names * 3:
        made.converter.convert(encode_frame("#info", {"name": name}))
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert made.counters.infos == dict.fromkeys(names, 3)


def test_a_label_frame_that_cannot_be_converted_is_kept_counted_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counters = FrameCounters(of_labeler=True)
    converter = LabelConverter("labeler.test", counters, RawDeadLetters("raw"))
    monkeypatch.setattr(LabelConverter, "convert_message", defect)
    assert [len(converter.convert(identity(seq)).entries) for seq in (1, 2)] == [1, 1]
    assert counters.errors == {"internal": 2, "internal_error": 2}
    assert tracebacks(caplog) == 1


async def test_a_signature_that_cannot_be_checked_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    written, made = Written(), Converting("signature")
    monkeypatch.setattr(SignatureVerifier, "known_key", defect)
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 0, nursery, SignatureVerifier(Accounts()))
        await intake.take([frame(1)])
    assert [[entry.stream for entry in each.entries] for each in written.frames] == [
        ["repo_backfill_high"]
    ]
    assert made.counters.verdicts == {"unverified": 1}


async def test_a_job_that_could_not_be_made_does_not_count_as_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the second try would leave the repo to a job that there is not."""
    written, made, original = Written(), Converting("signature"), RepoConverter.resync
    tries = 0

    def fail_once(*arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        return original(*arguments) if tries > 1 else defect()

    monkeypatch.setattr(RepoConverter, "resync", fail_once)
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 0, nursery, SignatureVerifier(Accounts()))
        await intake.take([frame(1, key=NEW_KEY)])
    assert [[entry.stream for entry in each.entries] for each in written.frames] == [
        ["repo_backfill_high"]
    ]


async def test_a_commit_that_can_be_neither_admitted_nor_fetched_is_passed_and_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    written, made = Written(), Converting("signature")
    accounts = Accounts()
    accounts.keys[OTHER] = accounts.keys[DID]
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 0, nursery, SignatureVerifier(accounts))
        await intake.take([frame(1)])
        await trio.testing.wait_all_tasks_blocked()
        before = made.shared.states.get(DID)
        assert before is not None
        with monkeypatch.context() as broken:
            broken.setattr(RepoConverter, "resync", defect)
            # Each has its repo fetched: the chain is broken, or the signature is wrong.
            await intake.take([frame(2), frame(3, key=NEW_KEY), frame(4, did=OTHER, key=NEW_KEY)])
            await trio.testing.wait_all_tasks_blocked()
        assert written.seqs == [1, 2, 3, 4], "the cursor passes them"
        assert made.shared.states.get(DID) == before, "none of them counts as taken over"
        await intake.take([frame(5)])
    assert [each.state is None for each in written.frames] == [False, True, True, True, False]
    for each, did in zip(written.frames[1:4], (DID, DID, OTHER), strict=True):
        (entry,) = each.entries
        letter = json.loads(entry.payload)
        assert (entry.stream, letter["reason"]) == ("raw", "internal")
        assert did in letter["error"]
        assert each.size == len(entry.payload)
    assert [entry.stream for entry in written.frames[4].entries] == [
        "firehose_live", "repo_backfill_high",
    ], "the next commit has the repo fetched"  # fmt: skip
    assert made.counters.errors == {"internal": 3, "internal_error": 6}
    assert made.counters.resyncs == {"broken_chain": 1}
