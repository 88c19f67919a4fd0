"""Repos as files, hosts that serve the same ones, and whole databases to compare."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.indexer.collections.registry import SelectedCollections
from rsky_pipeline.operations.load.outcome import CarFile, FileOutcome
from rsky_pipeline.operations.load.run import scan
from rsky_pipeline.operations.load.worker import Loader, LoadOptions
from rsky_pipeline.operations.load.writing import LoadWriter
from tests.integration.backfiller.hosts import FakeHosts

SELECTION = Settings().collections
Rows = dict[str, list[str]]

# What each way writes for itself, and not as rows of the repos.
_OWN = frozenset({"load_file", "backfill_repo", "schema_version", "applied_mark"})
_UNPROMISED = frozenset(
    {
        "id",
        "taken_by",
        "invalidReplyRoot",
        "violatesThreadGate",
        "violatesEmbeddingRules",
        "replyCount",
    }
)
# Replies that were judged, and handles that an indexer looks up meanwhile.
_OTHERS = frozenset({"op_thread_reply", "handle_check"})
_RECENT = re.compile(r"20(2[6-9]|[3-9]\d)-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?")


def world(accounts: int = 60, records: int = 40, seed: int = 5) -> World:
    """Return a network whose historic accounts have repos, written in 2023."""
    made = World(seed, accounts, stepping_clock(1_700_000_000_000_000, 1_000))
    made.add_history(records)
    return made


def save(made: World, folder: Path) -> int:
    """Write all repos as files; return how many."""
    historic = [account for account in made.accounts if account.historic]
    for account in historic:
        path = folder / account.did[-2:] / f"{account.did.replace(':', '_')}.car"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(account.repo.car())
    return len(historic)


def host(made: World, hosts: FakeHosts) -> None:
    """Serve all repos and documents."""
    for account in made.accounts:
        if account.historic:
            document = made.document(account.did, hosts.url, hosts.url)
            assert document is not None
            hosts.add(account.did, document, account.repo.car())


@contextmanager
def loading(url: str, **options: Any) -> Iterator[Loader]:
    """Yield a loader of this process, which verifies no signatures."""
    collections = SelectedCollections(SELECTION)
    counting = options.get("counting", True)
    writer = LoadWriter(
        lambda: Database.connect(url, name="load", by_key=True), collections, counting=counting
    )
    try:
        yield Loader(writer, collections, None, LoadOptions(verify=False, **options))
    finally:
        writer.close()


def load(url: str, files: Sequence[CarFile], **options: Any) -> list[FileOutcome]:
    """Load files in this process, unverified."""
    with loading(url, **options) as loader:
        return trio.run(loader.load, list(files))


def load_one_by_one(url: str, folder: Path, outcomes: list[FileOutcome]) -> None:
    """Load the files of a folder, each in a task of its own, by one loader."""
    with loading(url) as loader:
        for file in scan(folder):
            outcomes += trio.run(loader.load, [file])


def files_of(folder: Path, dids: Iterable[str]) -> list[CarFile]:
    """Return the files of these accounts in their order."""
    by_name = {Path(file.path).stem: file for file in scan(folder)}
    return [by_name[did.replace(":", "_")] for did in dids]


def load_folder(url: str, folder: Path, **options: Any) -> list[FileOutcome]:
    """Load all files of a folder in this process, unverified."""
    return load(url, list(scan(folder)), **options)


def rows(url: str) -> Rows:
    """Return every row of every table as JSON, sorted; what follows from the clock is masked."""
    found: Rows = {}
    with Database.connect(url, name="test") as database:
        tables = database.query(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_schema IN ('bsky', 'rsky_pipeline') AND table_type = 'BASE TABLE'"
        )
        for schema, table in tables:
            if table in _OWN | _OTHERS:
                continue
            every = database.query(f'SELECT row_to_json(t) FROM "{schema}"."{table}" t')
            plain = [_plain(row[0]) for row in every]
            if table.endswith("_agg"):  # a row of zeros says the same as none
                plain = [
                    row for row in plain if any(type(item) is int and item for item in row.values())
                ]
            texts = (json.dumps(row, sort_keys=True) for row in plain)
            found[f"{schema}.{table}"] = sorted(_RECENT.sub("NOW", text) for text in texts)
    return found


def settings(redis_url: str, database_url: str, hosts: FakeHosts) -> Settings:
    """Return the settings of a pipeline on these hosts."""
    return Settings(
        redis_url=redis_url, database_url=database_url, plc_url=hosts.url,
        allow_private_hosts=True,
    )  # fmt: skip


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without what no order of events promises, and who looks handles up.

    A reply is judged when it comes, by what is there or in the same batch, as officially.
    """
    return {name: value for name, value in row.items() if name not in _UNPROMISED}


def differences(found: Rows, expected: Rows) -> dict[str, list[str]]:
    """Return by table the rows that only one side has, the first few."""
    return {
        table: sorted(set(found.get(table, ())) ^ set(expected.get(table, ())))[:6]
        for table in sorted({*found, *expected})
        if found.get(table) != expected.get(table)
    }
