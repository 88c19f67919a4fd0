"""Hosting statuses: which account event of several counts, and `actor."upstreamStatus"`.

Anything but NULL there hides the account. A deletion is stored as a status, which hides the account
at once; its rows are purged only when its host confirms the deletion (see `deletions`), since a
relay's word alone must not destroy data.

The times of account events are of the clocks of hosts and relays, which may be minutes apart: an
account is deactivated by one clock and active again by another one that says an earlier time. So
within one relay the order of its stream decides, which its sequence numbers say, and times only
between relays. For this the newest event of each relay is kept (`RelayEvent`), and copies of one
event by several relays are all written to the stream. The result depends on no order of arrival.

A relay that lost its state numbers its events anew. The ingester notices it by the cursor that the
relay refuses, and names the numbering in the events: those of a later one come after all others.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

import orjson

from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.database.bulk import transpose
from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.database.forms import ACCOUNT_TIME
from rsky_pipeline.indexer.core.entries import AccountChange
from rsky_pipeline.streams.event import read_numbered

DELETED = "deleted"
# A relay may have begun to count anew unnoticed; no clock of a host is so far off.
RENUMBERED = timedelta(days=1)

_FETCH = """
SELECT did, COALESCE(relay, ''), COALESCE(seq, -1), COALESCE(event_time, ''), latest, status, others
FROM rsky_pipeline.account_event WHERE did = ANY(%b::text[])
"""
# What another indexer of this database has applied counts until one of ours is stored.
_FETCH_THEIRS = f"""
SELECT did, to_char("{ACCOUNT_TIME}" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
    "upstreamStatus"
FROM actor WHERE did = ANY(%b::text[]) AND "{ACCOUNT_TIME}" IS NOT NULL
"""
_STORE = """
INSERT INTO rsky_pipeline.account_event
    (did, relay, seq, event_time, active, status, latest, others)
SELECT n.did, NULLIF(n.relay, ''), n.seq, n.time, n.status IS NULL, n.status, n.latest, n.others
FROM unnest(%b::text[], %b::text[], %b::bigint[], %b::text[], %b::text[], %b::text[], %b::text[])
    AS n(did, relay, seq, time, status, latest, others)
ON CONFLICT (did) DO UPDATE SET relay = EXCLUDED.relay, seq = EXCLUDED.seq,
    event_time = EXCLUDED.event_time, active = EXCLUDED.active, status = EXCLUDED.status,
    latest = EXCLUDED.latest, others = EXCLUDED.others
"""
_ASK_HOST = """
INSERT INTO rsky_pipeline.deletion_check (did) SELECT * FROM unnest(%b::text[])
ON CONFLICT (did) DO UPDATE SET attempts = 0, requested_at = now()
"""
_SET = """
UPDATE actor SET "upstreamStatus" = n.status
FROM unnest(%b::text[], %b::text[]) AS n(did, status)
WHERE actor.did = n.did AND actor."upstreamStatus" IS DISTINCT FROM n.status
"""
_SET_THEIRS = f"""
UPDATE actor SET "{ACCOUNT_TIME}" = n.time::timestamptz
FROM unnest(%b::text[], %b::text[]) AS n(did, time)
WHERE actor.did = n.did AND n.time LIKE '2___-__-__T__:__:__.___Z'
"""


class RelayEvent(NamedTuple):
    """The newest account event of one relay (`streams.event.numbered`); an empty one is unknown.

    `latest` is the latest time of all its events: where it is another one than `time`, the relay
    has sent more than the event with that time.
    """

    relay: str
    seq: int
    time: str
    latest: str
    status: str | None

    @property
    def rank(self) -> tuple[str, bool, bool, str]:
        """Order the events of several relays. Of equals an inactive status counts."""
        return self.latest, self.time < self.latest, self.status is not None, self.status or ""


class AccountEvents:
    """The newest account event of each relay, and the one that stands. Pure."""

    def __init__(self, standing: RelayEvent | None, others: Iterable[RelayEvent] = ()) -> None:
        self.standing = standing
        self._by_relay = {read_numbered(event.relay)[0]: event for event in others}
        if standing is not None:
            self._by_relay[read_numbered(standing.relay)[0]] = standing

    @property
    def others(self) -> list[RelayEvent]:
        """The newest events of relays whose events do not stand."""
        return [event for event in self._by_relay.values() if event is not self.standing]

    def take(self, change: AccountChange) -> bool:
        """Take an event; return whether it, or what it uncovers, stands from now on."""
        relay = read_numbered(change.relay)[0]
        known = self._by_relay.get(relay)
        latest = max(known.latest, change.time) if known is not None else change.time
        if known is None or _follows(change, known):
            event = RelayEvent(change.relay, change.seq, change.time, latest, change.status)
        else:
            event = known._replace(latest=latest)
        self._by_relay[relay] = event
        before = self.standing
        # Of equals the one that stands: a copy by another relay is no news.
        first = event
        if before is not None:
            first = self._by_relay.get(read_numbered(before.relay)[0], event)
        best = max((first, *self._by_relay.values()), key=lambda item: item.rank)
        self.standing = best
        return before is None or (best.relay, best.seq) != (before.relay, before.seq)


def _follows(change: AccountChange, known: RelayEvent) -> bool:
    """Return whether an event comes after another one of the same relay."""
    if not change.relay:  # it may be of any
        return (change.time, change.seq) > (known.time, known.seq)
    place = read_numbered(change.relay)[1], change.seq
    before = read_numbered(known.relay)[1], known.seq
    return place > before or (place < before and change.time > _later(known.latest, RENUMBERED))


def _later(time: str, by: timedelta) -> str:
    try:
        return format_utc(datetime.fromisoformat(time) + by)
    except (ValueError, OverflowError):
        return "9999"  # nothing is later


def fetch_account_events(tx: Transaction, dids: Iterable[str]) -> dict[str, AccountEvents]:
    """Return what is stored of accounts; the caller holds their locks if it will write."""
    return {
        did: AccountEvents(
            RelayEvent(relay, seq, time, latest or time, status),
            [RelayEvent(*item) for item in orjson.loads(others or "[]")],
        )
        for did, relay, seq, time, latest, status, others in tx.query(_FETCH, (sorted(dids),))
    }


def apply_statuses(tx: Transaction, changes: Iterable[AccountChange]) -> None:
    """Apply account events, in any order; the caller holds the locks on the accounts."""
    by_did: dict[str, list[AccountChange]] = {}
    for change in changes:
        by_did.setdefault(change.did, []).append(change)
    if not by_did:
        return
    stored = fetch_account_events(tx, by_did)
    theirs = tx.forms.account_times
    if theirs:
        for did, time, status in tx.query(_FETCH_THEIRS, (sorted(by_did.keys() - stored.keys()),)):
            stored[did] = AccountEvents(RelayEvent("", -1, time, time, status))
    events = {did: stored.get(did) or AccountEvents(None) for did in sorted(by_did)}
    news: list[tuple[str, str | None]] = []
    for did, known in events.items():
        taken = [known.take(change) for change in by_did[did]]
        if any(taken) and known.standing is not None:
            news.append((did, known.standing.status))
    tx.execute(_STORE, transpose(_rows(events)))
    if news:
        tx.execute(_SET, transpose(news))
        if theirs:  # for when it comes back
            times = ((did, events[did].standing) for did, _ in news)
            tx.execute(_SET_THEIRS, transpose([(did, one.time) for did, one in times if one]))
    if deleted := [did for did, status in news if status == DELETED]:
        tx.execute(_ASK_HOST, (deleted,))


def _rows(events: Mapping[str, AccountEvents]) -> Iterable[tuple[object, ...]]:
    for did, known in events.items():
        one = known.standing
        assert one is not None
        others = [tuple(item) for item in known.others]
        latest = one.latest if one.latest != one.time else None
        yield (did, one.relay, one.seq, one.time, one.status, latest,
               orjson.dumps(others).decode() if others else None)  # fmt: skip
