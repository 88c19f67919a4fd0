"""What a load reads of a repo is what the indexer reads of the backfiller's events."""

from collections import Counter
from pathlib import Path

import pytest

from rsky_pipeline.backfiller.unpack import creates
from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.entries import Reading, read_entry
from rsky_pipeline.operations.load.cars import StoredRepo, read_repo
from rsky_pipeline.operations.load.readings import (
    closing_reading,
    deletion_readings,
    record_readings,
)
from tests.data import test_data

TIME = "2026-11-26T10:00:00.000Z"
SELECTION = ("app.bsky.", "chat.bsky.")
COLLECTIONS = registry.load()


def by_stream(repo: StoredRepo) -> tuple[list[Reading], Counter[str]]:
    """Return what an indexer reads, and what it refuses."""
    readings, refused = [], Counter[str]()
    for chunk in creates(repo.repo, repo.paths, SELECTION, TIME):
        refused["unreadable"] += chunk.unreadable
        for entry in chunk.entries:
            reading = read_entry({entry.field: entry.payload}, COLLECTIONS, TIME)
            if reading.refused is not None:
                refused[reading.refused.reason] += 1
            if reading.change is not None or reading.refused is not None:
                readings.append(reading)
    return readings, +refused


def by_load(repo: StoredRepo) -> tuple[list[Reading], Counter[str]]:
    refused = Counter[str]()
    return list(record_readings(repo, SELECTION, COLLECTIONS, TIME, refused)), refused


@pytest.mark.parametrize("source", ["recorded/cars", "fixtures/jetstream/corpus"])
def test_recorded_repos_are_read_alike(source: str) -> None:
    files = sorted(test_data(source).glob("*.car"))
    total = 0
    for file in files:
        repo = read_repo(str(file), 1 << 30)
        assert by_load(repo) == by_stream(repo)
        total += len(by_load(repo)[0])
    assert total > 20


def test_simulated_repos_are_read_alike(tmp_path: Path) -> None:
    world = World(7, 40, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(40)
    for account in world.accounts:
        if account.historic:
            (tmp_path / "repo.car").write_bytes(account.repo.car())
            repo = read_repo(str(tmp_path / "repo.car"), 1 << 30)
            assert by_load(repo) == by_stream(repo)
            assert closing_reading(repo, TIME).did == account.did


def test_rows_that_the_repo_does_not_hold_go_unless_they_are_newer(tmp_path: Path) -> None:
    world = World(7, 4, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(10)
    account = next(account for account in world.accounts if account.historic)
    (tmp_path / "repo.car").write_bytes(account.repo.car())
    repo = read_repo(str(tmp_path / "repo.car"), 1 << 30)
    like = f"at://{account.did}/app.bsky.feed.like/"
    held = f"at://{account.did}/{next(iter(repo.paths))[0]}"
    stored = {
        like + "old": "2222222222222", like + "unknown": None, like + "same": account.repo.rev,
        like + "newer": "7777777777777", held: None,
        f"at://{account.did}/com.example.other/1": None,
    }  # fmt: skip
    found = list(deletion_readings(repo, stored, COLLECTIONS, TIME))
    assert [reading.change.uri for reading in found if reading.change] == [  # type: ignore[union-attr]
        like + "old", like + "unknown",
    ]  # fmt: skip
