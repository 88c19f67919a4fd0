"""The compiled readers against the Python that reads what they leave over."""

import calendar
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import car, cbor, compiled, dagjson, datetimes, syntax
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.mst import Tree
from rsky_pipeline.atproto.mst.node import _parse_anything
from rsky_pipeline.atproto.rules import MAX_BLOCK
from rsky_pipeline.indexer.lexicon import check
from tests.unit.atproto.damaged import PLC, cids, damage, readers, records

__all__ = ["readers"]

paths = st.from_regex(r"[a-z]{1,3}\.[a-z]{1,2}/[0-9a-z._~:-]{1,300}", fullmatch=True)


def test_they_were_built() -> None:
    assert compiled.COMPILED


@given(st.dictionaries(paths, cids, min_size=1, max_size=30), st.data())
@settings(max_examples=150)
def test_nodes(held: dict[str, Cid], data: st.DataObject) -> None:
    block = data.draw(st.sampled_from([block for _, block in Tree.build(held).blocks()]))
    content = _parse_anything(block)
    assert compiled.read_node(block) == (content.keys, content.values, content.children)
    damaged = damage(block, data)
    read = compiled.read_node(damaged)
    if read is not None:
        content = _parse_anything(damaged)
        assert read == (content.keys, content.values, content.children)


@pytest.mark.parametrize("size", [23, 24, 255, 256, 1_020, 1_030])
def test_nodes_with_long_keys(size: int) -> None:
    keys = [f"a.b/{'x' * (size - 4)}{letter}" for letter in "ab"]
    entries: list[Any] = [
        {"k": keys[0].encode(), "p": 0, "t": None, "v": Cid.of(b"1")},
        {"k": b"b", "p": size, "t": None, "v": Cid.of(b"2")},
    ]
    block = cbor.encode({"e": entries, "l": None})
    read = compiled.read_node(block)
    if size >= 1_024:
        assert read is None
        with pytest.raises(InvalidDataError, match="collection/rkey"):
            _parse_anything(block)
    else:
        assert read is not None
        assert read[0] == [key.encode() for key in keys]


@given(st.lists(st.binary(max_size=300), max_size=5), st.data())
@settings(max_examples=150)
def test_blocks_of_a_car(contents: list[bytes], data: st.DataObject) -> None:
    pairs = [(Cid.of(content), content) for content in contents]
    sections = car.write_car([Cid.of(b"root")], pairs)[len(car.write_car([Cid.of(b"root")], [])) :]
    assert compiled.read_blocks(sections, 0) == dict(pairs)
    damaged = damage(sections, data)
    read = compiled.read_blocks(damaged, 0)
    if read is not None:
        reader = car.CarReader()
        reader.feed(car.write_car([Cid.of(b"root")], []))
        assert read == dict(reader.feed(damaged))
        reader.finish()


@pytest.mark.parametrize(
    "length", [b"", b"\x80\x00", b"\xff\xff\xff\xff\x0f", b"\xff" * 12, b"\x23"]
)
def test_lengths_that_lie(length: bytes) -> None:
    cid = Cid.of(b"")
    assert compiled.read_blocks(length + cid, 0) is None
    assert compiled.read_blocks(b"\x24" + cid, 0) == {cid: b""}


@pytest.mark.parametrize(("size", "accepted"), [(MAX_BLOCK, True), (MAX_BLOCK + 1, False)])
def test_the_largest_block(size: int, accepted: bool) -> None:
    cid, content = Cid.of(bytes(size)), bytes(size)
    empty = car.write_car([cid], [])
    data = car.write_car([cid], [(cid, content)])
    found = {cid: content} if accepted else None
    assert compiled.read_blocks(data, len(empty)) == found


@given(records, st.data())
@settings(max_examples=300)
def test_records(record: dict[str, Any], data: st.DataObject) -> None:
    block = cbor.encode(record)
    made = compiled.record_json(block)
    assert made is None or made == dagjson.to_json(cbor.decode(block))
    damaged = damage(block, data)
    made = compiled.record_json(damaged)
    if made is not None:
        assert made == dagjson.to_json(cbor.decode(damaged))


