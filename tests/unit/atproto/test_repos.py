"""Whole repos and commits: recorded ones, ones with defects, and ones we sign."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.car import Car, read_car, write_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import parse_commit, sign_commit, verify_commit
from rsky_pipeline.atproto.crypto import Curve, PrivateKey, PublicKey
from rsky_pipeline.atproto.errors import IncompleteTreeError, InvalidDataError
from rsky_pipeline.atproto.identity import parse_did_document
from rsky_pipeline.atproto.mst import Tree, walk
from tests.data import test_data

DID, REV = "did:plc:ewvi7nxzyoun6zhxrhs64oiz", "3jzfcijpj2z2a"
LEGACY = "zQYEBzXeuTM9UR3rfvNag6L3RNAs5pQZyYPsomTsgQhsxLdEgCrPTLgFna8yqCnxPpNT7DBk6Ym3dgPKNu86vt9GR"


@pytest.mark.parametrize("curve", ["k256", "p256"])
def test_signed_commits_verify(curve: Curve) -> None:
    key, other = PrivateKey.from_seed(curve, b"seed"), PrivateKey.from_seed(curve, b"other")
    new = cbor.decode(sign_commit(DID, REV, Cid.of(b"tree"), key))
    for prev in (None, Cid.of(b"before")):  # the second as in repos of years ago
        fields = {name: new[name] for name in new if name != "sig"} | {"prev": prev}
        commit = parse_commit(cbor.encode(fields | {"sig": key.sign(cbor.encode(fields))}))
        assert (commit.did, commit.rev, commit.data) == (DID, REV, Cid.of(b"tree"))
        assert (commit.prev, commit.version) == (prev, 3)
        assert verify_commit(commit, key.public)
        assert not verify_commit(commit, other.public)


GOOD: dict[str, Any] = cbor.decode(
    sign_commit(DID, REV, Cid.of(b"tree"), PrivateKey.from_seed("k256", b"seed"))
)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "commit_version"),
        (GOOD | {"version": 2}, "commit_version"),
        (GOOD | {"version": 4}, "commit_version"),
        (GOOD | {"more": None}, "commit_fields"),
        ({key: GOOD[key] for key in GOOD if key != "prev"}, "commit_fields"),
        (GOOD | {"did": "nobody"}, "commit_fields"),
        (GOOD | {"did": None}, "commit_fields"),
        (GOOD | {"rev": "today"}, "invalid_rev"),
        (GOOD | {"data": None}, "commit_fields"),
        (GOOD | {"data": bytes(Cid.of(b"tree"))}, "commit_fields"),
        (GOOD | {"prev": "x"}, "commit_fields"),
        (GOOD | {"sig": "x"}, "commit_fields"),
        (GOOD | {"sig": Cid.of(b"")}, "commit_fields"),
    ],
)
def test_malformed_commits_are_refused(value: object, reason: str) -> None:
    with pytest.raises(InvalidDataError) as error:
        parse_commit(cbor.encode(value))
    assert error.value.reason == reason


def test_commits_must_be_canonical() -> None:
    block = cbor.encode(GOOD)
    assert block.endswith(b"gversion\x03")
    with pytest.raises(InvalidDataError, match="not_canonical"):
        parse_commit(block[:-1] + b"\x18\x03")


@pytest.mark.parametrize(
    ("name", "did", "rev", "records"),
    [
        ("repo-stream/empty.car", None, None, 0),
        ("repo-stream/tiny.car", "did:plc:7hptvnhdyeu53xp6rz7e42iy", None, 8),
        ("rsky/valid_repo.car", "did:plc:r7fdhqmw3h2cifeakw5hmvy6", "3lhmydhwizp2d", 6),
        ("jetstream/corpus/repo.car", "did:plc:53iucmf5ldftgqyf2ac7hmhd", "3migo7fijwi2k", 23),
    ],
)
def test_real_repos(name: str, did: str | None, rev: str | None, records: int) -> None:
    car = read_car(test_data(f"fixtures/{name}").read_bytes())
    commit = parse_commit(car.blocks[car.roots[0]])
    assert commit.did == (did or commit.did)
    assert commit.rev == (rev or commit.rev)
    pairs = list(walk(car.blocks, commit.data))
    assert len(pairs) == records
    assert all(cid in car.blocks for _, cid in pairs)
    assert Tree.build(dict(pairs)).root == commit.data


def test_a_repo_as_another_implementation_lists_it() -> None:
    folder = test_data("fixtures/jetstream/corpus")
    car = read_car((folder / "repo.car").read_bytes())
    commit = parse_commit(car.blocks[car.roots[0]])
    lines = (folder / "car_expected_records.tsv").read_text().splitlines()
    assert [f"{path}\t{cid}" for path, cid in walk(car.blocks, commit.data)] == sorted(lines)
    expected = (folder / "car_expected_commit.txt").read_text()
    assert {commit.did, commit.rev, str(commit.data)} <= set(expected.split())


def _shuffled(blocks: list[tuple[Cid, bytes]]) -> list[tuple[Cid, bytes]]:
    return Random(1).sample(blocks, len(blocks))


@pytest.mark.parametrize(
    "change",
    [
        _shuffled,
        lambda blocks: blocks + blocks,
        lambda blocks: [(Cid.of(b"\x00"), b"\x00"), *blocks, (Cid.of(b"\xff"), b"\xff")],
    ],
    ids=["shuffled", "twice", "with others"],
)
def test_the_order_and_company_of_blocks_do_not_matter(
    change: Callable[[list[tuple[Cid, bytes]]], list[tuple[Cid, bytes]]],
) -> None:
    car = read_car(test_data("fixtures/rsky/valid_repo.car").read_bytes())
    data = parse_commit(car.blocks[car.roots[0]]).data
    other = read_car(write_car(car.roots, change(list(car.blocks.items()))))
    assert list(walk(other.blocks, data)) == list(walk(car.blocks, data))


def test_a_repo_that_lacks_any_node_is_incomplete() -> None:
    car = read_car(test_data("fixtures/rsky/valid_repo.car").read_bytes())
    data = parse_commit(car.blocks[car.roots[0]]).data
    nodes = [cid for cid, block in car.blocks.items() if block.startswith(b"\xa2ae")]
    assert len(nodes) > 1
    for cid in nodes:
        rest = {key: block for key, block in car.blocks.items() if key != cid}
        with pytest.raises(IncompleteTreeError):
            list(walk(rest, data))


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
        assert all(cid in car.blocks for _, cid in walk(car.blocks, commit.data))


def test_a_good_signature_of_another_account_is_seen() -> None:
    folder = test_data("fixtures/indigo/repos")
    car = read_car((folder / "greenground.repo.car").read_bytes())
    commit = parse_commit(car.blocks[car.roots[0]])
    document = json.loads((folder / "greenground.didDoc.json").read_text())
    key = parse_did_document(document, document["id"]).signing_key
    assert key is not None
    assert commit.prev is not None
    assert verify_commit(commit, key)
    assert commit.did != document["id"]


def _old_commit(car: Car) -> tuple[bytes, bytes, Cid]:
    """Return what was signed, the signature, and the tree of a version 2 commit."""
    with pytest.raises(InvalidDataError, match="commit_version"):
        parse_commit(car.blocks[car.roots[0]])
    value = cbor.decode(car.blocks[car.roots[0]])
    signature = value.pop("sig")
    return cbor.encode(value), signature, value["data"]


def _key_of(path: Path) -> PublicKey:
    document = json.loads(path.read_text())
    key = parse_did_document(document, document["id"]).signing_key
    assert key is not None
    return key


@pytest.mark.parametrize(
    ("name", "document", "records", "valid"),
    [
        ("fakermaker.repo.car", "fakermaker.didDoc.json", 142, False),  # high-S
        ("paul_staging.repo.car", "paul_staging.didDoc.json", 185, True),
        ("divy.repo", None, 6, True),
        (
            "bafyreieovfuizojpw3zresz7sx3nk4trm2by23pt5rxbey3jme4uo5ogiu.car",
            "did_plc_z5vnbioquyhivxirw3bbljmu.didDoc.json",
            None,
            False,
        ),
    ],
)
def test_repos_of_version_2(
    name: str, document: str | None, records: int | None, valid: bool
) -> None:
    folder = test_data("fixtures/indigo/repos")
    car = read_car((folder / name).read_bytes())
    message, signature, data = _old_commit(car)
    if document is None:
        key = PublicKey.parse(LEGACY, "EcdsaSecp256k1VerificationKey2019")
    else:
        key = _key_of(folder / document)
    assert key.verify(message, signature) is valid
    pairs = dict(walk(car.blocks, data))
    assert len(pairs) == (records or len(pairs)) > 0
    assert Tree.build(pairs).root == data
