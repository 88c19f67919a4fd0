"""Directories of CAR files to committed rows, by the processes of a load.

The database is empty at first, on an embedded PostgreSQL with the settings that a user has.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psycopg

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded import postgres
from rsky_pipeline.operations.load.outcome import LOADED
from rsky_pipeline.operations.load.run import BulkLoad
from rsky_pipeline.operations.load.worker import LoadOptions
from tests import stores
from tests.benchmarks.cars import repo_files
from tests.benchmarks.processes import cpu_seconds, memory_bytes
from tests.benchmarks.report import Report

ACCOUNTS, RECORDS = 4_000, 400_000
LARGE = 200_000  # records of one account
TARGET = 50_000  # records a second on two cores
MEMORY_BYTES = 64 * 1024 * 1024  # for the blocks of one repo, in the second load


@dataclass(slots=True)
class _Peak:
    """The most memory that the processes of a load had at the ends of files."""

    bytes: int = 0
    records: int = 0

    def __call__(self, load: BulkLoad) -> None:
        if load.summary.records - self.records > 10_000 or not self.bytes:
            self.records = load.summary.records
            self.bytes = max(self.bytes, memory_bytes([os.getpid()])["load"])


def bench_load(report: Report) -> None:
    """Load many repos, then one large one; signatures are not checked."""
    many, one = repo_files(ACCOUNTS, RECORDS), repo_files(1, LARGE)
    with (
        stores.scratch_directory() as folder,
        stores.running(postgres.prepare(stores.scratch_settings(folder))) as server,
    ):
        template = stores.make_schema_template(server.url)
        with stores.fresh_database(server.url, template) as url:
            jobs = (os.cpu_count() or 1) + 1
            rate = _load(report, url, many, LoadOptions(verify=False), jobs)
            report.ratio(f"of the {TARGET:,} records/s that are asked for", rate, TARGET)
            options = LoadOptions(verify=False, memory_bytes=MEMORY_BYTES)
            _load(report, url, one, options, 1)
            size = sum(file.stat().st_size for file in one.iterdir())
            report.figure("  size of its CAR", size / 1e6, "MB")


def _load(report: Report, url: str, folder: Path, options: LoadOptions, jobs: int) -> float:
    load, peak = BulkLoad(folder), _Peak()
    with psycopg.connect(url, autocommit=True) as own:
        without = {own.info.backend_pid}
        before, ended = cpu_seconds([os.getpid()], without), _ended()
        load.run(Settings(database_url=url), options, jobs, peak)
        used, ended = cpu_seconds([os.getpid()], without), _ended() - ended
    if load.summary.files[LOADED] != load.found:
        raise AssertionError(f"not everything was loaded: {load.summary.document({})}")
    used.subtract(before)
    records = load.summary.records
    cost = {"load": ended, **_servers(used)}
    rate = records / load.summary.seconds
    report.rate(f"{load.found:,} CAR files to rows", records, load.summary.seconds)
    for part, seconds in cost.items():
        report.figure(f"  processor time, {part}, a record", seconds / records * 1e6, "us")
    total = sum(cost.values()) / records
    report.figure("  processor time of all processes, a record", total * 1e6, "us")
    report.rate("  records that two whole cores would load", 2, total)
    report.figure(f"  memory (PSS) of {jobs} processes", peak.bytes / 1e6, "MB")
    return rate


def _ended() -> float:
    """Return the processor time of the children that have ended: those of a load, in the end."""
    times = os.times()
    return times.children_user + times.children_system


def _servers(used: Counter[str]) -> dict[str, float]:
    """Return the processor time of PostgreSQL; its backends have ended, like the others."""
    found = {part: value for part, value in used.items() if part.startswith("PostgreSQL") and value}
    ended = found.pop("PostgreSQL: others", 0) + found.pop("PostgreSQL: backends", 0)
    return {"PostgreSQL: backends and others": ended, **found}
