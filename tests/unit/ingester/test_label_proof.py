"""Which labels are proven, and what becomes of the others."""

import base64
import json
from typing import Any

import pytest
import trio

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.crypto import PrivateKey, PublicKey
from rsky_pipeline.atproto.frame import LabelsMessage, decode_frame, encode_frame
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.configuration.settings import LabelSignatures
from rsky_pipeline.ingester import labels
from rsky_pipeline.ingester.frames import FrameCounters, PendingFrame, RawDeadLetters
from rsky_pipeline.ingester.labels import LabelConverter, LabelIntake, LabelSignatureCheck
from rsky_pipeline.ingester.sequence import SeqGate
from rsky_pipeline.network import directory
from rsky_pipeline.network.directory import (
    Directory,
    IdentityNotFoundError,
    IdentityUnavailableError,
)
from rsky_pipeline.network.http import HttpClient, HttpError
from tests.data import test_data

SRC = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
OLD, NEW = (PrivateKey.from_seed("k256", name) for name in (b"old", b"new"))


class Documents:
    """A directory whose cache holds the old key until it is asked past it."""

    def __init__(self, cached: PublicKey | None, fresh: PublicKey | None) -> None:
        self.cached = cached
        self.fresh = fresh
        self.forced = 0
        self.failures = 0

    async def resolve(self, did: str, force: bool = False) -> DidDocument:
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise IdentityUnavailableError("down")
        if did == "did:plc:unknownunknownunknownunk":
            raise IdentityNotFoundError("unknown")
        self.forced += force
        key = self.fresh if force else self.cached
        return DidDocument(did, None, None, OLD.public, None, key)

    def forget(self, did: str) -> None:
        raise AssertionError("a label's key is asked for past the cache, never forgotten")

    def known(self, did: str, force: bool = False) -> DidDocument | None:
        return None


class Written:
    """A sink."""

    closed = False

    def __init__(self) -> None:
        self.frames: list[PendingFrame] = []

    def put(self, frames: Any) -> None:
        self.frames += frames


def label(key: PrivateKey | None = OLD, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "ver": 1, "src": SRC, "uri": SRC, "val": "spam", "cts": "2026-07-04T14:38:08.999Z",
    } | changes  # fmt: skip
    return made if key is None else made | {"sig": key.sign(cbor.encode(made))}


async def pass_through(
    documents: Documents, *labels: dict[str, Any], mode: LabelSignatures = "require"
) -> tuple[list[str], FrameCounters]:
    """Return the values of the labels that are written of a frame."""
    tally, sink = FrameCounters(), Written()
    converter = LabelConverter("labeler.test", tally, RawDeadLetters("raw"))
    signatures = LabelSignatureCheck(documents, mode, converter)
    intake = LabelIntake(converter, sink, SeqGate(0), signatures)
    await intake.take([encode_frame("#labels", {"seq": 7, "labels": list(labels)})])
    [frame] = sink.frames
    assert frame.seq == 7
    written = [entry for entry in frame.entries if entry.stream == "label_live"]
    assert frame.size == sum(len(entry.payload) for entry in frame.entries)
    return [item["val"] for entry in written for item in json.loads(entry.payload)["labels"]], tally


async def test_a_label_that_its_labeler_signed_is_written() -> None:
    documents = Documents(OLD.public, OLD.public)
    written, tally = await pass_through(
        documents, label(), label(neg=False, val="b"), label(neg=True, val="c"),
        label(exp="2027-01-01T00:00:00Z", cid="bafyx", val="d"),
    )  # fmt: skip
    assert written == ["spam", "b", "c", "d"]
    assert tally.label_verdicts == {"valid": 4}
    assert documents.forced == 0


@pytest.mark.parametrize("mode", ["require", "check"])
async def test_a_wrong_signature_is_counted_kept_aside_and_not_written(
    mode: LabelSignatures,
) -> None:
    written, tally = await pass_through(
        Documents(OLD.public, OLD.public), label(NEW), label(val="b"),
        label(val="c") | {"val": "other"}, mode=mode,
    )  # fmt: skip
    assert written == ["b"]
    assert tally.label_verdicts == {"forged": 2, "valid": 1}
    assert tally.errors == {"label_forged": 2}
    assert tally.quarantined == 2


async def test_a_rotated_key_is_found_before_a_signature_is_called_wrong() -> None:
    documents = Documents(OLD.public, NEW.public)
    written, tally = await pass_through(documents, label(NEW))
    assert written == ["spam"]
    assert tally.label_verdicts == {"valid": 1}


async def test_the_key_of_the_repo_proves_no_label() -> None:
    written, tally = await pass_through(Documents(None, None), label(OLD))
    assert written == []
    assert tally.label_verdicts == {"no_key": 1}


