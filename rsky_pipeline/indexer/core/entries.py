"""Reads an entry of a firehose stream, once and before any transaction.

Everything that can be wrong with an entry is found here, so that it costs at most itself:
`Refusal` carries the reason for the counters and the dead letter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from rsky_pipeline.atproto.datetimes import format_utc, normalize
from rsky_pipeline.atproto.syntax import is_did, is_rev, is_rkey
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import (
    MAX_CID_BYTES,
    MAX_DID_BYTES,
    InvalidRecordError,
    encode,
)
from rsky_pipeline.indexer.collections.values import Delete, Put
from rsky_pipeline.streams.event import (
    EVENT_FIELD,
    AccountEvent,
    IdentityEvent,
    MalformedEventError,
    RecordEvent,
    RepoEvent,
    decode_event,
)

KNOWN = frozenset(
    {"deactivated", "suspended", "takendown", "deleted", "throttled", "desynchronized"}
)
# The status of an inactive account with an unknown reason: hidden, and reversible.
FALLBACK = "deactivated"


@dataclass(frozen=True, slots=True)
class AccountChange:
    """An account's hosting status: None is active. An empty relay is unknown."""

    did: str
    seq: int
    time: str
    status: str | None
    relay: str = ""


@dataclass(frozen=True, slots=True)
class IdentityChange:
    """An account's handle or document may have changed."""

    did: str


class RepoRev(NamedTuple):
    """A repo is indexed up to this commit.

    `complete`: every record that it held then is queued, and the others are deleted.
    """

    did: str
    commit: str
    rev: str
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """An event that cannot be indexed, and why; a record's state is named, an entry is not."""

    reason: str
    message: str
    uri: str = ""
    rev: str = ""
    cid: str = ""


Change = Put | Delete | AccountChange | IdentityChange | RepoRev


class Reading(NamedTuple):
    """The content of an entry; `kind` is for metrics (create, update, delete, account, ...)."""

    kind: str
    did: str
    time: str  # normal form
    collection: str = ""
    historical: bool = False
    change: Change | None = None  # None: of a collection that nobody indexes
    rev: RepoRev | None = None  # a live commit, which moves actor_sync whatever the record is
    refused: Refusal | None = None


def read_entry(
    fields: Mapping[bytes, bytes] | None, collections: Mapping[str, Collection]
) -> Reading:
    """Read one entry of a firehose stream; the present stands in for a time that is unreadable."""
    try:
        payload = (fields or {}).get(EVENT_FIELD)
        if payload is None:
            raise MalformedEventError("missing_field", "the entry has no field event")
        event = decode_event(payload)
        time = normalize(event.time) or now_text()
        _check_did(event.did)
        match event:
            case RecordEvent():
                return _read_record(event, time, collections)
            case RepoEvent():
                rev = _repo_rev(event.did, event.commit, event.rev, event.complete)
                return Reading("repo", event.did, time, historical=event.seq < 0, change=rev)
            case AccountEvent():
                return _read_account(event, time)
            case IdentityEvent():
                change = IdentityChange(event.did)
                return Reading("identity", event.did, time, change=change)
    except MalformedEventError as error:
        return Reading("malformed", "", now_text(), refused=Refusal(error.reason, str(error)))


def read_direct(event: RecordEvent, time: str, collections: Mapping[str, Collection]) -> Reading:
    """Read an event that did not come as an entry, as `read_entry` would; `time` is normal."""
    try:
        _check_did(event.did)
        return _read_record(event, time, collections)
    except MalformedEventError as error:
        return Reading("malformed", event.did, time, refused=Refusal(error.reason, str(error)))


def repo_reading(did: str, commit: str, rev: str, time: str) -> Reading:
    """Return the content of the event that closes a complete repo. Raises MalformedEventError."""
    change = _repo_rev(did, commit, rev, complete=True)
    return Reading("repo", did, time, historical=True, change=change)


def now_text() -> str:
    """Return the present in the normal form of datetimes."""
    return format_utc(datetime.now(UTC))


def _read_record(event: RecordEvent, time: str, collections: Mapping[str, Collection]) -> Reading:
    """Read a record or its deletion. Raises MalformedEventError; a bad record is refused."""
    historical = event.historical
    rev = _repo_rev(event.did, event.commit, event.rev)
    moved = None if historical else rev
    try:
        collection = collections[event.collection]
    except KeyError:
        return Reading(event.action, event.did, time, "", historical, None, moved)
    if not is_rkey(event.rkey):
        raise MalformedEventError("invalid_rkey", event.rkey[:100])
    uri, nsid = event.uri, collection.nsid
    change: Change | None = None
    refused: Refusal | None = None
    if event.action == "delete":
        change = Delete(uri, event.did, event.rev)
    else:
        cid, record = event.cid, event.record
        assert cid is not None
        assert record is not None
        if not 0 < len(cid) <= MAX_CID_BYTES or not cid.isalnum():
            raise MalformedEventError("invalid_cid", cid[:100])
        try:
            json = event.json or encode(record)
            put = Put(uri, event.did, event.rkey, cid, event.rev, time, historical, json)
            if record.get("$type") != nsid:
                raise InvalidRecordError("wrong_type", f"$type is {str(record.get('$type'))[:100]}")
            put.rows = collection.read(put, record)
            if collection.check is not None:
                collection.check(record)
            change = put
        except InvalidRecordError as error:
            refused = Refusal(error.reason, str(error), uri, event.rev, cid)
    return Reading(event.action, event.did, time, nsid, historical, change, moved, refused)


def _read_account(event: AccountEvent, time: str) -> Reading:
    status = stored_status(event.active, event.status)
    change = AccountChange(event.did, event.seq, time, status, event.relay)
    return Reading("account", event.did, time, change=change)


def stored_status(active: bool, status: str | None) -> str | None:
    """Return the status to store: NULL only for an account that is active."""
    if active:
        return None
    lowered = (status or "").lower()
    return lowered if lowered in KNOWN else FALLBACK


def _check_did(did: str) -> None:
    if len(did) > MAX_DID_BYTES or not is_did(did):
        raise MalformedEventError("invalid_did", did[:100])


def _repo_rev(did: str, commit: str, rev: str, complete: bool = False) -> RepoRev:
    if not is_rev(rev):
        raise MalformedEventError("invalid_rev", rev[:100])
    if not 0 < len(commit) <= MAX_CID_BYTES or not commit.isalnum():
        raise MalformedEventError("invalid_cid", commit[:100])
    return RepoRev(did, commit, rev, complete)
