"""Frames of the event streams, and the messages in them.

https://atproto.com/specs/event-stream and the lexicons of subscribeRepos and subscribeLabels.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from rsky_pipeline.atproto import cbor, compiled
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.rules import MAX_COMMIT_BLOCKS, MAX_OPS
from rsky_pipeline.atproto.syntax import is_did, is_rev, is_tid, rev_microseconds, tid_text

MAX_FRAME = 5_000_000
MAX_SYNC_BLOCKS = 10_000
MAX_SEQ = 2**53 - 1

MAX_READABLE_OPS = 2_000  # of a commit that has more than are allowed

Action = Literal["create", "update", "delete"]
_ACTIONS = frozenset({"create", "update", "delete"})


class RepoOp(NamedTuple):
    """One change of a commit."""

    action: Action
    path: str
    cid: Cid | None  # None for a delete
    prev: Cid | None


class CommitMessage(NamedTuple):
    """`#commit`: a repo changed."""

    seq: int
    did: str
    rev: str
    since: str | None
    commit: Cid
    blocks: bytes
    ops: tuple[RepoOp, ...]
    prev_data: Cid | None
    time: str
    too_big: bool  # deprecated, like `rebase`: never true on a stream that keeps to the rules
    rebase: bool


@dataclass(frozen=True, slots=True)
class SyncMessage:
    """`#sync`: a repo is at this state now, whatever it was before."""

    seq: int
    did: str
    rev: str
    time: str
    blocks: bytes


@dataclass(frozen=True, slots=True)
class IdentityMessage:
    """`#identity`: a DID document or handle may have changed; the handle is a hint."""

    seq: int
    did: str
    time: str
    handle: str | None


@dataclass(frozen=True, slots=True)
class AccountMessage:
    """`#account`: the hosting status of an account at the emitting host."""

    seq: int
    did: str
    time: str
    active: bool
    status: str | None


@dataclass(frozen=True, slots=True)
class LabelsMessage:
    """`#labels`: labels that share one sequence number."""

    seq: int
    labels: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class InfoMessage:
    """`#info`: a remark of the server, such as OutdatedCursor."""

    name: str
    message: str | None


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """An error frame; the server closes after it."""

    error: str
    message: str | None


@dataclass(frozen=True, slots=True)
class UnknownMessage:
    """A message of a kind that is unknown or no longer used; only its sequence number matters."""

    op: int
    type: str
    seq: int | None


Message = (
    CommitMessage
    | SyncMessage
    | IdentityMessage
    | AccountMessage
    | LabelsMessage
    | InfoMessage
    | ErrorMessage
    | UnknownMessage
)


def decode_frame(raw: bytes) -> Message:
    """Read one binary WebSocket message. Raises InvalidDataError."""
    if len(raw) > MAX_FRAME:
        raise InvalidDataError("frame_too_big", f"{len(raw)} bytes")
    fields = compiled.read_commit(raw, RepoOp._make)
    if fields is not None:
        return CommitMessage._make(fields)
    header, body = cbor.decode_pair_loosely(raw)
    if type(header) is not dict or type(body) is not dict:
        raise InvalidDataError("invalid_frame", "header or body is not a map")
    operation, kind = header.get("op"), header.get("t")
    if (
        kind == "#labels"
    ):  # labels are passed on as they are: links must stay distinct from byte strings
        header, body = cbor.decode_pair(raw)
    if operation == 1 and type(kind) is str and kind in _READERS:
        return _READERS[kind](body)
    if type(operation) is not int:
        raise InvalidDataError("invalid_frame", "op is missing")
    if operation == -1:
        return ErrorMessage(required_text(body, "error"), optional_text(body, "message"))
    return _unknown(operation, kind, body)


def encode_frame(kind: str, body: dict[str, Any]) -> bytes:
    """Return the frame of a message; `kind` starts with `#`."""
    return cbor.encode({"op": 1, "t": kind}) + cbor.encode(body)


def encode_error_frame(error: str, message: str) -> bytes:
    """Return an error frame."""
    return cbor.encode({"op": -1}) + cbor.encode({"error": error, "message": message})


class UnreadableCommitError(InvalidDataError):
    """A `#commit` or `#sync` that cannot be read as a whole, or is beyond a limit; its account can.

    `ops` are the readable operations of a commit.
    """

    def __init__(self, error: InvalidDataError, body: dict[str, Any], account: str) -> None:
        """`account` is the key of the DID. Raises InvalidDataError if not even the account and the
        rev can be read."""
        super().__init__(error.reason, str(error))
        self.seq = _seq(body)
        self.did = _did(body, account)
        self.rev = _earlier_tid(body)
        time = body.get("time")
        self.time = time if type(time) is str else None
        self.ops = tuple(_readable_ops(body.get("ops")))


def _commit(body: dict[str, Any]) -> CommitMessage:
    try:
        return _whole_commit(body)
    except InvalidDataError as error:
        raise UnreadableCommitError(error, body, "repo") from error


def _whole_commit(body: dict[str, Any]) -> CommitMessage:
    blocks = body.get("blocks")
    if type(blocks) is not bytes:
        raise InvalidDataError("invalid_frame", "blocks is missing")
    if len(blocks) > MAX_COMMIT_BLOCKS:
        raise InvalidDataError("blocks_too_big", f"{len(blocks)} bytes")
    return CommitMessage(
        _seq(body),
        _did(body, "repo"),
        _rev(body),
        optional_text(body, "since"),
        _link(body, "commit"),
        blocks,
        _ops(body.get("ops")),
        _optional_link(body, "prevData"),
        required_text(body, "time"),
        body.get("tooBig") is True,
        body.get("rebase") is True,
    )


def _ops(items: object) -> tuple[RepoOp, ...]:
    if type(items) is not list or len(items) > MAX_OPS:
        raise InvalidDataError("invalid_ops", f"ops is missing or has more than {MAX_OPS} entries")
    ops = tuple([_op(item) for item in items])
    if len(ops) > 1 and len({op.path for op in ops}) != len(ops):
        return _folded(ops)
    return ops


def _folded(ops: Iterable[RepoOp]) -> tuple[RepoOp, ...]:
    """Return one operation for each path, which several of them amount to.

    The specification allows one. The official consumer performs them in their order.
    """
    found: dict[str, RepoOp] = {}
    for op in ops:
        first = found.get(op.path)
        found[op.path] = op if first is None else op._replace(prev=first.prev)
    return tuple(found.values())


def _readable_ops(items: object) -> Iterator[RepoOp]:
    for item in items[:MAX_READABLE_OPS] if type(items) is list else ():
        with suppress(InvalidDataError):
            yield _op(item)


def _op(item: object) -> RepoOp:
    if type(item) is not dict:
        raise InvalidDataError("invalid_ops", "an op is not a map")
    action, path = item.get("action"), item.get("path")
    cid = _optional_link(item, "cid", "invalid_ops")
    prev = _optional_link(item, "prev", "invalid_ops")
    if type(action) is not str or action not in _ACTIONS or type(path) is not str:
        raise InvalidDataError("invalid_ops", "an op has no action or path")
    if (cid is None) != (action == "delete"):
        raise InvalidDataError("invalid_ops", "a delete, and only a delete, has no cid")
    return RepoOp(cast(Action, action), path, cid, prev)


def _sync(body: dict[str, Any]) -> SyncMessage:
    try:
        return _whole_sync(body)
    except InvalidDataError as error:
        raise UnreadableCommitError(error, body, "did") from error


def _whole_sync(body: dict[str, Any]) -> SyncMessage:
    blocks = body.get("blocks")
    if type(blocks) is not bytes or len(blocks) > MAX_SYNC_BLOCKS:
        raise InvalidDataError("invalid_frame", "blocks is missing or too big")
    time = required_text(body, "time")
    return SyncMessage(_seq(body), _did(body, "did"), _rev(body), time, blocks)


def _identity(body: dict[str, Any]) -> IdentityMessage:
    return IdentityMessage(
        _seq(body), _did(body, "did"), required_text(body, "time"), optional_text(body, "handle")
    )


def _account(body: dict[str, Any]) -> AccountMessage:
    active = body.get("active")
    if type(active) is not bool:
        raise InvalidDataError("invalid_frame", "active is missing")
    time, status = required_text(body, "time"), optional_text(body, "status")
    return AccountMessage(_seq(body), _did(body, "did"), time, active, status)


def _tombstone(body: dict[str, Any]) -> AccountMessage:
    """Read `#tombstone`, which `#account` with the status deleted has replaced."""
    time = required_text(body, "time")
    return AccountMessage(_seq(body), _did(body, "did"), time, False, "deleted")


def _migration(body: dict[str, Any]) -> IdentityMessage:
    """Read `#migrate`, which `#identity` has replaced: the document names another host now."""
    return IdentityMessage(_seq(body), _did(body, "did"), required_text(body, "time"), None)


def _labels(body: dict[str, Any]) -> LabelsMessage:
    labels = body.get("labels")
    if type(labels) is not list or not all(type(label) is dict for label in labels):
        raise InvalidDataError("invalid_frame", "labels is not a list of maps")
    return LabelsMessage(_seq(body), tuple(labels))


def _info(body: dict[str, Any]) -> InfoMessage:
    return InfoMessage(required_text(body, "name"), optional_text(body, "message"))


def _unknown(operation: int, kind: object, body: dict[str, Any]) -> UnknownMessage:
    seq = body.get("seq")
    valid = type(seq) is int and 0 <= seq <= MAX_SEQ
    return UnknownMessage(operation, kind[:50] if type(kind) is str else "", seq if valid else None)


_READERS: dict[str, Callable[[dict[str, Any]], "Message"]] = {
    "#commit": _commit,
    "#sync": _sync,
    "#identity": _identity,
    "#account": _account,
    # Of before 2024, on replayed streams; `#identity` and `#account` have replaced them.
    "#handle": _identity,
    "#tombstone": _tombstone,
    "#migrate": _migration,
    "#labels": _labels,
    "#info": _info,
}


def _seq(body: dict[str, Any]) -> int:
    seq = body.get("seq")
    if type(seq) is not int or not 0 <= seq <= MAX_SEQ:
        raise InvalidDataError("invalid_frame", "seq is missing or out of range")
    return seq


def _did(body: dict[str, Any], key: str) -> str:
    did = body.get(key)
    if type(did) is not str or not is_did(did):
        raise InvalidDataError("invalid_frame", f"{key} is not a DID")
    return did


def _rev(body: dict[str, Any]) -> str:
    rev = body.get("rev")
    if type(rev) is not str or not is_tid(rev):
        raise InvalidDataError("invalid_frame", "rev is not a TID")
    return rev


def _earlier_tid(body: dict[str, Any]) -> str:
    """Return the rev of a message; for one that is no TID, the last TID before its time."""
    rev = body.get("rev")
    if type(rev) is str and not is_tid(rev) and is_rev(rev):
        return tid_text((rev_microseconds(rev) << 10) - 1)
    return _rev(body)


def _link(body: dict[str, Any], key: str) -> Cid:
    link = _optional_link(body, key)
    if link is None:
        raise InvalidDataError("invalid_frame", f"{key} is missing")
    return link


def _optional_link(body: dict[str, Any], key: str, reason: str = "invalid_frame") -> Cid | None:
    """Return a link; a byte string in its place, which the decoder makes of it, is as good."""
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, bytes):
        raise InvalidDataError(reason, f"{key} is not a link")
    return Cid.from_bytes(value)


def required_text(fields: dict[str, Any], key: str, reason: str = "invalid_frame") -> str:
    """Return a text of a decoded map. Raises InvalidDataError with this reason."""
    value = fields.get(key)
    if type(value) is not str:
        raise InvalidDataError(reason, f"{key} is missing")
    return value


def optional_text(fields: dict[str, Any], key: str, reason: str = "invalid_frame") -> str | None:
    """Return a text of a decoded map, None where it is absent. Raises InvalidDataError."""
    value = fields.get(key)
    if value is None or type(value) is str:
        return value
    raise InvalidDataError(reason, f"{key} is not a text")