@pytest.mark.parametrize(("mode", "expected"), [("require", []), ("check", ["spam", "b"])])
async def test_what_can_neither_be_proven_nor_refuted(
    mode: LabelSignatures, expected: list[str]
) -> None:
    unknown = label(src="did:plc:unknownunknownunknownunk", val="b")
    documents = Documents(OLD.public, OLD.public)
    written, tally = await pass_through(documents, label(None), unknown, mode=mode)
    assert written == expected
    assert tally.label_verdicts == {"unsigned": 1, "no_key": 1}


async def test_the_stream_waits_for_the_directory_but_not_for_a_strangers_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(labels, "RETRY_SECONDS", 0.001)
    documents = Documents(OLD.public, OLD.public)
    documents.failures = 20
    assert (await pass_through(documents, label()))[0] == ["spam"]
    documents.failures = 20
    written, tally = await pass_through(documents, label(src="did:web:stranger.test"))
    assert written == []
    assert tally.label_verdicts == {"unverified": 1}


async def test_a_labeler_for_which_alone_the_directory_fails_holds_nobody_up_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(labels, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(directory, "ALONE_SECONDS", 0.0)
    other, third = (f"did:plc:{letter * 24}" for letter in "bc")
    refusals, tried = 0, trio.Event()

    async def answer(self: HttpClient, url: str, **_: Any) -> Any:
        nonlocal refusals
        await trio.lowlevel.checkpoint()
        if url.endswith(SRC):
            refusals += 1
            if refusals > 2 * labels.STRANGER_TRIES:
                tried.set()
            raise HttpError("status", "answered 403", status=403)
        did = url.rpartition("/")[2]
        method = {"id": f"{did}#atproto_label", "type": "Multikey", "controller": did,
                  "publicKeyMultibase": OLD.multibase}  # fmt: skip
        return {"id": did, "verificationMethod": [method]}

    monkeypatch.setattr(HttpClient, "get_json", answer)
    tally, sink = FrameCounters(), Written()
    async with HttpClient(allow_private=True) as http:
        shared = Directory(http, "http://plc.test")
        converter = LabelConverter("labeler.test", tally, RawDeadLetters("raw"))
        check = LabelSignatureCheck(shared, "require", converter)
        intake = LabelIntake(converter, sink, SeqGate(0), check)
        frames = [
            encode_frame("#labels", {"seq": seq, "labels": [label(src=src)]})
            for seq, src in enumerate((other, SRC, other), 1)
        ]
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(intake.take, frames)
                await tried.wait()
                assert [frame.seq for frame in sink.frames] == [1], "it may be down for everybody"
                await shared.resolve(third)
    streams = [[entry.stream for entry in frame.entries] for frame in sink.frames]
    assert streams == [["label_live"], ["raw"], ["label_live"]]
    assert tally.label_verdicts == {"valid": 2, "unverified": 1}


async def test_the_wait_for_the_directory_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(labels, "PATIENCE_SECONDS", 0.05)
    documents = Documents(OLD.public, OLD.public)
    documents.failures = 1_000_000
    with trio.fail_after(5):
        written, tally = await pass_through(documents, label())
    assert written == []
    assert tally.label_verdicts == {"unverified": 1}


async def test_a_malformed_label_is_refused_as_before() -> None:
    written, tally = await pass_through(Documents(OLD.public, OLD.public), label(val=""), label())
    assert written == ["spam"]
    assert tally.errors == {"invalid_label": 1}


@pytest.mark.parametrize(
    "disguise", [{"ver": "1"}, {"ver": True}, {"sig": "text"}, {"sig": 5}, {"uri": "did:"}]
)
async def test_a_label_does_not_pass_unproven_by_being_malformed(disguise: dict[str, Any]) -> None:
    forged = label(NEW) | disguise
    written, tally = await pass_through(Documents(OLD.public, OLD.public), forged, label(val="b"))
    assert written == ["b"]
    assert tally.errors == {"invalid_label": 1}


async def test_the_signatures_of_the_fixtures() -> None:
    folder = test_data("fixtures/labels")
    vectors = json.loads((folder / "label-signatures.json").read_text("utf-8"))["vectors"]
    for vector in vectors:
        if "frame" in vector:
            message = decode_frame((folder / vector["frame"]).read_bytes())
            assert isinstance(message, LabelsMessage)
            found = message.labels[vector["labelIndex"]]
        else:
            text = vector["label"]["sig"]["$bytes"]
            signature = base64.b64decode(text + "=" * (-len(text) % 4))
            found = vector["label"] | {"sig": signature}
        key = PublicKey.parse(vector["publicKey"].removeprefix("did:key:"))
        written, _ = await pass_through(Documents(key, key), found)
        assert bool(written) is vector["valid"], vector["name"]
    assert len(vectors) == 3
