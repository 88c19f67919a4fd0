"""Figures of a running demonstration: events published, waiting in streams, and rows indexed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.demo.simulator.control import Control, SimulationError, SimulationProgress
from rsky_pipeline.embedded.locations import run_directory
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.errors import StoreRejectedError, StoreUnavailableError
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import (
    FIREHOSE_LIVE,
    LABEL_LIVE,
    REPO_BACKFILL,
    RESYNC_LATER,
    STREAMS,
    cursor_key,
    dead_letters,
)
from rsky_pipeline.streams.waiting import count_waiting
from rsky_pipeline.supervisor import client

COUNTED = ("record", "post", "like", "repost", "follow", "notification", "label", "actor")
NOT_LISTED = "the repos are not listed yet"
_ENUMERATED = b"!ingester-done"
_RAW = ("firehose_raw", "label_raw")  # frames that could not be read


@dataclass(frozen=True, slots=True)
class Figures:
    """One look. Figures that could not be read are missing."""

    progress: SimulationProgress | None = None
    processes: tuple[Mapping[str, Any], ...] = ()
    streams: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)


class Observer:
    """Keeps connections to the demonstration's stores, and opens them again after a failure."""

    def __init__(self, settings: Settings, control: Control, relay: str, labeler: str) -> None:
        self._settings = settings
        self._control = control
        self._relay = parse_endpoint(relay).key
        self._labeler = parse_endpoint(labeler).key
        self._database: Database | None = None
        self._store: Store | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._database is not None:
            self._database.close()
        if self._store is not None:
            self._store.close()
        self._database = self._store = None

    def look(self) -> Figures:
        """Ask everybody; nobody has to be there yet."""
        try:
            progress: SimulationProgress | None = self._control.progress()
        except SimulationError:
            progress = None
        try:
            found = client.find(run_directory(self._settings))
            processes = [each for item in found for each in item.status["processes"]]
        except WorkerError:
            processes = []
        rows: dict[str, int] = {}
        streams: dict[str, int] = {}
        if any(item["role"] == "indexer" and item["pid"] for item in processes):
            rows = self.rows()
            streams = self._lengths()
        return Figures(progress, tuple(processes), streams, rows)

    def rows(self) -> dict[str, int]:
        """Return the sizes of some tables; empty while the database does not answer."""
        columns = ", ".join(f'(SELECT count(*) FROM "{name}")' for name in COUNTED)
        try:
            if self._database is None:
                self._database = Database.connect(
                    self._settings.database_url or "",
                    schema=self._settings.database_schema,
                    name="demo",
                )
            return dict(zip(COUNTED, self._database.query(f"SELECT {columns}")[0], strict=True))
        except DatabaseError:
            self.close()
            return {}

    def dead_letters(self) -> dict[str, int]:
        """Return how many dead letters there are.

        Raises StoreUnavailableError, StoreRejectedError.
        """
        names = [dead_letters(stream) for stream in (*STREAMS, *_RAW)]
        lengths = {name: int(self._connected().call("XLEN", name)) for name in names}
        return {name: length for name, length in lengths.items() if length}

    def waiting(self, progress: SimulationProgress) -> list[str]:
        """Return the work that is left, in words; empty when everything is indexed."""
        try:
            return self._waiting(progress)
        except (StoreUnavailableError, StoreRejectedError, DatabaseError) as error:
            self.close()
            return [str(error)]

    def _waiting(self, progress: SimulationProgress) -> list[str]:
        store, found = self._connected(), []
        cursors = ((FIREHOSE_LIVE, self._relay, progress.seq),
                   (LABEL_LIVE, self._labeler, progress.label_seq))  # fmt: skip
        for stream, host, last in cursors:
            cursor = store.call("GET", cursor_key(stream, host))
            if last and (cursor is None or int(cursor) < last):
                found.append(f"{stream} is read up to {int(cursor or 0):,} of {last:,}")
        if store.call("GET", cursor_key(REPO_BACKFILL, self._relay)) != _ENUMERATED:
            found.append(NOT_LISTED)
        for stream in STREAMS:
            report = inspect(store, stream)
            open_entries = sum(group.lag + group.pending for group in report.groups)
            if open_entries or (report.length and not report.groups):
                found.append(f"{open_entries or report.length:,} of {stream}")
        later = int(store.call("XLEN", RESYNC_LATER)) + count_waiting(store)
        if later:
            found.append(f"{later:,} repos that are fetched later")
        if not set(found) - {NOT_LISTED}:
            found += self._checks()
        return found

    def _checks(self) -> list[str]:
        if self._database is None:
            self.rows()
        if self._database is None:
            return ["the database does not answer"]
        query = """
            SELECT (SELECT count(*) FROM rsky_pipeline.handle_check),
                (SELECT count(*) FROM rsky_pipeline.deletion_check)"""
        handles, deletions = self._database.query(query)[0]
        found = [f"{handles:,} handles"] if handles else []
        return [*found, f"{deletions:,} deletions"] if deletions else found

    def _lengths(self) -> dict[str, int]:
        try:
            return {name: int(self._connected().call("XLEN", name)) for name in STREAMS}
        except (StoreUnavailableError, StoreRejectedError):
            self.close()
            return {}

    def _connected(self) -> Store:
        if self._store is None:
            self._store = connect(self._settings.redis_url or "", name="demo")
        return self._store
