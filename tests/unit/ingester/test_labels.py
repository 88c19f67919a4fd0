"""Label frames to entries of label_live."""

import json
from typing import Any

import pytest

from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.ingester.frames import FrameCounters, RawDeadLetters
from rsky_pipeline.ingester.labels import LabelConverter
from tests.data import test_data
from tests.data_frames import split_frames

LABEL: dict[str, Any] = {
    "ver": 1, "src": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "val": "spam", "sig": b"\x00" * 64,
    "uri": "at://did:plc:bbbbbbbbbbbbbbbbbbbbbbbb/app.bsky.feed.post/a",
    "cts": "2026-07-04T14:38:08.999Z",
}  # fmt: skip
SHAPE = {"src": LABEL["src"], "uri": LABEL["uri"], "cid": None, "val": "spam", "neg": None,
         "cts": LABEL["cts"], "exp": None}  # fmt: skip


def converter() -> LabelConverter:
    return LabelConverter("labeler.test", FrameCounters(), RawDeadLetters("raw"))


def frame(*labels: dict[str, Any], seq: int = 7) -> bytes:
    return encode_frame("#labels", {"seq": seq, "labels": list(labels)})


def test_one_entry_a_frame_in_the_shape_of_the_rust_service() -> None:
    made = converter()
    negated = {"neg": True, "cid": "bafyx", "exp": "2027-01-01T00:00:00Z", "uri": "did:plc:b"}
    converted = made.convert(frame(LABEL, LABEL | negated))
    [entry] = converted.entries
    assert (entry.stream, entry.field) == ("label_live", b"labels")
    assert json.loads(entry.payload) == {"seq": 7, "labels": [SHAPE, SHAPE | negated]}
    assert (converted.seq, converted.size) == (7, len(entry.payload))
    assert made.counters.messages == 1


@pytest.mark.parametrize(
    "change",
    [
        {"src": "alice.test"}, {"src": 5}, {"uri": "https://x.test"}, {"val": ""}, {"neg": 1},
        {"uri": "at://" + "x" * 9_000}, {"val": "é" * 65}, {"cts": None}, {"cts": "x" * 200},
        {"cid": b"x"}, {"exp": 5},
    ],
)  # fmt: skip
def test_a_malformed_label_costs_only_itself(change: dict[str, Any]) -> None:
    made = converter()
    converted = made.convert(frame(LABEL | change, LABEL))
    kept, entry = converted.entries
    assert kept.stream == "raw"
    assert json.loads(entry.payload)["labels"] == [SHAPE]
    assert made.counters.errors == {"invalid_label": 1}


def test_a_value_of_128_bytes_is_allowed() -> None:
    converted = converter().convert(frame(LABEL | {"val": "é" * 64}))
    assert len(converted.entries) == 1


def test_other_frames_of_a_labeler() -> None:
    made = converter()
    assert made.convert(frame()).entries == []
    assert made.convert(frame()).seq == 7
    assert made.convert(encode_frame("#info", {"name": "OutdatedCursor"})).seq is None
    assert made.convert(encode_frame("#novelty", {"seq": 9})).seq == 9
    identity = {"seq": 4, "did": LABEL["src"], "time": "2026-07-04T14:38:08.999Z"}
    assert made.convert(encode_frame("#identity", identity)).entries == []


def test_the_recorded_labels() -> None:
    frames = split_frames(test_data("recorded/labels.frames").read_bytes(), ">I")
    made = converter()
    labels = [
        label
        for raw in frames
        for entry in made.convert(raw).entries
        for label in json.loads(entry.payload)["labels"]
    ]
    assert len(labels) == 68
    assert sum(label["neg"] is True for label in labels) == 9
    assert not made.counters.errors
