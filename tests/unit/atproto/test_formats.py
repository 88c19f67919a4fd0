"""CARs, commits, keys, identifiers and datetimes."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multiformats import CID

from rsky_pipeline.atproto import syntax
from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.atproto.commit import parse_commit, sign_commit, verify_commit
from rsky_pipeline.atproto.crypto import Curve, PrivateKey, PublicKey
from rsky_pipeline.atproto.datetimes import normalize
from rsky_pipeline.atproto.errors import InvalidData
from rsky_pipeline.atproto.identity import parse_did_document
from rsky_pipeline.atproto.mst import walk
from tests.data import test_data


@given(st.binary(max_size=20), st.sampled_from([0x71, RAW]))
@settings(max_examples=30, deadline=None)
def test_cids_agree_with_the_reference_library(block: bytes, codec: int) -> None:
    cid = Cid.of(block, codec)
    assert str(CID.decode(str(cid))) == str(cid)
    assert bytes(CID.decode(str(cid))) == cid
    assert Cid.parse(str(cid)) == cid


@pytest.mark.parametrize(
    ("name", "records"),
    [("repo-stream/empty.car", 0), ("repo-stream/tiny.car", 8), ("rsky/valid_repo.car", 6)],
)
def test_real_repos(name: str, records: int) -> None:
    car = read_car(test_data(f"fixtures/{name}").read_bytes())
    commit = parse_commit(car.blocks[car.roots[0]])
    assert len(list(walk(car.blocks, commit.data))) == records


def test_recorded_repos_verify_completely() -> None:
    folder = test_data("recorded/cars")
    documents = json.loads(test_data("recorded/dids.json").read_text())
    files = sorted(folder.glob("*.car"))
    assert len(files) == 40
    for path in files:
        did = path.stem.replace("_", ":")
        car = read_car(path.read_bytes())
        commit = parse_commit(car.blocks[car.roots[0]])
        key = parse_did_document(documents[did], did).signing_key
        assert key is not None
        assert commit.did == did
        assert verify_commit(commit, key)
        for _, cid in walk(car.blocks, commit.data):
            assert cid in car.blocks


def test_old_commits_are_refused() -> None:
    car = read_car(test_data("fixtures/indigo/repos/fakermaker.repo.car").read_bytes())
    with pytest.raises(InvalidData, match="commit_version"):
        parse_commit(car.blocks[car.roots[0]])


def test_a_good_signature_of_another_account_is_seen() -> None:
    folder = test_data("fixtures/indigo/repos")
    car = read_car((folder / "greenground.repo.car").read_bytes())
    commit = parse_commit(car.blocks[car.roots[0]])
    document = json.loads((folder / "greenground.didDoc.json").read_text())
    key = parse_did_document(document, document["id"]).signing_key
    assert key is not None
    assert verify_commit(commit, key)
    assert commit.did != document["id"]


@pytest.mark.parametrize("curve", ["k256", "p256"])
def test_signed_commits_verify(curve: Curve) -> None:
    key = PrivateKey.from_seed(curve, b"seed")
    other = PrivateKey.from_seed(curve, b"other")
    block = sign_commit("did:plc:abc", "3jzfcijpj2z2a", Cid.of(b"tree"), None, key)
    commit = parse_commit(block)
    assert verify_commit(commit, key.public)
    assert not verify_commit(commit, other.public)
    assert PublicKey.parse(key.did_key) == key.public


def test_signature_fixtures() -> None:
    path = test_data("fixtures/interop/crypto/signature-fixtures.json")
    from base64 import b64decode

    for case in json.loads(path.read_text()):
        message = b64decode(case["messageBase64"] + "==")
        signature = b64decode(case["signatureBase64"] + "==")
        for key in (
            PublicKey.parse(case["publicKeyDid"]),
            PublicKey.parse(case["publicKeyMultibase"], case["didDocSuite"]),
        ):
            assert key.verify(message, signature) == case["validSignature"], case["comment"]


def _cases(path: Path) -> list[str]:
    lines = path.read_text().split("\n")
    return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("did", syntax.is_did),
        ("handle", syntax.is_handle),
        ("nsid", syntax.is_nsid),
        ("recordkey", syntax.is_rkey),
        ("tid", syntax.is_tid),
    ],
)
def test_syntax_vectors(name: str, check: object) -> None:
    assert callable(check)
    for expected in ("valid", "invalid"):
        for case in _cases(test_data(f"fixtures/interop/syntax/{name}_syntax_{expected}.txt")):
            assert check(case) == (expected == "valid"), (name, case)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("2024-05-06T07:08:09.123Z", "2024-05-06T07:08:09.123Z"),
        ("2024-05-06T21:21:06.123456Z", "2024-05-06T21:21:06.123Z"),
        ("2024-05-06T21:21:06+09:00", "2024-05-06T12:21:06.000Z"),
        ("2999-01-01T00:00:00.000Z", "2999-01-01T00:00:00.000Z"),
        ("0001-01-01T00:00:00.000Z", "0001-01-01T00:00:00.000Z"),
        ("2024-02-30T00:00:00Z", "2024-03-01T00:00:00.000Z"),
        ("2023-11-01T10:11:12.123456", "2023-11-01T10:11:12.123Z"),
        ("0001-01-01T00:00:00+01:00", None),
        ("2024-13-01T00:00:00Z", None),
        ("2024-01-01T25:00:00Z", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_datetimes(text: str, normal: str | None) -> None:
    assert normalize(text) == normal


def test_tids_are_ordered_as_their_times() -> None:
    times = [0, 1, 1_700_000_000_000_000, 1_700_000_000_000_001, 2**53 - 1]
    tids = [syntax.tid_from(time, 7) for time in times]
    assert tids == sorted(tids)
    assert all(syntax.is_tid(tid) for tid in tids)
    assert [syntax.tid_microseconds(tid) for tid in tids] == times
