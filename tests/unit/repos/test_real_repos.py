"""Every real CAR gives exactly its records or is refused for the right reason, as do variants."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.car import CarReader, read_car, write_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import parse_commit, sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.mst import Tree
from rsky_pipeline.repos.blocks import Blocks, Budget
from rsky_pipeline.repos.entries import closing_entry, create_entries
from rsky_pipeline.repos.repo import Repo, RepoError, list_paths, open_repo
from tests.data import test_data
from tests.unit.atproto.dagjson_values import from_json

REV = "3jzfcijpj2z2a"
TIME = "2026-01-01T00:00:00.000Z"
Pairs = list[tuple[Cid, bytes]]
GOOD = [
    ("repo-stream/empty.car", "", 0),
    ("repo-stream/tiny.car", "did:plc:7hptvnhdyeu53xp6rz7e42iy", 8),
    ("rsky/valid_repo.car", "did:plc:r7fdhqmw3h2cifeakw5hmvy6", 6),
    ("jetstream/corpus/repo.car", "did:plc:53iucmf5ldftgqyf2ac7hmhd", 23),
]


class Loader:
    """Reads CARs as a download does, in parts, and opens the repos."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: list[Blocks] = []

    def __call__(self, data: bytes, did: str, *, on_disk: bool = False) -> Repo:
        blocks = Blocks(Budget(2**24), Budget(2**24), self._folder)
        self._open.append(blocks)
        if on_disk:
            blocks.move_to_disk()
        reader = CarReader()
        try:
            for start in range(0, len(data), 700):
                blocks.add(reader.feed(data[start : start + 700]))
            roots = reader.finish()
        except InvalidDataError as error:
            raise RepoError("invalid", "invalid_car", str(error)) from error
        return open_repo(roots, blocks, did, "", len(data))

    def close(self) -> None:
        for blocks in self._open:
            blocks.close()


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Loader]:
    loader = Loader(tmp_path)
    yield loader
    loader.close()


def records(repo: Repo) -> dict[str, tuple[str, Any]]:
    """Return CID and content of every record that is queued, by path."""
    found = {}
    paths = list_paths(repo)
    collections = tuple({path.partition("/")[0] for path, _ in paths})
    for chunk in create_entries(repo, paths, collections, TIME):
        for entry in chunk.entries:
            event = json.loads(entry.payload)
            assert (event["type"], event["did"]) == ("create", repo.commit.did)
            assert event["rev"] == repo.commit.rev
            path = f"{event['collection']}/{event['rkey']}"
            assert path not in found
            found[path] = (event["cid"], event["record"])
    return found


def real_dids(name: str, did: str) -> str:
    car = read_car(test_data(f"fixtures/{name}").read_bytes())
    return did or parse_commit(car.blocks[car.roots[0]]).did


@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize(("name", "did", "count"), GOOD, ids=[item[0] for item in GOOD])
def test_good_repos_give_exactly_their_records(
    name: str, did: str, count: int, on_disk: bool, load: Loader
) -> None:
    data = test_data(f"fixtures/{name}").read_bytes()
    repo = load(data, real_dids(name, did), on_disk=on_disk)
    found = records(repo)
    assert len(found) == count
    # The tree is a function of its paths and CIDs: this proves that all are there, and no others.
    assert Tree.build({path: Cid.parse(cid) for path, (cid, _) in found.items()}).root == (
        repo.commit.data
    )
    for cid, record in found.values():
        assert cbor.encode(from_json(record)) == repo.blocks.get(Cid.parse(cid))
    closing = json.loads(closing_entry(repo, TIME).payload)
    assert (closing["type"], closing["rev"], closing["complete"]) == ("repo", repo.commit.rev, True)


def test_a_repo_is_as_another_implementation_lists_it(load: Loader) -> None:
    folder = test_data("fixtures/jetstream/corpus")
    repo = load((folder / "repo.car").read_bytes(), GOOD[3][1])
    lines = (folder / "car_expected_records.tsv").read_text().splitlines()
    assert sorted(f"{path}\t{cid}" for path, (cid, _) in records(repo).items()) == sorted(lines)


def test_all_recorded_repos_give_exactly_their_records(load: Loader) -> None:
    files = sorted(test_data("recorded/cars").glob("*.car"))
    assert len(files) == 40
    for number, file in enumerate(files):
        did = file.stem.replace("_", ":")
        repo = load(file.read_bytes(), did, on_disk=number % 2 == 1)
        found = records(repo)
        tree = Tree.build({path: Cid.parse(cid) for path, (cid, _) in found.items()})
        assert tree.root == repo.commit.data