@pytest.mark.parametrize(
    ("record", "accepted"),
    [
        ({"a": 2**63 - 1, "b": -(2**63), "c": [0, 23, 24, 255, 256, 65_536, 2**32]}, True),
        ({'\x00\x1f\x7f"\\/\b\f\n\r\t': "ü€😀"}, True),
        ({"link": Cid.of(b""), "bytes": b"\x00\xff"}, True),
        ({"deep": [[[[[[[[{"x": {}}]]]]]]]]}, True),
        ([], False),
        ("text", False),
        ({"long": "x" * 70_000}, False),
    ],
)
def test_chosen_records(record: Any, accepted: bool) -> None:
    block = cbor.encode(record)
    made = compiled.record_json(block)
    assert (made is not None) is accepted
    if accepted:
        assert made == dagjson.to_json(record)
        assert dagjson.record_to_json(block) == made


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\xa1\x61a\x18\x01",  # not in the shortest form
        b"\xa1\x61a\x1b\xff\xff\xff\xff\xff\xff\xff\xff",  # more than 63 bits
        b"\xa1\x61a\x3b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa1\x61a\xfb\x3f\xf0\0\0\0\0\0\0",  # a float
        b"\xa1\x61a\xf7",  # undefined
        b"\xa1\x01\x01",  # a key that is no text
        b"\xa2\x61a\x01\x61a\x02",  # a key twice
        b"\xa2\x61b\x01\x61a\x02",  # keys out of order
        b"\xa2\x62aa\x01\x61b\x02",
        b"\xa1\x61a\x61\xff",  # not UTF-8
        b"\xa1\x61a\x62\xed\xa0",
        b"\xa1\x61a\x63\xed\xa0\x80",  # a lone surrogate
        b"\xa1\x61a\x9f\xff",  # of indefinite length
        b"\xbf\xff",
        b"\xa1\x61a\xd8\x2a\x41\x00",  # a link to nothing
        b"\xa1\x61a\xc1\x01",  # another tag
        b"\xa1\x61a\x01\x00",  # more than one item
        b"\xa1\x61a\x7b\x7f\xff\xff\xff\xff\xff\xff\xff",  # lengths beyond all that is there
        b"\xa1\x61a\x9b\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa1\x61a" + b"\x81" * 200 + b"\x00",  # too deep
    ],
)
def test_records_that_are_left_to_the_decoder(block: bytes) -> None:
    assert compiled.record_json(block) is None


@given(st.text(max_size=14) | st.from_regex(r"[2-7a-z]{13}", fullmatch=True))
@settings(max_examples=300)
def test_tids(text: str) -> None:
    value = compiled.tid_value(text)
    assert (value is not None) is (syntax._TID.fullmatch(text) is not None)
    if value is not None:
        assert value == int(text.translate(syntax._TID_DIGITS), 32)
        assert syntax.tid_text(value) == text


USUAL = [
    PLC, f"at://{PLC}/app.bsky.feed.post/3l3qo2vutsw2b", f"at://{PLC}/a.b.c/.", "..", "a.b~_:-",
    "2026-01-28T23:59:59.999Z", "2026-02-29T00:00:00.000Z", str(Cid.of(b"")), "x" * 513,
]  # fmt: skip
identifiers = st.sampled_from(USUAL) | st.text("aA.:/-_~207T", max_size=70)


@given(identifiers, st.integers(0, 80), st.sampled_from(["", *"aZ09./:-_~ ü\U0001f600"]))
@settings(max_examples=1_000)
def test_what_is_usual_is_valid(text: str, at: int, letter: str) -> None:
    """One letter is another one, or gone: whatever is accepted then, the rules accept."""
    checks = [
        (compiled.is_plc, syntax.is_did),
        (compiled.is_usual_rkey, syntax.is_rkey),
        (compiled.is_usual_uri, syntax.is_at_uri),
        (compiled.is_usual_cid, check.is_cid),
        (compiled.is_usual_datetime, datetimes.is_datetime),
    ]
    usual = {accepts for accepts, _ in checks}
    for changed in (text, text[:at] + letter + text[at + 1 :]):
        accepted = [rule for accepts, rule in checks if accepts(changed)]
        with pytest.MonkeyPatch.context() as patch:
            for accepts in usual:
                patch.setattr(compiled, accepts.__name__, lambda _: False)
            assert all(rule(changed) for rule in accepted), changed


@pytest.mark.parametrize(
    ("accepts", "text"),
    [
        (compiled.is_plc, PLC),
        (compiled.is_usual_rkey, "3l3qo2vutsw2b"),
        (compiled.is_usual_rkey, "self"),
        (compiled.is_usual_uri, f"at://{PLC}/app.bsky.feed.post/3l3qo2vutsw2b"),
        (compiled.is_usual_cid, str(Cid.of(b""))),
        (compiled.is_usual_datetime, "2026-12-28T23:59:59.999Z"),
        (compiled.is_usual_datetime, "2026-12-31T23:59:59.999Z"),
        (compiled.is_usual_datetime, "2024-02-29T00:00:00.000Z"),
    ],
)
def test_the_usual_is_accepted(accepts: Callable[[str], bool], text: str) -> None:
    assert accepts(text)
    assert not accepts(text + "\n")
    assert not accepts("")


def test_usual_days_are_those_that_their_month_has() -> None:
    for year in (1, 1900, 2000, 2023, 2024, 2026, 2100, 9999):
        for month in range(1, 13):
            for day in range(1, 32):
                text = f"{year:04d}-{month:02d}-{day:02d}T12:00:00.000Z"
                exists = day <= calendar.monthrange(year, month)[1]
                assert compiled.is_usual_datetime(text) == exists, text
