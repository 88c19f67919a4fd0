"""CAR files of repos of any size, made from the events of `traffic` and kept between runs."""

import shutil
from pathlib import Path

import orjson

from rsky_pipeline.atproto import cbor, dagjson
from rsky_pipeline.atproto.car import write_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.mst import Tree
from rsky_pipeline.atproto.syntax import tid_from
from tests.benchmarks.filled import FOLDER
from tests.benchmarks.traffic import FIRST_MICROS, Traffic


def repo_files(accounts: int, records: int) -> Path:
    """Return a folder of the repos of so many accounts with so many records together.

    The largest has a fiftieth of the records, half of the accounts have a few: as on the network.
    """
    folder = FOLDER / f"cars-{accounts}-{records}"
    if folder.exists():
        return folder
    repos: dict[str, dict[str, bytes]] = {}
    for payload in Traffic(accounts, seed=accounts).events(0, records, historical=True):
        event = orjson.loads(payload)
        path = f"{event['collection']}/{event['rkey']}"
        block = cbor.encode(dagjson.from_json(event["record"]))
        repos.setdefault(event["did"], {})[path] = block
    unfinished = folder.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    key, rev = PrivateKey.from_seed("k256", b"bench"), tid_from(FIRST_MICROS + records * 1_000)
    for did, items in repos.items():
        (unfinished / f"{did.rpartition(':')[2]}.car").write_bytes(make_car(did, rev, items, key))
    return unfinished.rename(folder)


def make_car(did: str, rev: str, records: dict[str, bytes], key: PrivateKey) -> bytes:
    """Return a repo of these records, by path, in the order in which a PDS sends it."""
    tree = Tree.build({path: Cid.of(block) for path, block in records.items()})
    commit = sign_commit(did, rev, tree.root, key)
    blocks = [(Cid.of(commit), commit), *tree.blocks()]
    return write_car(
        [Cid.of(commit)], [*blocks, *((Cid.of(block), block) for block in records.values())]
    )
