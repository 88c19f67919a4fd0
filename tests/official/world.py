"""An official network with people on it, its own indexer, and our pipeline beside that."""

import contextlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from tests import leftovers, stores
from tests.official import rows
from tests.official.appview import BSYNC_KEY, start_bsync
from tests.official.installation import Installation
from tests.official.kinds import Facts
from tests.official.network import (
    Network,
    Pds,
    Process,
    free_port,
    official_network,
    wait_until,
)
from tests.official.people import People
from tests.official.pipeline import Following, following

OFFICIAL_SCHEMA = "official"
SEEN_TOKEN = "official-seen-token"
ACCOUNTS = 26
ACTS = 600
LABELS = 60
KILL_EVERY = 80  # acts
READ_SECONDS = 120.0
INDEX_SECONDS = 900.0  # for a large repo
TIMES_SEEN = ("indexedAt", "sortAt", "sortedAt")  # of history: the time at which it was fetched


@dataclass(slots=True)
class Indexer:
    """The official indexer, which follows both PDSes in the order in which their events come."""

    network: Network
    url: str
    database_url: str
    errors: Path
    process: Process

    @classmethod
    def start(
        cls, network: Network, folder: Path, bsync: str | None, *, database_url: str | None = None,
        schema: str = OFFICIAL_SCHEMA, cursors: Mapping[str, int] | None = None,
    ) -> "Indexer":  # fmt: skip
        """Start it, by default on a schema of its own in the network's database."""
        url, port = database_url or network.database_url, free_port()
        errors = folder / f"refused-{schema}.jsonl"
        errors.touch()
        process = network.service(
            "indexer", databaseUrl=url, schema=schema, port=port, cursors=cursors or {},
            plcUrl=network.plc, services=[pds.relay for pds in network.pdses], errors=str(errors),
            bsync=bsync and reading(bsync),
        )  # fmt: skip
        return cls(network, f"http://127.0.0.1:{port}", url, errors, process)

    def wait(self, pds: Pds) -> None:
        """Return when it has everything that a PDS has published."""
        seq = pds.last_seq()
        wait_until(lambda: self._cursor(pds) >= seq, lambda: str(self._state()), READ_SECONDS)

    def refused(self) -> dict[str, str]:
        """Return the subjects of its errors, with the last error of each."""
        lines = map(json.loads, self.errors.read_text().splitlines())
        return {each["subject"]: each["error"] for each in lines}

    def index_repo(self, did: str) -> int:
        """Have it index a whole repo, while nothing else happens; return the number of records."""
        process = self.network.service(
            "repo", seconds=INDEX_SECONDS, databaseUrl=self.database_url,
            schema=OFFICIAL_SCHEMA, did=did, plcUrl=self.network.plc, errors=str(self.errors),
        )  # fmt: skip
        self.network.end(process)
        return int(process.ready["records"])

    def begin_anew(self, pds: Pds) -> None:
        """Have it read the events of a PDS from the beginning, as its operator would."""
        self.network.http.post(f"{self.url}/{self.network.pdses.index(pds)}").raise_for_status()

    def _cursor(self, pds: Pds) -> int:
        return int(self._state()["cursors"].get(pds.relay, 0))

    def _state(self) -> Any:
        return self.network.http.get(self.url).json()


@dataclass(slots=True)
class World:
    """Everything, at a point in time at which both indexers are at the end."""

    installation: Installation
    network: Network
    people: People
    indexer: Indexer
    live: Following
    bsync: Process
    bsync_settings: dict[str, str]
    folder: Path
    seed: int

    def settle(self) -> None:
        """Return when both have indexed everything."""
        for pds in self.network.pdses:
            self.indexer.wait(pds)
        self.live.wait()

    def restart_bsync(self) -> None:
        """Stop bsync, and start it at the same address."""
        self.network.end(self.bsync)
        self.bsync = start_bsync(self.network, "bsync", **self.bsync_settings)

    def facts(self, ours: Following, *, history: bool = False) -> Facts:
        """Read both databases, and sort their differences into kinds."""
        facts = Facts(
            rows.read(self.indexer.database_url, OFFICIAL_SCHEMA), rows.read(ours.url, ours.schema),
            self.indexer.refused(), self.people.gone, self.people.edited,
            self.people.moved, self.people.imported,
            {each.did for each in self.people.everybody if each.status} if history else None,
        )  # fmt: skip
        left_out = TIMES_SEEN if history else ()
        for difference in rows.differences(facts.official, facts.ours, left_out):
            facts.explain(difference)
        return facts


@contextlib.contextmanager
def populated(installation: Installation, server: str, seed: int) -> Iterator[World]:
    """Run a network, and let people live on it while both follow and workers of ours are killed."""
    with (
        stores.fresh_database(server) as database,
        stores.scratch_directory() as folder,
        leftovers.ended_with_us(folder),
        official_network(installation, folder, database) as network,
    ):
        seen = free_port()
        private = {
            "BSYNC_PORT": str(free_port()), "BSYNC_DATAPLANE_URLS": f"http://localhost:{seen}",
            "BSYNC_DATAPLANE_AUTH_TOKEN": SEEN_TOKEN,
        }  # fmt: skip
        bsync = start_bsync(network, "bsync", **private)
        indexer = Indexer.start(network, folder, bsync.ready["url"])
        settings = {
            "bsync_url": bsync.ready["url"], "bsync_key": BSYNC_KEY,
            "enumerate_repos": "false", "initial_cursor": "oldest", "validation": "strict",
            "seen_port": str(seen), "seen_token": SEEN_TOKEN,
        }  # fmt: skip
        with following(network, folder / "live", **settings) as live:
            people = People(network, seed)
            people.before = indexer.wait
            world = World(
                installation, network, people, indexer, live, bsync, private, folder, seed
            )
            for number in range(ACCOUNTS):
                people.join(network.pdses[number % 4 == 3])
            choose = random.Random(seed)
            upgrade = partial(live.command, "db", "init", "--appview", installation.release)
            for number in people.live(ACTS, world.settle):
                if number % KILL_EVERY == KILL_EVERY // 2:
                    live.kill_one(choose)
                if number == ACTS // 2:
                    upgrade()
            for _ in range(LABELS):
                people.label()
            world.settle()
            yield world


def reading(bsync: str) -> dict[str, str]:
    """Return the configuration of the official reader of bsync."""
    return {"bsyncUrl": bsync, "bsyncHttpVersion": "1.1", "bsyncApiKey": BSYNC_KEY}


def copy_labels(ours: Following, network: Network) -> None:
    """Give the official database our labels: nothing that is published follows a labeler."""
    columns = "src, uri, cid, val, neg, cts, exp"
    with psycopg.connect(ours.url) as source, psycopg.connect(network.database_url) as target:
        found = source.execute(f"SELECT {columns} FROM {ours.schema}.label").fetchall()
        target.execute(f"TRUNCATE {OFFICIAL_SCHEMA}.label")
        insert = (
            f"INSERT INTO {OFFICIAL_SCHEMA}.label ({columns}) VALUES (%s, %s, %s, %s, %s, %s, %s)"
        )
        target.cursor().executemany(insert, found)
