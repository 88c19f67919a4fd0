"""Looking at cursors of relays, labelers and bsync, and setting them without unseen losses."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import orjson

from rsky_pipeline.configuration.endpoints import HostKey
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.ingester.commits.states import REPO_KEYS
from rsky_pipeline.ingester.sequence import (
    InvalidCursorError,
    parse_cursor,
    parse_position,
)
from rsky_pipeline.streams.append import read_cursor
from rsky_pipeline.streams.bsync import BSYNC_LOGS
from rsky_pipeline.streams.commands import Argument
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.gap import GAP_FIELD, Gap
from rsky_pipeline.streams.marks import forget_positions
from rsky_pipeline.streams.names import (
    BSYNC_LIVE,
    CURSOR_POSITIONS,
    FIREHOSE_LIVE,
    GAPS,
    LABEL_LIVE,
    cursor_key,
)

_PAGE_KEYS = 10_000
# The connections by which ingesters append live events.
_WRITERS = re.compile(rf" name=(\S*-ingester-\d+)-{FIREHOSE_LIVE} ")
CursorStream = Literal["firehose_live", "label_live", "bsync_live"]


_SETTINGS = {
    FIREHOSE_LIVE: "relay_hosts", LABEL_LIVE: "labeler_hosts",
    BSYNC_LIVE: f"the logs of bsync ({', '.join(BSYNC_LOGS)}), or bsync_url is not set,",
}  # fmt: skip
_WITHOUT = {
    FIREHOSE_LIVE: "without a cursor the ingester starts at initial_cursor, and may skip "
    "everything since; --force does it and has the gap repaired",
    LABEL_LIVE: "without a cursor the ingester starts at the labeler's oldest label; --force does "
    "it",
    BSYNC_LIVE: "without a cursor the log is read from its beginning, as that of a new bsync "
    "database; --force does it",
}


class CursorRefusedError(Exception):
    """The change would lose events, or its subject does not exist; the message has the reason."""


@dataclass(frozen=True, slots=True)
class StoredCursor:
    """A cursor: `seq` is None where none is stored, `invalid` is a stored text, not a number."""

    stream: str
    host: str
    seq: int | None
    time: str | None  # of the newest event that it covers
    configured: bool
    invalid: str | None = None


def list_cursors(store: Store, settings: Settings) -> list[StoredCursor]:
    """Return every stored cursor, and configured hosts that have none yet."""
    found = []
    for stream in (FIREHOSE_LIVE, LABEL_LIVE, BSYNC_LIVE):
        configured = _configured(settings, stream)
        stored = set(_stored_hosts(store, stream))
        found += [
            _read(store, stream, host, host in configured) for host in sorted(configured | stored)
        ]
    return found


def set_cursor(
    store: Store,
    stream: CursorStream,
    host: HostKey,
    seq: int | None,
    *,
    force: bool,
    configured: bool = True,
) -> StoredCursor:
    """Set a host's cursor, or with None take it away, so that the initial position counts.

    A running ingester notices and continues from there. Raises CursorRefusedError for a step that
    would skip events, unless forced; such a step of a relay is recorded as a gap, which is then
    repaired. Nobody reads events of a host that is not `configured`: its cursor is left over, or is
    for later.
    """
    before = _read(store, stream, host, configured=configured)
    if not configured and seq is not None and before.seq is None and not force:
        other = "a labeler's takes --stream label_live; " if stream == FIREHOSE_LIVE else ""
        raise CursorRefusedError(
            f"{host} is not among {_SETTINGS[stream]} and has no cursor: see "
            f"`rsky-pipeline cursor list`; {other}--force sets one for a host that is configured "
            "later"
        )
    if before.seq is not None and not force:
        if seq is None and configured:
            raise CursorRefusedError(f"{host} is at {before.seq}: {_WITHOUT[stream]}")
        if seq is not None and seq > before.seq:
            does = "--force does it"
            if stream == FIREHOSE_LIVE:
                does += " and has the gap repaired"
            raise CursorRefusedError(
                f"{host} is at {before.seq}: setting {seq} skips the events between; {does}"
            )
    key = cursor_key(stream, host)
    expected = before.invalid or ("" if before.seq is None else str(before.seq))
    note = orjson.dumps({"reset": True} if seq is None else {"seq": seq, "time": None})
    skips = configured and before.seq is not None and (seq is None or seq > before.seq)
    gap = Gap(host, "cursor_set", before.seq, seq, before.time, None).entry().payload
    arguments: list[Argument] = [expected, "" if seq is None else str(seq), note, GAP_FIELD]
    arguments.append(gap if skips and stream == FIREHOSE_LIVE else b"")
    if not store.script("set_cursor", [key, CURSOR_POSITIONS, GAPS], arguments):
        raise CursorRefusedError(
            f"the cursor of {host} moved meanwhile: stop the ingester, or try again"
        )
    if seq is None or (before.seq is not None and seq < before.seq):
        forget_positions(store, key)  # those above would look like a loss at the next start
    return before


def is_configured(settings: Settings, stream: CursorStream, host: HostKey) -> bool:
    """Return whether a host's stream is read."""
    return host in _configured(settings, stream)


def _configured(settings: Settings, stream: str) -> set[HostKey]:
    if stream == BSYNC_LIVE:
        return {HostKey(log) for log in BSYNC_LOGS} if settings.bsync_url else set()
    hosts = settings.relays if stream == FIREHOSE_LIVE else settings.labelers
    return {each.key for each in hosts}


def forget_repos(store: Store) -> int:
    """Forget which commits were taken over, so that they are again; return the removed keys.

    The ingester must be stopped: it would write the states that it remembers. Raises
    CursorRefusedError.
    """
    running = _WRITERS.search(store.call("CLIENT", "LIST").decode("utf-8", "replace"))
    if running is not None:
        raise CursorRefusedError(
            f"{running[1]} is connected, and would write the states that it remembers: stop it "
            "first, with `rsky-pipeline stop --role ingester`"
        )
    return sum(int(store.call("UNLINK", *keys)) for keys in _pages_of_keys(store, REPO_KEYS))


def _stored_hosts(store: Store, stream: str) -> Iterator[HostKey]:
    start = cursor_key(stream, HostKey(""))
    for keys in _pages_of_keys(store, f"{start}*"):
        for key in keys:
            yield HostKey(key.decode("utf-8", "replace").removeprefix(start))


def _pages_of_keys(store: Store, pattern: str) -> Iterator[list[bytes]]:
    position = b"0"
    while True:
        position, keys = store.call("SCAN", position, "MATCH", pattern, "COUNT", _PAGE_KEYS)
        if keys:
            yield keys
        if position == b"0":
            return


def _read(store: Store, stream: str, host: HostKey, configured: bool) -> StoredCursor:
    key = cursor_key(stream, host)
    text = read_cursor(store, key)
    position = parse_position(store.call("HGET", CURSOR_POSITIONS, key))
    try:
        seq = parse_cursor(text)
    except InvalidCursorError:
        return StoredCursor(stream, host, None, None, configured, text)
    time = position.time if position is not None and position.seq == seq else None
    return StoredCursor(stream, host, seq, time, configured)
