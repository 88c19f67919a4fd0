"""Figures of a running demonstration: events published, waiting in streams, and rows indexed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.demo.simulator.control import Control, SimulationError, SimulationProgress
from rsky_pipeline.embedded.locations import run_directory
from rsky_pipeline.runtime.errors import StoreError, WorkerError
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import Store, connect
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
_LONGEST_CURSOR = 16  # digits
_RAW = ("firehose_raw", "label_raw")  # frames that could not be read


@dataclass(frozen=True, slots=True)
class Figures:
    """One look. Figures that could not be read are missing."""

    progress: SimulationProgress | None = None
    processes: tuple[Mapping[str, Any], ...] = ()
    streams: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)


class Observer:
    """Looks at a demonstration: its simulation, its supervisor and its stores."""

    def __init__(self, settings: Settings, control: Control, relay: str, labeler: str) -> None:
        redis, database = settings.redis_url or "", settings.database_url or ""
        schema = settings.database_schema
        self._settings = settings
        self._control = control
        self._relay = parse_endpoint(relay).key
        self._labeler = parse_endpoint(labeler).key
        self._database = Link(
            lambda: Database.connect(database, schema=schema, name="demo"), purpose="demo"
        )
        self._store = Link(lambda: connect(redis, name="demo"), purpose="demo")

    def close(self) -> None:
        """Close the connections."""
        self._database.close()
        self._store.close()

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
            found = self._database.act(lambda database: database.query(f"SELECT {columns}"))
        except DatabaseError:
            return {}
        return dict(zip(COUNTED, found[0], strict=True))

    def dead_letters(self) -> dict[str, int]:
        """Return how many dead letters there are.

        Raises StoreUnavailableError, StoreRejectedError.
        """
        names = [dead_letters(stream) for stream in (*STREAMS, *_RAW)]
        lengths = self._store.act(lambda store: [int(store.call("XLEN", name)) for name in names])
        return {name: length for name, length in zip(names, lengths, strict=True) if length}

    def waiting(self, progress: SimulationProgress) -> list[str]:
        """Return the work that is left, in words; empty when everything is indexed."""
        try:
            found = self._store.act(lambda store: self._waiting(store, progress))
            return found if set(found) - {NOT_LISTED} else [*found, *self._checks()]
        except StoreError as error:
            return [str(error)]

    def _waiting(self, store: Store, progress: SimulationProgress) -> list[str]:
        found = []
        cursors = ((FIREHOSE_LIVE, self._relay, progress.seq),
                   (LABEL_LIVE, self._labeler, progress.label_seq))  # fmt: skip
        for stream, host, last in cursors:
            text = store.call("GET", cursor_key(stream, host))
            if text is not None and not (text.isdigit() and len(text) <= _LONGEST_CURSOR):
                found.append(f"the cursor {text[:50]!r} of {stream} is not a sequence number")
            elif (cursor := int(text or 0)) < last:
                found.append(f"{stream} is read up to {cursor:,} of {last:,}")
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
        return found

    def _checks(self) -> list[str]:
        query = """
            SELECT (SELECT count(*) FROM rsky_pipeline.handle_check),
                (SELECT count(*) FROM rsky_pipeline.deletion_check)"""
        handles, deletions = self._database.act(lambda database: database.query(query)[0])
        found = [f"{handles:,} handles"] if handles else []
        return [*found, f"{deletions:,} deletions"] if deletions else found

    def _lengths(self) -> dict[str, int]:
        try:
            return self._store.act(
                lambda store: {name: int(store.call("XLEN", name)) for name in STREAMS}
            )
        except StoreError:
            return {}
