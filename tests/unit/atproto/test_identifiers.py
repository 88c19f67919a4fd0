"""Identifiers and CIDs against published lists and a reference library."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multiformats import CID

from rsky_pipeline.atproto import syntax
from rsky_pipeline.atproto.cid import DAG_CBOR, RAW, Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.syntax import AtUri, parse_at_uri, split_path
from tests.data import test_data


@given(st.binary(max_size=20), st.sampled_from([DAG_CBOR, RAW]))
@settings(max_examples=60, deadline=None)
def test_cids_agree_with_the_reference_library(block: bytes, codec: int) -> None:
    cid = Cid.of(block, codec)
    assert CID.decode(str(cid)) == CID("base32", 1, codec, bytes(cid[2:]))
    assert bytes(CID.decode(str(cid))) == cid
    assert Cid.parse(str(cid)) == Cid.from_bytes(bytes(cid)) == cid
    assert cid.codec == codec


@given(st.binary(min_size=32, max_size=32))
@settings(deadline=None)
def test_text_of_any_digest(digest: bytes) -> None:
    cid = Cid(b"\x01\x71\x12\x20" + digest)
    assert str(cid) == str(CID("base32", 1, "dag-cbor", bytes(cid[2:])))


GOOD = str(Cid.of(b"x"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        GOOD.upper(),
        GOOD[:-1],
        GOOD + "a",
        "z" + GOOD[1:],
        GOOD[:-1] + "1",
        GOOD[:-1] + "é",
        GOOD[:-1] + chr(ord(GOOD[-1]) + 1),  # the same bytes but for two bits that must be zero
        "QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR",
        "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi",  # dag-pb
    ],
)
def test_other_texts_are_no_cids(text: str) -> None:
    with pytest.raises(InvalidDataError):
        Cid.parse(text)


@pytest.mark.parametrize("data", [b"", b"\x01" * 36, bytes(Cid.of(b"")) + b"x", Cid.of(b"")[:35]])
def test_other_bytes_are_no_cids(data: bytes) -> None:
    with pytest.raises(InvalidDataError):
        Cid.from_bytes(data)


@pytest.mark.parametrize("text", ["bafyreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabwq"])
def test_a_cid_is_its_bytes(text: str) -> None:
    cid = Cid.parse(text)
    assert cid == bytes(cid)
    assert hash(cid) == hash(bytes(cid))
    assert repr(cid) == f"Cid({text})"
    assert {bytes(cid): 1}[cid] == 1


def cases(name: str) -> list[str]:
    lines = test_data(f"fixtures/interop/syntax/{name}.txt").read_text().split("\n")
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _is_at_identifier(text: str) -> bool:
    return syntax.is_did(text) or syntax.is_handle(text)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("did", syntax.is_did),
        ("handle", syntax.is_handle),
        ("atidentifier", _is_at_identifier),
        ("nsid", syntax.is_nsid),
        ("recordkey", syntax.is_rkey),
        ("tid", syntax.is_tid),
        ("aturi", syntax.is_at_uri),
    ],
)
def test_published_lists(name: str, check: Callable[[str], bool]) -> None:
    for expected in (True, False):
        found = cases(f"{name}_syntax_{'valid' if expected else 'invalid'}")
        assert found
        for case in found:
            assert check(case) is expected, case


@given(st.text(max_size=40))
@settings(max_examples=100)
def test_a_line_end_is_no_part_of_an_identifier(text: str) -> None:
    for check in (syntax.is_did, syntax.is_handle, syntax.is_nsid, syntax.is_rkey, syntax.is_tid):
        assert not check(text + "\n")
        assert not check(text + "\u0661")


@given(
    st.integers(1_500_000_000_000_000, 4_000_000_000_000_000),
    st.integers(1, 10**12),
    st.lists(st.integers(0, 1_023), min_size=2, max_size=2),
)
def test_revs_with_shortened_clock_ids_are_ordered_by_time(
    moment: int, later: int, clocks: list[int]
) -> None:
    forms = [
        {syntax.tid_from(time, clock)[: 11 + length] for length in range(3)}
        for time, clock in zip((moment, moment + later), clocks, strict=True)
    ]
    for rev in forms[0] | forms[1]:
        assert syntax.is_rev(rev)
        assert syntax.is_tid(rev) is (len(rev) == 13)
    assert {syntax.rev_microseconds(rev) for rev in forms[0]} == {moment}
    assert max(forms[0]) < min(forms[1])


@pytest.mark.parametrize("text", ["", "3jzfcijpj2", "zzzzzzzzzzzz", "3jzfcijpj2z2a2", "1" * 13])
def test_texts_that_are_no_rev(text: str) -> None:
    assert not syntax.is_rev(text)


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "check", [syntax.is_handle, syntax.is_nsid, syntax.is_did, syntax.is_at_uri]
)
def test_no_text_takes_long(check: Callable[[str], bool]) -> None:
    for text in (
        "a-" * 5_000,
        "a." * 5_000,
        "a" * 10_000,
        "at://" + "a.b" * 3_000 + "/",
        ":" * 9_000,
    ):
        assert not check(text)
        assert not check(text[:250] + "!")


def test_paths() -> None:
    assert split_path("app.bsky.feed.post/3jzfcijpj2z2a") == ("app.bsky.feed.post", "3jzfcijpj2z2a")
    for path in (
        "",
        "/",
        "a.b.c",
        "a.b.c/",
        "/x",
        "a.b.c/x/y",
        "a.b.c/.",
        "a.b/x",
        "a.b.c/é",
        "a.b.c//x",
    ):
        assert split_path(path) is None


def test_uris_of_records() -> None:
    assert parse_at_uri("at://did:plc:x/a.b.c/d") == AtUri("did:plc:x", "a.b.c", "d")
    for text in ("", "at://did:plc:x", "at://did:plc:x/a.b.c", "at://x/y/z/", "https://x/y/z"):
        assert parse_at_uri(text) is None


def test_tids_are_ordered_as_their_times() -> None:
    times = [0, 1, 1_700_000_000_000_000, 1_700_000_000_000_001, 2**53 - 1]
    tids = [syntax.tid_from(time, 7) for time in times]
    assert tids == sorted(tids)
    assert all(syntax.is_tid(tid) for tid in tids)
    assert [syntax.tid_microseconds(tid) for tid in tids] == times
    assert syntax.tid_from(0, 0) == "2222222222222"
    assert syntax.tid_from(2**53 - 1, 1_023) == "bzzzzzzzzzzzz"
