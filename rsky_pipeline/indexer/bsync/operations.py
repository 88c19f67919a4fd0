"""Reads an operation of bsync, once and before any transaction.

Everything that can be wrong with it is found here, so that it costs at most itself. bsync has
checked DIDs, subjects, namespaces and keys, and that a payload is JSON: not its form, nor sizes. A
payload that does not fit its namespace is no fault of the entry: the AppView keeps it as private
data, and makes no other row of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeGuard

import orjson

from rsky_pipeline.atproto.datetimes import format_utc, normalize
from rsky_pipeline.atproto.syntax import is_did, is_tid, parse_at_uri, tid_microseconds
from rsky_pipeline.indexer.collections.fields import (
    MAX_CID_BYTES,
    MAX_DID_BYTES,
    MAX_REFERENCE_BYTES,
)
from rsky_pipeline.streams.bsync import BsyncEntry, decode_operation, decode_text, digest
from rsky_pipeline.streams.event import MalformedEventError

BOOKMARK = "app.bsky.bookmark.defs#bookmark"
DRAFT = "app.bsky.draft.defs#draftWithId"
SUBSCRIPTION = "app.bsky.notification.defs#subjectActivitySubscription"
AGE_EVENT = "app.bsky.unspecced.defs#ageAssuranceEvent"
AGE_ACCESS = "app.bsky.ageassurance.defs#event"
WITH_ROWS = (BOOKMARK, DRAFT, SUBSCRIPTION)  # their keys are TIDs, of when they were made

MUTES = ("mute", "list_mute", "thread_mute")  # tables, and namespaces of the log of mutes
PRIORITY = "actor_state"
_LISTS = "app.bsky.graph.list"
# One row of a primary key has to hold actor, namespace and key.
_MAX_NAMESPACE = 400
_MAX_KEY = 512
_MAX_WORD = 100  # of age assurance

Method = Literal["create", "update", "delete", "clear"]
# Names and numbers in proto3 JSON: an enum may be given as either.
_MUTE_TYPES: Mapping[object, Method] = {
    "TYPE_ADD": "create", 1: "create", "TYPE_REMOVE": "delete", 2: "delete",
    "TYPE_CLEAR": "clear", 3: "clear",
}  # fmt: skip
_METHODS: Mapping[object, Method] = {
    "METHOD_CREATE": "create", 1: "create", "METHOD_UPDATE": "update", 2: "update",
    "METHOD_DELETE": "delete", 3: "delete",
}  # fmt: skip


class Item(NamedTuple):
    """What an operation is about: of one item the last operation stands."""

    actor: str
    namespace: str  # of mutes and priorities the table
    key: str


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation that can be applied."""

    log: str
    place: int
    id: int
    history: bool
    digest: str
    item: Item
    method: Method
    time: str  # that its rows get
    payload: str = ""
    only_reposts: bool = False
    only_quoteposts: bool = False
    priority: bool | None = None


@dataclass(frozen=True, slots=True)
class BsyncReading:
    """The operation of an entry, or why it cannot be applied."""

    operation: Operation | None = None
    refused: MalformedEventError | None = None


def read_bsync(fields: Mapping[bytes, bytes] | None) -> BsyncReading:
    """Read an entry of `bsync_live`."""
    try:
        return BsyncReading(_operation(decode_operation(fields)))
    except MalformedEventError as error:
        return BsyncReading(refused=error)


def _operation(entry: BsyncEntry) -> Operation:
    """Raises MalformedEventError."""
    served = entry.operation
    arrived = normalize(entry.time)
    if arrived is None:
        raise MalformedEventError("invalid_field", "time")
    actor = _text(served, "actorDid", MAX_DID_BYTES)
    if not is_did(actor):
        raise MalformedEventError("invalid_did", actor[:100])
    start = entry.log, entry.place, entry.id, entry.history, digest(served)
    if entry.log == "mute":
        item, method = _mute(served, actor)
        return Operation(
            *start, item, method, arrived, only_reposts=served.get("onlyReposts") is True,
            only_quoteposts=served.get("onlyQuoteposts") is True,
        )  # fmt: skip
    if entry.log == "notif":
        priority = served.get("priority")
        if priority is not None and not isinstance(priority, bool):
            raise MalformedEventError("invalid_field", "priority")
        return Operation(*start, Item(actor, PRIORITY, ""), "update", arrived, priority=priority)
    method = _method(served, "method", _METHODS)
    item = Item(actor, _text(served, "namespace", _MAX_NAMESPACE), _text(served, "key", _MAX_KEY))
    payload = "" if method == "delete" else decode_text(served.get("payload"))
    if "\0" in payload:
        raise MalformedEventError("invalid_field", "payload holds a NUL character")
    made = _made_at(item, arrived) if entry.history else arrived
    return Operation(*start, item, method, made, payload)


