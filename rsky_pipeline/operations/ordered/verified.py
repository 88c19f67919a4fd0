"""Verifying a step in Redis: are the consumers drained, do the cursors cover the data?"""

import json
import socket
from collections.abc import Iterable, Iterator
from contextlib import closing

from rsky_pipeline.configuration.endpoints import HostKey
from rsky_pipeline.configuration.redaction import redacted
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLES
from rsky_pipeline.ingester.sequence import (
    CONFIRMED_BY,
    MAX_STEP,
    InvalidCursorError,
    parse_cursor,
)
from rsky_pipeline.operations.ordered.movement import StepFinding
from rsky_pipeline.runtime.health_document import CursorHealth
from rsky_pipeline.streams.append import read_cursor
from rsky_pipeline.streams.bsync import BSYNC_LOGS
from rsky_pipeline.streams.connection import Store, connect, text_of
from rsky_pipeline.streams.errors import StoreRejectedError, StoreUnavailableError
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import BSYNC_LIVE, FIREHOSE_LIVE, LABEL_LIVE, cursor_key
from rsky_pipeline.streams.scan import newest

_PAGE_ENTRIES = 200  # the newest, whose seq the cursor must cover


def verify_stopped(
    settings: Settings, role: str, reported: Iterable[CursorHealth]
) -> tuple[StepFinding, ...]:
    """Return the findings after a role has stopped; `reported` are its workers' last cursors.

    A Redis that cannot be asked is a note: it is no fault of the stop.
    """
    [declared] = [one for one in ROLES if one.name == role]
    url = settings.redis_url or ""
    try:
        with closing(connect(url, name="ordered")) as store:
            if declared.consumes:
                return tuple(_drained(store, settings, role, each) for each in declared.consumes)
            return tuple(_flushed(store, settings, reported))
    except (StoreUnavailableError, StoreRejectedError) as error:
        return (StepFinding("note", f"not verified: {redacted(url)}: {error}"),)


def outstanding(settings: Settings, role: str) -> int:
    """Return how many entries a role still has to read or acknowledge, over all its streams.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    [declared] = [one for one in ROLES if one.name == role]
    total = 0
    with closing(connect(settings.redis_url or "", name="ordered")) as store:
        for stream in declared.consumes:
            report = inspect(store, stream)
            group = report.group(group_of(settings, role))
            total += report.length if group is None else group.lag + group.pending
    return total


def group_of(settings: Settings, role: str) -> str:
    """Return the consumer group of a role."""
    name: str = getattr(settings, f"{role}_group")
    return name


def _drained(store: Store, settings: Settings, role: str, stream: str) -> StepFinding:
    """Check pending entries: this host's consumers get theirs again under the same names."""
    group = group_of(settings, role)
    report = inspect(store, stream).group(group)
    if report is None:
        return StepFinding("pass", f"{stream}: nothing was ever read of it")
    own = _own_pending(store, stream, group, role)
    if own:
        text = f"{stream}: {own:,} released unacknowledged, delivered again at the next start"
        return StepFinding("note", text)
    return StepFinding("pass", f"{stream}: 0 pending, everything read is acknowledged")


def _own_pending(store: Store, stream: str, group: str, role: str) -> int:
    prefix = f"{socket.gethostname()}-{role}-"
    total = 0
    for row in store.call("XINFO", "CONSUMERS", stream, group):
        facts = dict(zip(row[::2], row[1::2], strict=True)) if isinstance(row, list) else row
        if text_of(facts[b"name"]).startswith(prefix):
            total += int(facts[b"pending"])
    return total


def _flushed(
    store: Store, settings: Settings, reported: Iterable[CursorHealth]
) -> Iterator[StepFinding]:
    """Each cursor must be at its last report or beyond, and cover every appended event.

    A host that was reported and is no longer configured is checked as well: its events were
    written by the process that was stopped.
    """
    last = {(each["stream"], each["host"]): each["seq"] for each in reported}
    hosts = dict.fromkeys((FIREHOSE_LIVE, relay.key) for relay in settings.relays)
    hosts |= dict.fromkeys((LABEL_LIVE, labeler.key) for labeler in settings.labelers)
    if settings.bsync_url:
        hosts |= dict.fromkeys((BSYNC_LIVE, HostKey(log)) for log in BSYNC_LOGS)
    for stream, host in hosts | dict.fromkeys(last):
        written = last.get((stream, host))
        try:
            stored = parse_cursor(read_cursor(store, cursor_key(stream, host)))
        except InvalidCursorError as error:
            yield StepFinding("fail", f"{stream}: the cursor of {host} is unusable: {error}")
            continue
        if stored is None and written is None:
            yield StepFinding("note", f"{stream}: no cursor of {host} yet")
        elif stored is None:
            yield StepFinding("fail", f"{stream}: no cursor of {host}, written was {written}")
        elif written is not None and written > stored:
            text = f"{stream}: the cursor of {host} is {stored}, written was {written}"
            yield StepFinding("fail", text)
        else:
            yield StepFinding("pass", f"{stream}: the cursor of {host} is stored ({stored})")
    if len(settings.relays) == 1:
        yield from _covered(store, settings.relays[0].key)


def _covered(store: Store, host: HostKey) -> Iterator[StepFinding]:
    """Sequence numbers are a relay's own, so this is known where there is one relay only.

    The first events behind a large step in the numbers are not covered until it is confirmed.
    """
    try:
        stored = parse_cursor(read_cursor(store, cursor_key(FIREHOSE_LIVE, host)))
    except InvalidCursorError:  # found by the check of the cursor itself
        return
    found = set(_sequence_numbers(store))
    if stored is None or not found:
        return
    above, highest = [seq for seq in found if seq > stored], max(found)
    behind_a_jump = len(above) < CONFIRMED_BY and min(above, default=0) > stored + MAX_STEP
    if above and not behind_a_jump:
        yield StepFinding("fail", f"{FIREHOSE_LIVE}: holds event {highest}, the cursor is {stored}")
    else:
        yield StepFinding(
            "pass", f"{FIREHOSE_LIVE}: its newest event is {highest}, so nothing is new"
        )


def _sequence_numbers(store: Store) -> Iterator[int]:
    for entry in newest(store, FIREHOSE_LIVE, _PAGE_ENTRIES):
        for payload in entry.fields.values():
            try:
                event = json.loads(payload)
            except ValueError:
                continue
            # Others may have put anything here; the ingester's own are record events.
            if isinstance(event, dict) and event.get("type") in ("create", "update", "delete"):
                seq = event.get("seq")
                if isinstance(seq, int):
                    yield seq
