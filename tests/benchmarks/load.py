"""A directory of CAR files to committed rows, by the processes of a load."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.operations.load.outcome import LOADED
from rsky_pipeline.operations.load.run import BulkLoad
from rsky_pipeline.operations.load.worker import LoadOptions
from tests import stores

ACCOUNTS = 2_000  # four in ten have a history
RECORDS = 400  # of each, on average


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """What a load did, in seconds of the clock and of all cores together."""

    records: int
    seconds: float
    cpu_seconds: float  # of the load's processes; those of PostgreSQL are not in it


def bench_load() -> LoadFigures:
    """Load a simulated network's history into an empty database; signatures are not checked."""
    with tempfile.TemporaryDirectory() as folder, stores.running_postgres() as server:
        _save(Path(folder))
        template = stores.make_schema_template(server)
        with stores.fresh_database(server, template) as url:
            load = BulkLoad(Path(folder))
            before = os.times()
            load.run(
                Settings(database_url=url), LoadOptions(verify=False), (os.cpu_count() or 1) + 1
            )
            after = os.times()
    if load.summary.files[LOADED] != load.found:
        raise AssertionError(f"not everything was loaded: {load.summary.document({})}")
    cpu = sum(after[:4]) - sum(before[:4])
    return LoadFigures(load.summary.records, load.summary.seconds, cpu)


def _save(folder: Path) -> None:
    world = World(1, ACCOUNTS, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(RECORDS)
    for account in world.accounts:
        if account.historic:
            (folder / f"{account.number}.car").write_bytes(account.repo.car())


if __name__ == "__main__":
    figures = bench_load()
    print(f"{figures.records:,} records, {figures.records / figures.seconds:,.0f} /s, "
          f"{figures.cpu_seconds / figures.records * 1e6:,.0f} us of CPU each")  # fmt: skip
