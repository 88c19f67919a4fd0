"""Frames of the event streams, and the messages in them.

https://atproto.com/specs/event-stream and the lexicons of subscribeRepos and subscribeLabels.
"""

from dataclasses import dataclass
from typing import Any, Literal

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidData
from rsky_pipeline.atproto.syntax import is_did, is_tid

MAX_FRAME = 5_000_000
MAX_COMMIT_BLOCKS = 2_000_000
MAX_SYNC_BLOCKS = 10_000
MAX_OPS = 200
MAX_SEQ = 2**53 - 1

Action = Literal["create", "update", "delete"]


@dataclass(frozen=True, slots=True)
class RepoOp:
    """One change of a commit."""

    action: Action
    path: str
    cid: Cid | None  # None for a delete
    prev: Cid | None


@dataclass(frozen=True, slots=True)
class CommitMessage:
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
    too_big: bool


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
    """A message of a type that we do not know; only its sequence number matters."""

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
    """Read one binary WebSocket message. Raises InvalidData."""
    if len(raw) > MAX_FRAME:
        raise InvalidData("frame_too_big", f"{len(raw)} bytes")
    header, body = cbor.decode_pair(raw)
    if not isinstance(header, dict) or not isinstance(body, dict):
        raise InvalidData("invalid_frame", "header or body is not a map")
    operation, kind = header.get("op"), header.get("t")
    if operation == -1:
        return ErrorMessage(_text(body, "error"), _optional_text(body, "message"))
    reader = _READERS.get(kind) if operation == 1 and isinstance(kind, str) else None
    if reader is None:
        seq = body.get("seq")
        return UnknownMessage(str(kind)[:50], seq if type(seq) is int else None)
    message: Message = reader(body)
    return message


def encode_frame(kind: str, body: dict[str, Any]) -> bytes:
    """Return the frame of a message; `kind` starts with `#`."""
    return cbor.encode({"op": 1, "t": kind}) + cbor.encode(body)


def encode_error_frame(error: str, message: str) -> bytes:
    """Return an error frame."""
    return cbor.encode({"op": -1}) + cbor.encode({"error": error, "message": message})


def _commit(body: dict[str, Any]) -> CommitMessage:
    commit, blocks, prev_data = body.get("commit"), body.get("blocks"), body.get("prevData")
    since = _optional_text(body, "since")
    if not isinstance(commit, Cid) or type(blocks) is not bytes:
        raise InvalidData("invalid_frame", "commit or blocks is missing")
    if len(blocks) > MAX_COMMIT_BLOCKS:
        raise InvalidData("blocks_too_big", f"{len(blocks)} bytes")
    if prev_data is not None and not isinstance(prev_data, Cid):
        raise InvalidData("invalid_frame", "prevData is not a link")
    operations = body.get("ops")
    if not isinstance(operations, list) or len(operations) > MAX_OPS:
        raise InvalidData("invalid_ops", "ops is missing or has more than 200 entries")
    ops = tuple(_op(item) for item in operations)
    if len({op.path for op in ops}) != len(ops):
        raise InvalidData("invalid_ops", "a path occurs twice")
    return CommitMessage(
        _seq(body), _did(body, "repo"), _rev(body), since, commit, blocks, ops, prev_data,
        _text(body, "time"), body.get("tooBig") is True,
    )  # fmt: skip


def _op(item: object) -> RepoOp:
    if not isinstance(item, dict):
        raise InvalidData("invalid_ops", "an op is not a map")
    action, path, cid, prev = (item.get(key) for key in ("action", "path", "cid", "prev"))
    if action not in {"create", "update", "delete"} or not isinstance(path, str):
        raise InvalidData("invalid_ops", "an op has no action or path")
    if isinstance(cid, Cid) == (action == "delete"):
        raise InvalidData("invalid_ops", "only a delete has no cid")
    return RepoOp(action, path, cid, prev if isinstance(prev, Cid) else None)


def _sync(body: dict[str, Any]) -> SyncMessage:
    blocks = body.get("blocks")
    if type(blocks) is not bytes or len(blocks) > MAX_SYNC_BLOCKS:
        raise InvalidData("invalid_frame", "blocks is missing or too big")
    return SyncMessage(_seq(body), _did(body, "did"), _rev(body), _text(body, "time"), blocks)


def _identity(body: dict[str, Any]) -> IdentityMessage:
    return IdentityMessage(
        _seq(body), _did(body, "did"), _text(body, "time"), _optional_text(body, "handle")
    )


def _account(body: dict[str, Any]) -> AccountMessage:
    active = body.get("active")
    if type(active) is not bool:
        raise InvalidData("invalid_frame", "active is missing")
    return AccountMessage(
        _seq(body), _did(body, "did"), _text(body, "time"), active, _optional_text(body, "status")
    )


def _labels(body: dict[str, Any]) -> LabelsMessage:
    labels = body.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, dict) for label in labels):
        raise InvalidData("invalid_frame", "labels is not a list of maps")
    return LabelsMessage(_seq(body), tuple(labels))


def _info(body: dict[str, Any]) -> InfoMessage:
    return InfoMessage(_text(body, "name"), _optional_text(body, "message"))


_READERS: dict[str, Any] = {
    "#commit": _commit,
    "#sync": _sync,
    "#identity": _identity,
    "#account": _account,
    "#labels": _labels,
    "#info": _info,
}


def _seq(body: dict[str, Any]) -> int:
    seq = body.get("seq")
    if type(seq) is not int or not 0 <= seq <= MAX_SEQ:
        raise InvalidData("invalid_frame", "seq is missing or out of range")
    return seq


def _did(body: dict[str, Any], key: str) -> str:
    did = body.get(key)
    if not isinstance(did, str) or not is_did(did):
        raise InvalidData("invalid_frame", f"{key} is not a DID")
    return did


def _rev(body: dict[str, Any]) -> str:
    rev = body.get("rev")
    if not isinstance(rev, str) or not is_tid(rev):
        raise InvalidData("invalid_frame", "rev is not a TID")
    return rev


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise InvalidData("invalid_frame", f"{key} is missing")
    return value


def _optional_text(body: dict[str, Any], key: str) -> str | None:
    value = body.get(key)
    if value is None or isinstance(value, str):
        return value
    raise InvalidData("invalid_frame", f"{key} is not a text")