def _mute(served: Mapping[str, Any], actor: str) -> tuple[Item, Method]:
    method = _method(served, "type", _MUTE_TYPES)
    if method == "clear":
        return Item(actor, "", ""), method
    subject = _text(served, "subject", MAX_REFERENCE_BYTES)
    if subject.startswith("did:"):
        if len(subject) > MAX_DID_BYTES:
            raise MalformedEventError("invalid_did", subject[:100])
        return Item(actor, "mute", subject), method
    uri = parse_at_uri(subject)
    if uri is None:
        raise MalformedEventError("invalid_uri", subject[:100])
    table = "list_mute" if uri.collection == _LISTS else "thread_mute"
    return Item(actor, table, subject), method


def _method(served: Mapping[str, Any], name: str, known: Mapping[object, Method]) -> Method:
    value = served.get(name)
    method = known.get(value) if isinstance(value, str | int) else None
    if method is None:
        raise MalformedEventError("unknown_type", str(value)[:50])
    return method


def _text(served: Mapping[str, Any], name: str, most: int) -> str:
    """Return a text that PostgreSQL can store and index. Raises MalformedEventError."""
    value = served.get(name)
    if not isinstance(value, str) or not value:
        raise MalformedEventError("missing_field", name)
    if "\0" in value or len(value.encode("utf-8", "replace")) > most:
        raise MalformedEventError("invalid_field", f"{name} is too long or holds a NUL character")
    return value


def _made_at(item: Item, arrived: str) -> str:
    """Return when the item of an operation from before our time was made, if its key shows it."""
    if item.namespace not in WITH_ROWS or not is_tid(item.key):
        return arrived
    moment = datetime.fromtimestamp(tid_microseconds(item.key) / 1e6, UTC)
    return min(format_utc(moment), arrived)


@dataclass(frozen=True, slots=True)
class RowContent:
    """The columns of a bookmark or subscription that come from its payload."""

    subject: str = ""
    cid: str = ""
    post: bool = False
    reply: bool = False


def read_content(namespace: str, payload: str, method: Method = "create") -> RowContent | None:
    """Return the content of a payload; None if the AppView makes no row of it.

    A draft's is stored as it is, whatever it holds. An UPDATE does not look at the subject.
    """
    if namespace == DRAFT:
        return RowContent()
    body = _object(payload)
    if namespace == BOOKMARK:
        subject = body.get("subject")
        subject = subject if isinstance(subject, dict) else {}
        uri, cid = subject.get("uri"), subject.get("cid")
        if _fits(uri, MAX_REFERENCE_BYTES) and _fits(cid, MAX_CID_BYTES):
            return RowContent(uri, cid)
        return None
    did, wanted = body.get("subject"), body.get("activitySubscription")
    wanted = wanted if isinstance(wanted, dict) else {}
    post, reply = wanted.get("post"), wanted.get("reply")
    if not (isinstance(post, bool) and isinstance(reply, bool)):
        return None
    if _fits(did, MAX_DID_BYTES):
        return RowContent(did, post=post, reply=reply)
    return None if method == "create" else RowContent(post=post, reply=reply)


def read_age(operation: Operation) -> dict[str, str]:
    """Return the columns of `actor` that an operation sets, by the names of our table."""
    namespace = operation.item.namespace
    if operation.method != "create" or namespace not in (AGE_EVENT, AGE_ACCESS):
        return {}
    body = _object(operation.payload)
    status, made = body.get("status"), body.get("createdAt")
    if not _fits(status, _MAX_WORD) or not _fits(made, _MAX_WORD):
        return {}
    found = {"status": status, "access": body.get("access"), "country": body.get("countryCode"),
             "region": body.get("regionCode")}  # fmt: skip
    if status == "pending":
        found["initiated"] = made
    wanted = ("status", "initiated") if namespace == AGE_EVENT else tuple(found)
    return {name: value for name in wanted if _fits(value := found.get(name), _MAX_WORD)}


def _object(payload: str) -> dict[str, Any]:
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError:  # a lone surrogate, which only JavaScript accepts
        return {}
    return body if isinstance(body, dict) else {}


def _fits(value: object, most: int) -> TypeGuard[str]:
    return (
        isinstance(value, str)
        and "\0" not in value
        and 0 < len(value.encode("utf-8", "replace")) <= most
    )
