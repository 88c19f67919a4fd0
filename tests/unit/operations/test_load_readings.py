"""What a load reads of a repo is what the indexer reads of the backfiller's events."""

from collections import Counter
from pathlib import Path

import pytest

from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.indexer.collections.registry import SelectedCollections
from rsky_pipeline.indexer.core.entries import Reading, read_entry
from rsky_pipeline.operations.repo_readings import closing_reading, record_readings
from rsky_pipeline.repos.blocks import Blocks
from rsky_pipeline.repos.entries import create_entries
from rsky_pipeline.repos.repo import RepoError, RepoPaths, read_car_file
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
        paths = read_car_file(str(file), 1 << 30, 1 << 28)
        assert by_load(paths) == by_stream(paths)
        total += len(by_load(paths)[0])
    assert total > 20


def test_simulated_repos_are_read_alike(tmp_path: Path) -> None:
    world = World(7, 40, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(40)
    for account in world.accounts:
        if account.historic:
            (tmp_path / "repo.car").write_bytes(account.repo.car())
            paths = read_car_file(str(tmp_path / "repo.car"), 1 << 30, 1 << 28)
            assert by_load(paths) == by_stream(paths)
            assert closing_reading(paths.repo, TIME).did == account.did


def test_a_repo_on_disk_is_read_as_one_in_memory(tmp_path: Path) -> None:
    world = World(7, 10, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(40)
    account = next(account for account in world.accounts if account.historic)
    file = tmp_path / "repo.car"
    file.write_bytes(account.repo.car())
    in_memory, on_disk = (read_car_file(str(file), 1 << 30, size) for size in (1 << 28, 1 << 10))
    assert isinstance(on_disk.repo.blocks, Blocks)
    assert not isinstance(in_memory.repo.blocks, Blocks)
    assert by_load(on_disk) == by_load(in_memory)
    on_disk.repo.blocks.close()


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_refused_alike_wherever_its_blocks_are(
    tmp_path: Path, damage: str
) -> None:
    world = World(7, 10, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(40)
    car = next(account for account in world.accounts if account.historic).repo.car()
    middle = len(car) // 2
    content = {"cut": car[:-7], "empty": b"",
               "changed": car[:middle] + bytes([car[middle] ^ 1]) + car[middle + 1 :]}  # fmt: skip
    file = tmp_path / "repo.car"
    file.write_bytes(content[damage])
    reasons = []
    for size in (1 << 28, -1):
        with pytest.raises(RepoError) as caught:
            read_car_file(str(file), 1 << 30, size)
        reasons.append((caught.value.kind, caught.value.reason))
    assert reasons[0] == reasons[1] == ("invalid", "invalid_car")