DOCUMENTS = {"greenground": "greenground.didDoc.json", "fakermaker": "fakermaker.didDoc.json",
             "paul_staging": "paul_staging.didDoc.json",
             "bafyreieov": "did_plc_z5vnbioquyhivxirw3bbljmu.didDoc.json"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("greenground.repo.car", "wrong_did"),  # well signed, by a key that accounts shared
        ("fakermaker.repo.car", "invalid_commit"),  # version 2; its signature is high-S too
        ("paul_staging.repo.car", "invalid_commit"),  # version 2
        ("divy.repo", "invalid_commit"),  # version 2
        ("bafyreieovfuizojpw3zresz7sx3nk4trm2by23pt5rxbey3jme4uo5ogiu.car", "invalid_commit"),
    ],
)
def test_what_is_to_be_refused_is_refused(name: str, reason: str, load: Loader) -> None:
    folder = test_data("fixtures/indigo/repos")
    data = (folder / name).read_bytes()
    known = next((file for prefix, file in DOCUMENTS.items() if name.startswith(prefix)), None)
    if known is not None:
        did = json.loads((folder / known).read_text())["id"]
    else:
        car = read_car(data)
        did = cbor.decode(car.blocks[car.roots[0]])["did"]
    with pytest.raises(RepoError) as error:
        list_paths(load(data, did))
    assert (error.value.kind, error.value.reason) == ("invalid", reason)


def test_a_slice_of_a_repo_is_incomplete(load: Loader) -> None:
    data = test_data("fixtures/indigo/repos/repo_slice.car").read_bytes()
    car = read_car(data)
    old = cbor.decode(car.blocks[car.roots[0]])
    with pytest.raises(RepoError, match="version") as error:
        load(data, old["did"])
    assert error.value.reason == "invalid_commit"
    # Its commit is of version 2, which is refused first; with one of today the tree is.
    block = sign_commit(old["did"], REV, old["data"], PrivateKey.from_seed("k256", b"x"))
    again = write_car([Cid.of(block)], [(Cid.of(block), block), *car.blocks.items()])
    with pytest.raises(RepoError) as error:
        list_paths(load(again, old["did"]))
    assert error.value.reason == "incomplete"


VARIANTS: dict[str, Callable[[Pairs], Pairs]] = {
    "shuffled": lambda pairs: Random(1).sample(pairs, len(pairs)),
    "duplicated": lambda pairs: pairs + pairs[::-1],
    "superfluous": lambda pairs: [(Cid.of(b"\x00"), b"\x00"), *pairs, (Cid.of(b"\xff"), b"\xff")],
}


@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("name", "did", "count"), GOOD, ids=[item[0] for item in GOOD])
def test_order_and_company_of_blocks_change_nothing(
    name: str, did: str, count: int, variant: str, on_disk: bool, load: Loader
) -> None:
    data = test_data(f"fixtures/{name}").read_bytes()
    did, car = real_dids(name, did), read_car(data)
    changed = write_car(car.roots, VARIANTS[variant](list(car.blocks.items())))
    repo = load(changed, did, on_disk=on_disk)
    assert records(repo) == records(load(data, did))


@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize(("name", "did", "count"), GOOD, ids=[item[0] for item in GOOD])
def test_a_repo_that_lacks_any_block_is_never_a_short_repo(
    name: str, did: str, count: int, on_disk: bool, load: Loader
) -> None:
    data = test_data(f"fixtures/{name}").read_bytes()
    did, car = real_dids(name, did), read_car(data)
    repo = load(data, did)
    needed = {repo.root, repo.commit.data, *(cid for _, cid in list_paths(repo))}
    nodes = {cid for cid, block in car.blocks.items() if block.startswith(b"\xa2ae")}
    for missing in needed | nodes:
        rest = [pair for pair in car.blocks.items() if pair[0] != missing]
        with pytest.raises(RepoError) as error:
            list_paths(load(write_car(car.roots, rest), did, on_disk=on_disk))
        assert error.value.reason == "incomplete"


@pytest.mark.parametrize(("name", "did", "count"), GOOD, ids=[item[0] for item in GOOD])
def test_a_truncated_repo_is_refused_wherever_it_was_cut(
    name: str, did: str, count: int, load: Loader
) -> None:
    data = test_data(f"fixtures/{name}").read_bytes()
    did = real_dids(name, did)
    for length in range(0, len(data), max(1, len(data) // 150)):
        with pytest.raises(RepoError) as error:
            list_paths(load(data[:length], did))
        assert error.value.reason in {"incomplete", "invalid_car"}


def test_a_repo_that_names_its_records_again_and_again_is_refused(load: Loader) -> None:
    """A small file must not become a large stream: one big record at very many paths."""
    did, key = "did:plc:" + "a" * 24, PrivateKey.from_seed("k256", b"repeat")
    block = cbor.encode({"$type": "app.bsky.feed.post", "text": "x" * 100_000})
    tree = Tree.build({f"app.bsky.feed.post/{n:013d}": Cid.of(block) for n in range(2_000)})
    commit = sign_commit(did, REV, tree.root, key)
    blocks = [(Cid.of(commit), commit), *tree.blocks(), (Cid.of(block), block)]
    repo = load(write_car([Cid.of(commit)], blocks), did)
    with pytest.raises(RepoError) as refused:
        list_paths(repo)
    assert (refused.value.kind, refused.value.reason) == ("invalid", "invalid_tree")
    assert "too many paths" in str(refused.value)
