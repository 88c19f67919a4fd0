"""What a load reads of a repo is what the indexer reads of the backfiller's events."""

from collections import Counter
from pathlib import Path

import pytest

from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.indexer.collections.registry import SelectedCollections
from rsky_pipeline.indexer.core.entries import Reading, read_entry
from rsky_pipeline.operations.load.outcome import FileOutcome
from rsky_pipeline.operations.load.worker import Loader, LoadOptions, _LoadSink
from rsky_pipeline.operations.repo_readings import closing_reading, record_readings
from rsky_pipeline.repos.entries import create_entries
from rsky_pipeline.repos.repo import RepoPaths, read_car_file
from tests.data import test_data

TIME = "2026-11-26T10:00:00.000Z"
SELECTION = ("app.bsky.", "chat.bsky.")
COLLECTIONS = SelectedCollections(SELECTION)


def by_stream(paths: RepoPaths) -> tuple[list[Reading], Counter[str]]:
    """Return what an indexer reads, and what it refuses."""
    readings, refused = [], Counter[str]()
    for chunk in create_entries(paths.repo, paths, SELECTION, TIME):
        refused["unreadable"] += chunk.unreadable
        for entry in chunk.entries:
            reading = read_entry({entry.field: entry.payload}, COLLECTIONS)
            if reading.refused is not None:
                refused[reading.refused.reason] += 1
            if reading.change is not None or reading.refused is not None:
                readings.append(reading)
    return readings, +refused


def by_load(paths: RepoPaths) -> tuple[list[Reading], Counter[str]]:
    readings, refused = [], Counter[str]()
    for _, reading, reason in record_readings(paths, COLLECTIONS, TIME):
        if reading is not None:
            readings.append(reading)
        if reason is not None:
            refused[reason] += 1
    return readings, refused


@pytest.mark.parametrize("source", ["recorded/cars", "fixtures/jetstream/corpus"])
def test_recorded_repos_are_read_alike(source: str) -> None:
    files = sorted(test_data(source).glob("*.car"))
    total = 0
    for file in files:
        paths = read_car_file(str(file), 1 << 30)
        assert by_load(paths) == by_stream(paths)
        total += len(by_load(paths)[0])
    assert total > 20


def test_simulated_repos_are_read_alike(tmp_path: Path) -> None:
    world = World(7, 40, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(40)
    for account in world.accounts:
        if account.historic:
            (tmp_path / "repo.car").write_bytes(account.repo.car())
            paths = read_car_file(str(tmp_path / "repo.car"), 1 << 30)
            assert by_load(paths) == by_stream(paths)
            assert closing_reading(paths.repo, TIME).did == account.did


async def test_rows_that_the_repo_does_not_hold_go_unless_they_are_newer(tmp_path: Path) -> None:
    world = World(7, 4, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(10)
    account = next(account for account in world.accounts if account.historic)
    (tmp_path / "repo.car").write_bytes(account.repo.car())
    paths = read_car_file(str(tmp_path / "repo.car"), 1 << 30)
    like = "app.bsky.feed.like/"
    held = next(iter(paths))[0]
    rows = {
        like + "old": "2222222222222", like + "unknown": None, like + "same": account.repo.rev,
        like + "newer": "7777777777777", held: None, "com.example.other/1": None,
    }  # fmt: skip
    stored = {f"at://{account.did}/{path}": rev for path, rev in rows.items()}
    loader = Loader(None, COLLECTIONS, None, LoadOptions())  # type: ignore[arg-type]
    sink = _LoadSink(loader, paths, FileOutcome("", 0, 0), stored, TIME)
    assert await sink.absent("") == [like + "old", like + "unknown"]
    assert await sink.absent(like + "unknown") == []
