"""A recorded official network whose gates are edited, and whose posts are deleted, amid replies.

tests/recordings/README.md says what happens in it. Its rows must not depend on how events fall into
batches, and equal the official ones but for what docs/appview-parity.md lists.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.values import Delete, Put
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import AccountChange, Reading
from tests.integration.indexer.kit import Tables, any_count, recounted
from tests.integration.indexer.snapshot import clear, snapshot
from tests.integration.indexer.snapshot import differences as between
from tests.integration.indexer.test_recorded import (
    OTHERS,
    check_profiles,
    differences,
    feed,
    listed,
    read_all,
)

RECORDING = Path(__file__).parents[2] / "recordings" / "edited_gates.tar.xz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("edited_gates")
    with tarfile.open(RECORDING) as archive:
        archive.extractall(place, filter="data")
    return place


@pytest.fixture(scope="module")
def readings(folder: Path) -> list[Reading]:
    return read_all(folder)


def apply_all(tables: Tables, readings: Sequence[Reading], size: int) -> None:
    for start in range(0, len(readings), size):
        apply_batch(tables.database, readings[start : start + size], registry.load())


def test_it_has_what_makes_batches_matter(tables: Tables, readings: list[Reading]) -> None:
    """Gates change between replies that they judge, and ancestors go that replies notify."""
    changes = [reading.change for reading in readings]
    parents: dict[str, list[int]] = {}  # post -> places of the replies below it
    roots: dict[str, list[int]] = {}
    for place, change in enumerate(changes):
        if isinstance(change, Put) and "/app.bsky.feed.post/" in change.uri:
            reply = json.loads(change.json).get("reply")
            if reply is not None:
                parents.setdefault(reply["parent"]["uri"], []).append(place)
                roots.setdefault(reply["root"]["uri"], []).append(place)
    edits = amid = deleted = 0
    for place, change in enumerate(changes):
        if isinstance(change, Put) and "/app.bsky.feed.threadgate/" in change.uri:
            around = roots.get(change.uri.replace(".threadgate/", ".post/"), [])
            edits += 1
            amid += bool(around) and min(around) < place < max(around)
        deleted += isinstance(change, Delete) and change.uri in parents
    assert (edits, amid, deleted) == (46, 43, 29)
    apply_all(tables, readings, 1)
    verdicts = Counter(row[0] for row in tables.rows("post", '"violatesThreadGate"'))
    assert verdicts == {None: 172, True: 64}


@pytest.mark.parametrize("purging", [False, True])
def test_the_rows_are_the_same_in_any_batches(
    tables: Tables, readings: list[Reading], purging: bool
) -> None:
    """In one batch, in batches of seven and event by event; deleted accounts are purged or not."""
    write = feed if purging else apply_all
    clear(tables)
    write(tables, readings, len(readings))
    whole = snapshot(tables, exact=True)
    for size in (7, 1):
        clear(tables)
        write(tables, readings, size)
        assert between(snapshot(tables, exact=True), whole) == {}, size
    recounted(tables)
    assert sum(map(len, whole.values())) > 1_400


def test_the_rows_are_the_official_ones(
    tables: Tables, folder: Path, readings: list[Reading]
) -> None:
    feed(tables, readings, len(readings))
    counts = json.loads((folder / "appview-expected" / "_counts.json").read_text())
    found = {
        table: differences(tables, folder, table) if counts[table] else ([], tables.dicts(table))
        for table in set(counts) - OTHERS
    }
    differing = {table for table, (missing, extra) in found.items() if missing or extra}
    assert differing <= listed()
    assert counts["post"] > 200
    assert "post" not in differing, "verdicts of gates are the official ones"
    gone = {
        reading.did
        for reading in readings
        if isinstance(reading.change, AccountChange) and reading.change.status == "deleted"
    }
    assert len(gone) == 2
    check_deleted_accounts(tables, found, gone)
    check_profiles(tables, folder)


def check_deleted_accounts(
    tables: Tables, found: dict[str, tuple[list[Any], list[Any]]], gone: set[str]
) -> None:
    """Officially their rows stay in part, and counts are not corrected."""
    records = {row[0] for row in tables.rows("record", "uri")}
    missing, extra = found["quote"]
    assert not extra
    for row in missing:  # of deleted accounts, or of a post that was deleted before
        assert {owner(row["uri"]), owner(row["subject"])} & gone or row["subject"] not in records
    assert {owner(row["uri"]) for row in missing} - gone
    missing, extra = found["feed_item"]
    assert not extra
    assert all(row["originatorDid"] in gone or row["postUri"] not in records for row in missing)
    missing, extra = found["duplicate_record"]
    assert all(row["duplicateOf"] not in records for row in missing + extra)
    missing, extra = found["notification"]
    assert not {row["recordUri"] for row in missing} & records
    assert {row["recordUri"] for row in extra} <= records
    missing, extra = found["actor_sync"]
    others = {row["did"] for row in missing} - gone
    assert {row["did"] for row in extra} == others
    assert len(others) == 1  # the account with lexicons, which are of another collection
    missing, extra = found["post_agg"]
    ours = {row["uri"]: row for row in extra}
    for row in filter(any_count, missing):
        mine = ours.pop(row["uri"], {})
        assert all(mine.get(name, 0) <= row[name] for name in row if name.endswith("Count"))
    assert not ours
    missing, extra = found["profile_agg"]
    mine = {row["did"]: row for row in extra}
    for row in missing:
        lower = {name for name in row if row[name] != mine[row["did"]][name]}
        assert row["did"] in gone or lower == {"followersCount"}, row


def owner(uri: str) -> str:
    return uri.split("/")[2]
