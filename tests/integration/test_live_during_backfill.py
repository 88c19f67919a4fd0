"""Live traffic of a repo while it is brought in: the tables end as the repo does."""

import random
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import parse_commit, sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.mst import Tree
from rsky_pipeline.database.connection import Database
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import read_entry
from rsky_pipeline.repos.entries import closing_entry, create_entries, delete_entries
from rsky_pipeline.repos.repo import Repo, list_paths
from rsky_pipeline.repos.stored import absent_paths
from rsky_pipeline.streams.event import EVENT_FIELD, encode_record_event
from tests.integration.indexer.kit import did_of, rev_of, time_of

DID = did_of("alice")
POST = "app.bsky.feed.post"
KEY = PrivateKey.from_seed("k256", b"alice")
COLLECTIONS = registry.load()
RKEYS = [rev_of(1_000 + number) for number in range(6)]


class Life:
    """A repo commit by commit, as the account's host knows it."""

    def __init__(self, chance: random.Random, length: int) -> None:
        self.states: list[dict[str, bytes]] = [{}]
        self.events: list[bytes] = []
        for number in range(1, length + 1):
            state = dict(self.states[-1])
            rkey = chance.choice(RKEYS)
            if rkey in state and chance.random() < 0.5:
                del state[rkey]
                self.events.append(self._event("delete", number, rkey))
            else:
                record = {"$type": POST, "text": f"{number}", "createdAt": time_of(number)}
                action = "update" if rkey in state else "create"
                state[rkey] = cbor.encode(record)
                self.events.append(self._event(action, number, rkey, record))
            self.states.append(state)

    def repo(self, number: int) -> Repo:
        """Return the repo as its host serves it after so many commits."""
        records = self.states[number]
        tree = Tree.build({f"{POST}/{rkey}": Cid.of(block) for rkey, block in records.items()})
        commit = sign_commit(DID, rev_of(number), tree.root, KEY)
        root = Cid.of(commit)
        blocks = {root: commit, **dict(tree.blocks())}
        blocks |= {Cid.of(block): block for block in records.values()}
        return Repo(root, parse_commit(commit), blocks, size=100_000)

    def _event(self, action: str, number: int, rkey: str, record: object = None) -> bytes:
        return encode_record_event(
            action,  # type: ignore[arg-type]
            seq=number, time=time_of(number), did=DID, commit=str(Cid.of(b"%d" % number)),
            rev=rev_of(number), collection=POST, rkey=rkey,
            cid=None if record is None else str(Cid.of(cbor.encode(record))), record=record,
        )  # fmt: skip


@pytest.fixture
def database(schema_database: str) -> Iterator[Database]:
    with closing(Database.connect(schema_database, name="test")) as connection:
        yield connection


def apply(database: Database, events: list[bytes], chance: random.Random) -> None:
    """Apply events in batches of any size."""
    while events:
        size = chance.randint(1, 6)
        batch, events = events[:size], events[size:]
        readings = [read_entry({EVENT_FIELD: item}, COLLECTIONS) for item in batch]
        apply_batch(database, readings, COLLECTIONS)


def brought_in(repo: Repo, database: Database) -> list[bytes]:
    """Return what the backfiller queues for a repo, by what is stored now."""
    paths = list_paths(repo)
    entries = delete_entries(repo, absent_paths(database, paths), time_of(1))
    for chunk in create_entries(repo, paths, (POST,), time_of(1)):
        entries += chunk.entries
    return [entry.payload for entry in [*entries, closing_entry(repo, time_of(1))]]


def merged(left: list[bytes], right: list[bytes], chance: random.Random) -> list[bytes]:
    """Return both in any order that keeps each one's own."""
    sides = [False] * len(left) + [True] * len(right)
    chance.shuffle(sides)
    queues = (iter(left), iter(right))
    return [next(queues[side]) for side in sides]


@settings(
    max_examples=25, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(seed=st.integers(0, 2**32))
def test_the_tables_end_as_the_repo_does(
    database: Database, schema_database: str, seed: int
) -> None:
    chance = random.Random(seed)
    for table in ("record", "post", "post_agg", "profile_agg", "actor", "actor_sync", "feed_item",
                  "rsky_pipeline.tombstone", "rsky_pipeline.repo_floor"):  # fmt: skip
        database.execute(f"DELETE FROM {table}")
    life = Life(chance, chance.randint(1, 25))
    last = len(life.events)
    # The host serves the repo as it was after some commit; some that came before it were missed.
    snapshot, looked = sorted(chance.choices(range(last + 1), k=2))[::-1]
    seen = [event for event in life.events[:looked] if chance.random() < 0.6]
    apply(database, seen, chance)
    with closing(Database.connect(schema_database, name="look-ups")) as own:
        history = brought_in(life.repo(snapshot), own)
    apply(database, merged(life.events[looked:], history, chance), chance)
    rows: dict[str, str] = dict(database.query("SELECT uri, cid FROM record"))
    expected = {
        f"at://{DID}/{POST}/{rkey}": str(Cid.of(block)) for rkey, block in life.states[-1].items()
    }
    assert rows == expected
    assert {uri for (uri,) in database.query("SELECT uri FROM post")} == expected.keys()
