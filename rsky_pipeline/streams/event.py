"""The wire forms of stream entries: JSON, compatible with the original services.

Readers ignore unknown keys, treat a negative or missing `seq` as a historical event, and accept
both shapes of label entries (a frame of labels, or one label).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from rsky_pipeline.atproto import dagjson

EVENT_FIELD = b"event"
LABELS_FIELD = b"labels"
HISTORICAL_SEQ = -1
MAX_PAYLOAD = 8 * 1024 * 1024
MAX_DEPTH = 200  # levels of JSON; orjson writes up to 254, records have at most 128
_RECORD_KEY = b',"record":'
_MIN_SEQ, _MAX_SEQ = -(2**63), 2**63 - 1  # int64, as in the producers

Action = Literal["create", "update", "delete"]


class MalformedEventError(ValueError):
    """An entry that matches none of the wire forms; `reason` is a short stable code."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason


class RecordEvent(NamedTuple):  # made for each event: three times faster than a frozen dataclass
    """A record was created, updated or deleted; `record` is its JSON form, None for a delete.

    `json` is the same as text, if it could be taken from the payload without encoding it again.
    """

    action: Action
    seq: int
    time: str
    did: str
    commit: str
    rev: str
    collection: str
    rkey: str
    cid: str | None
    record: dict[str, Any] | None
    json: str = ""

    @property
    def uri(self) -> str:
        """The AT URI of the record."""
        return f"at://{self.did}/{self.collection}/{self.rkey}"

    @property
    def historical(self) -> bool:
        """Whether it comes from a repo's history rather than from a firehose."""
        return self.seq < 0


@dataclass(frozen=True, slots=True)
class RepoEvent:
    """All records of a repo at this rev have been queued (the closing event).

    `complete`: all deletions are queued too, so the rev becomes the repo's complete rev. The key is
    ours; the original services send an event without it after each part of a repo.
    """

    seq: int
    time: str
    did: str
    commit: str
    rev: str
    complete: bool = False

    @property
    def historical(self) -> bool:
        """Whether it comes from a repo's history rather than from a firehose."""
        return self.seq < 0


def numbered(host: str, numbering: int) -> str:
    """Return a host with its numbering: a later one, in which numbers begin anew, is larger."""
    return f"{host}#{numbering}" if numbering else host


def read_numbered(relay: str) -> tuple[str, int]:
    """Return the host and the numbering that `numbered` has put together."""
    host, _, numbering = relay.partition("#")
    return host, int(numbering) if numbering.isdecimal() and len(numbering) < 16 else 0


@dataclass(frozen=True, slots=True)
class AccountEvent:
    """The hosting status of an account changed.

    `relay` is the host whose numbers `seq` is one of, see `numbered`; the key is ours, and missing
    where the original services wrote the event.
    """

    seq: int
    time: str
    did: str
    active: bool
    status: str | None
    relay: str = ""


@dataclass(frozen=True, slots=True)
class IdentityEvent:
    """A handle or DID document may have changed."""

    seq: int
    time: str
    did: str
    handle: str | None


@dataclass(frozen=True, slots=True)
class LabelEvent:
    """One label; an empty `cid` labels all versions of the subject."""

    seq: int
    src: str
    uri: str
    cid: str
    val: str
    neg: bool
    cts: str
    exp: str | None


Event = RecordEvent | RepoEvent | AccountEvent | IdentityEvent


def encode_record_event(
    action: Action,
    *,
    seq: int,
    time: str,
    did: str,
    commit: str,
    rev: str,
    collection: str,
    rkey: str,
    cid: str | None = None,
    record: Any = None,
) -> bytes:
    """Return the JSON of a record event; `record` is the decoded CBOR value.

    Raises InvalidDataError for a record that has no JSON form.
    """
    body: dict[str, Any] = {
        "type": action, "seq": seq, "time": time, "did": did, "commit": commit, "rev": rev,
        "collection": collection, "rkey": rkey,
    }  # fmt: skip
    if action != "delete":
        body["cid"] = cid
        body["record"] = record
    return dagjson.to_json(body)


def encode_event(event: RepoEvent | AccountEvent | IdentityEvent) -> bytes:
    """Return the JSON of a repo, account or identity event."""
    body: dict[str, Any] = {"seq": event.seq, "time": event.time, "did": event.did}
    match event:
        case RepoEvent():
            body |= {"type": "repo", "commit": event.commit, "rev": event.rev}
            if event.complete:
                body["complete"] = True
        case AccountEvent():
            body |= {"type": "account", "active": event.active, "status": event.status}
            if event.relay:
                body["relay"] = event.relay
        case IdentityEvent():
            body |= {"type": "identity", "handle": event.handle}
    return orjson.dumps(body)


def encode_labels(seq: int, labels: Sequence[dict[str, Any]]) -> bytes:
    """Return the JSON of a `label_live` entry: the labels of one frame. Raises InvalidDataError."""
    return dagjson.to_json({"seq": seq, "labels": list(labels)})


