"""Whatever a relay or labeler sends: each frame is read or refused with a reason, in bounds."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.ingester.commits.convert import MAX_FRAME_OUTPUT, RepoConverter
from rsky_pipeline.ingester.frames import (
    MAX_RAW_BYTES,
    FrameConverter,
    FrameCounters,
    RawDeadLetters,
)
from rsky_pipeline.ingester.labels import LabelConverter
from rsky_pipeline.observability.ingester import ERROR_REASONS
from tests.data import test_data
from tests.unit.readers import readers

__all__ = ["readers"]  # everything is read with and without the compiled readers

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
TIME = "2026-07-04T14:38:08.999Z"
HEADER = encode({"op": 1, "t": "#commit"})


def relay() -> RepoConverter:
    return RepoConverter(
        "relay.test",
        "https://relay.test",
        ("app.bsky.",),
        FrameCounters(),
        RawDeadLetters("raw"),
        verify="full",
    )


def labeler() -> LabelConverter:
    return LabelConverter("labeler.test", FrameCounters(), RawDeadLetters("raw"))


def check(converter: FrameConverter, raw: bytes) -> None:
    """Convert a frame: whatever comes of it is bounded, and what went wrong has a known name."""
    before = dict(converter.counters.errors)
    converted = converter.convert(raw)
    reasons = converter.counters.errors.keys()
    assert "internal" not in reasons
    assert reasons <= set(ERROR_REASONS)
    assert (
        sum(len(entry.payload) for entry in converted.entries)
        <= MAX_FRAME_OUTPUT + 40 * MAX_RAW_BYTES
    )
    if converted.seq is None and not converter.counters.infos and converter.ended is None:
        kinds = converter.counters.frames
        assert dict(converter.counters.errors) != before or kinds["unknown"] or kinds["labels"]


@cache
def real_frames() -> tuple[bytes, ...]:
    """Return frames of every kind: simulated ones, and by hand those that it does not make."""
    world = World(5, 15, stepping_clock(1_767_225_600_000_000, 1_000))
    made = [world.step() for _ in range(150)]
    by_hand: list[tuple[str, dict[str, Any]]] = [
        ("#sync", {"seq": 4, "did": DID, "rev": "3mptbypluud2a", "time": TIME, "blocks": b""}),
        ("#handle", {"seq": 5, "did": DID, "handle": "a.test", "time": TIME}),
        ("#tombstone", {"seq": 6, "did": DID, "time": TIME}),
        ("#migrate", {"seq": 7, "did": DID, "migrateTo": None, "time": TIME}),
        ("#info", {"name": "OutdatedCursor"}),
        ("#novelty", {"seq": 8, "x": [1, {"y": b"z"}]}),
    ]
    labels = [world.labeler.step() for _ in range(30)]
    return (*made, *labels, *(encode_frame(kind, body) for kind, body in by_hand))


def mutations(data: st.DataObject, frame: bytes) -> bytes:
    """Damage a frame in one of many ways."""
    raw = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(raw) - 1)))
        match data.draw(st.sampled_from(("flip", "cut", "splice", "length", "double", "insert"))):
            case "flip" if raw:
                raw[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del raw[place:]
            case "splice":
                other = data.draw(st.sampled_from(real_frames()))
                raw[place:] = other[data.draw(st.integers(0, len(other))) :]
            case "length":  # a text, list, map or byte string that claims any length
                head = data.draw(st.sampled_from((0x5B, 0x7B, 0x9B, 0xBB, 0x3B, 0x1B)))
                size = data.draw(st.integers(0, 2**64 - 1))
                raw[place : place + 1] = bytes([head]) + size.to_bytes(8, "big")
            case "double":
                end = data.draw(st.integers(place, min(len(raw), place + 200)))
                raw[place:place] = raw[place:end]
            case "insert":
                raw[place:place] = data.draw(st.binary(min_size=1, max_size=20))
    return bytes(raw)


@settings(max_examples=150)
@given(st.data())
def test_damaged_frames(data: st.DataObject) -> None:
    raw = mutations(data, data.draw(st.sampled_from(real_frames())))
    check(relay(), raw)
    check(labeler(), raw)


scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20)
    | st.binary(max_size=40) | st.just(Cid.of(b"x")) | st.just(DID) | st.just(TIME)
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
KINDS = ("#commit", "#sync", "#identity", "#account", "#labels", "#info", "#handle", "#tombstone")
FIELDS = (
    "seq", "repo", "did", "rev", "since", "commit", "blocks", "ops", "prevData", "time", "tooBig",
    "rebase", "handle", "active", "status", "labels", "name", "message",
)  # fmt: skip


@settings(max_examples=80)
@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), values))
def test_fields_of_any_type(kind: str, changes: dict[str, Any]) -> None:
    body = {
        "seq": 1, "repo": DID, "did": DID, "rev": "3mptbypluud2a", "since": None, "time": TIME,
        "commit": Cid.of(b"x"), "blocks": b"", "ops": [], "active": True, "labels": [], "name": "n",
    } | changes  # fmt: skip
    check(relay(), encode_frame(kind, body))
    check(labeler(), encode_frame(kind, body))


@settings(max_examples=100)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(raw: bytes, with_header: bool) -> None:
    check(relay(), HEADER + raw if with_header else raw)


BOMBS: dict[str, Callable[[], bytes]] = {
    "nested lists": lambda: b"\x81" * 200_000 + b"\x80",
    "nested maps": lambda: b"\xa1\x61a" * 100_000 + b"\xa0",
    "nested tags": lambda: b"\xd8\x2a" * 100_000,
    "a list of 2^40": lambda: b"\x9b" + (2**40).to_bytes(8, "big"),
    "bytes of 2^63": lambda: b"\x5b" + (2**63).to_bytes(8, "big"),
    "a text of 2^63": lambda: b"\x7b" + (2**63).to_bytes(8, "big"),
    "a map of 2^32": lambda: b"\xbb" + (2**32).to_bytes(8, "big"),
    "duplicate keys": lambda: b"\xa2\x63seq\x01\x63seq\x02",
    "unsorted keys": lambda: b"\xa2\x61b\x01\x61a\x01",
    "a key that is a number": lambda: b"\xa1\x01\x01",
    "an endless list": lambda: b"\x9f" + b"\x01" * 1_000,
    "a float": lambda: b"\xa1\x63seq\xfb" + b"\x3f" * 8,
    "not a number": lambda: b"\xa1\x63seq\xfb\x7f\xf8" + b"\0" * 6,
    "an integer of 65 bits": lambda: b"\xa1\x63seq\x3b" + b"\xff" * 8,
    "many small items": lambda: b"\x9a" + (3_000_000).to_bytes(4, "big") + b"\0" * 3_000_000,
    "bytes behind the end": lambda: b"\xa0\xa0",
    "broken UTF-8": lambda: b"\xa1\x62\xed\xa0\x01",
    "a wide list of maps": lambda: b"\x9a" + (500_000).to_bytes(4, "big") + b"\xa0" * 500_000,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    bomb = BOMBS[name]()
    inside = encode({"blobs": [], "seq": 1})[:-9] + bomb
    for converter in (relay(), labeler()):
        for raw in (bomb, HEADER + bomb, bomb + HEADER, HEADER + inside):
            check(converter, raw)
            assert converter.counters.frames["commit"] == 0


def vectors() -> Iterator[tuple[str, bytes]]:
    """Yield the strictness vectors of the fixtures."""
    fixtures = test_data("fixtures")
    for path in sorted((fixtures / "dasl-testing").glob("*.json")):
        for number, item in enumerate(json.loads(path.read_text("utf-8"))):
            yield f"{path.stem} {number}", bytes.fromhex(item["data"])
    more = json.loads((fixtures / "atmos" / "rfc8949-vectors.json").read_text("utf-8"))
    for number, item in enumerate(more):
        yield f"rfc8949 {number}", bytes.fromhex(item["hex"])
    yield "nested lists", (fixtures / "libipld/semi_torture_nested_lists.dagcbor").read_bytes()


def test_the_strictness_vectors_as_headers_bodies_fields_and_records() -> None:
    count = 0
    like = b"\xa1\x65$type"
    for _, vector in vectors():
        count += 1
        body = b"\xa2\x63seq\x01\x65extra" + vector
        for raw in (
            vector,
            HEADER + vector,
            vector + vector,
            HEADER + body,
            HEADER + like + vector,
        ):
            check(relay(), raw)
            check(labeler(), raw)
    assert count > 800


def test_a_bad_frame_does_not_touch_the_good_ones_around_it() -> None:
    good = [frame for frame in real_frames() if b"#commit" in frame[:20]][:20]
    clean, dirty = relay(), relay()
    expected = [clean.convert(frame).entries for frame in good]
    bombs = [HEADER + make() for make in BOMBS.values()]
    found = []
    for frame, bomb in zip(good, bombs * 2, strict=False):
        dirty.convert(bomb)
        found.append(dirty.convert(frame).entries)
    assert found == expected
    assert list(chain(*expected))