def decode_event(payload: bytes) -> Event:
    """Read the `event` field of a firehose stream. Raises MalformedEventError."""
    body, json = _cut_record_out(payload) or (parse_payload(payload), "")
    kind, seq = body.get("type"), _seq(body)
    if kind in ("create", "update", "delete"):  # a tuple: `kind` may be unhashable
        return _record_event(kind, seq, body, json)
    time, did = required_text(body, "time"), required_text(body, "did")
    match kind:
        case "repo":
            commit, rev = required_text(body, "commit"), required_text(body, "rev")
            return RepoEvent(seq, time, did, commit, rev, body.get("complete") is True)
        case "account":
            active = body.get("active")
            if type(active) is not bool:
                raise MalformedEventError("missing_field", "active")
            status, relay = optional_text(body, "status"), optional_text(body, "relay")
            return AccountEvent(seq, time, did, active, status, relay or "")
        case "identity":
            return IdentityEvent(seq, time, did, optional_text(body, "handle"))
    raise MalformedEventError("unknown_type", str(kind)[:50])


def decode_labels(
    fields: Mapping[bytes, bytes], refused: list[MalformedEventError] | None = None
) -> list[LabelEvent]:
    """Read an entry of `label_live` in either shape. Raises MalformedEventError.

    With `refused`, a malformed label is added there, and the others of its frame are returned.
    """
    if LABELS_FIELD in fields:
        body = parse_payload(fields[LABELS_FIELD])
        labels = body.get("labels")
    elif EVENT_FIELD in fields:
        body = parse_payload(fields[EVENT_FIELD])
        labels = [body.get("label")]
    else:
        raise MalformedEventError("missing_field", "labels")
    if not isinstance(labels, list):
        raise MalformedEventError("invalid_field", "labels is not a list")
    seq = _seq(body)
    events: list[LabelEvent] = []
    for label in labels:
        try:
            events.append(_label(seq, label))
        except MalformedEventError as error:
            if refused is None:
                raise
            refused.append(error)
    return events


def _record_event(kind: Action, seq: int, body: dict[str, Any], json: str) -> RecordEvent:
    cid, record = None, None
    if kind == "delete":
        json = ""
    else:
        cid, record = required_text(body, "cid"), body.get("record")
        if not isinstance(record, dict):
            raise MalformedEventError("missing_field", "record")
    return RecordEvent(
        kind, seq, required_text(body, "time"), required_text(body, "did"),
        required_text(body, "commit"), required_text(body, "rev"),
        required_text(body, "collection"), required_text(body, "rkey"), cid, record, json,
    )  # fmt: skip


def _label(seq: int, label: object) -> LabelEvent:
    if not isinstance(label, dict):
        raise MalformedEventError("invalid_field", "a label is not an object")
    return LabelEvent(
        seq, required_text(label, "src"), required_text(label, "uri"),
        optional_text(label, "cid") or "", required_text(label, "val"), label.get("neg") is True,
        required_text(label, "cts"), optional_text(label, "exp"),
    )  # fmt: skip


def _cut_record_out(payload: bytes) -> tuple[dict[str, Any], str] | None:
    """Return an event with a record, and the record's JSON as a slice of the payload.

    None unless the event is as our encoder writes it: `record` comes last, and is its first object.
    Both parts are parsed by themselves, which proves that the cut is between them. To parse the
    whole would not: another writer may have written a key twice.
    """
    place = payload.find(b"{", 1)
    if (
        payload[place - len(_RECORD_KEY) : place] != _RECORD_KEY
        or payload[-2:] != b"}}"
        or len(payload) > MAX_PAYLOAD
    ):
        return None
    text = payload[place:-1]
    try:
        body = orjson.loads(payload[:place] + b"0}")
        body["record"] = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if payload.count(b"{") + payload.count(b"[") > MAX_DEPTH:
        _check_depth(body)
    return body, text.decode()


def parse_payload(payload: bytes) -> dict[str, Any]:
    """Return the JSON object of a field. Raises MalformedEventError."""
    if len(payload) > MAX_PAYLOAD:
        raise MalformedEventError("too_big", f"{len(payload)} bytes")
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise MalformedEventError("invalid_json", str(error)[:200]) from error
    if not isinstance(body, dict):
        raise MalformedEventError("invalid_json", "not an object")
    if payload.count(b"{") + payload.count(b"[") > MAX_DEPTH:
        _check_depth(body)
    return body


def _check_depth(value: object) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for holder in level
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise MalformedEventError("too_deep", f"nested deeper than {MAX_DEPTH} levels")


def _seq(body: dict[str, Any]) -> int:
    seq = body.get("seq", HISTORICAL_SEQ)
    if type(seq) is not int or not _MIN_SEQ <= seq <= _MAX_SEQ:
        raise MalformedEventError("invalid_field", "seq is not an integer of 64 bits")
    return seq


def required_text(body: dict[str, Any], key: str) -> str:
    """Return a text field of an object. Raises MalformedEventError if it is missing."""
    value = body.get(key)
    if type(value) is not str:
        raise MalformedEventError("missing_field", key)
    return value


def optional_text(body: dict[str, Any], key: str) -> str | None:
    """Return a text field of an object, or None if it is missing."""
    value = body.get(key)
    return value if type(value) is str else None
