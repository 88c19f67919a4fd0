"""Raw dead letters: frames that the ingester could not use. Describing, and converting again.

No I/O. A frame whose commits are checked by signature is not written as it is: the repo that it
names is queued to be fetched, which proves everything and loses nothing.
"""

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import CommitMessage, decode_frame
from rsky_pipeline.atproto.syntax import tid_text
from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.ingester.commits.convert import RepoConverter
from rsky_pipeline.ingester.frames import FRAME_FIELD, FrameConverter, FrameCounters, RawDeadLetters
from rsky_pipeline.ingester.labels import LabelConverter
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.names import FIREHOSE_RAW_LETTERS, REPO_BACKFILL_HIGH
from rsky_pipeline.streams.repo_job import FetchReason


class NotConvertibleError(Exception):
    """A frame that cannot be tried again, or still cannot be used; the message has the reason."""


@dataclass(frozen=True, slots=True)
class RawFrame:
    """A frame as it was stored: `data` is the beginning of its `size` bytes, or all of them."""

    host: str
    reason: str
    error: str
    size: int
    data: bytes

    @property
    def truncated(self) -> bool:
        """Whether only its beginning was kept."""
        return len(self.data) < self.size


def parse_raw(fields: Mapping[bytes, bytes]) -> RawFrame:
    """Read an entry of a raw dead-letter stream. Raises NotConvertibleError."""
    try:
        body = orjson.loads(fields.get(FRAME_FIELD, b""))
        host, reason, error = (str(body.get(key) or "") for key in ("host", "reason", "error"))
        data = b64decode(body["frame"], validate=True)
        return RawFrame(host, reason or "unknown", error, int(body["size"]), data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotConvertibleError(f"not an entry of raw frames: {error}") from error


def summary(frame: RawFrame) -> dict[str, Any]:
    """Describe a frame, without its bytes."""
    found: dict[str, Any] = {"host": frame.host, "bytes": frame.size, "kept": len(frame.data)}
    try:
        message = decode_frame(frame.data)
    except InvalidDataError as error:
        return found | {"type": None, "undecodable": str(error)[:200]}
    found["type"] = type(message).__name__.removesuffix("Message").lower()
    for name in ("seq", "did", "rev", "time"):
        if hasattr(message, name):
            found[name] = getattr(message, name)
    if isinstance(message, CommitMessage):
        found["operations"] = [f"{op.action} {op.path}"[:200] for op in message.ops[:10]]
    return found


def convert_again(stream: str, frame: RawFrame, settings: Settings) -> list[Entry]:
    """Return the entries that a frame of a raw dead-letter stream becomes now.

    Raises NotConvertibleError if anything of it still cannot be used.
    """
    if frame.truncated:
        raise NotConvertibleError(f"only {len(frame.data)} of its {frame.size} bytes were kept")
    converter = _converter(stream, frame.host, settings)
    converted = converter.convert(frame.data)
    entries = converted.entries
    refused = next((entry for entry in entries if entry.stream == stream), None)
    if refused is not None:
        again = parse_raw({FRAME_FIELD: refused.payload})
        raise NotConvertibleError(f"{again.reason}: {again.error}")
    update = converted.update
    if update is None or not isinstance(converter, RepoConverter):  # a labeler has no repos
        return entries
    if entries and update.proof is None and update.problem is None:
        return entries
    # The repo proves a commit with a proof, and has the operations that the frame did not hold.
    unwritten = update.ops if update.proof is not None else ()
    reason, rev = update.problem or FetchReason.of(update.kind), tid_text(update.rev)
    job = converter.resync(REPO_BACKFILL_HIGH, update.did, rev, reason, unwritten)
    return [job] if update.proof is not None else [*entries, job]


def _converter(stream: str, host: str, settings: Settings) -> FrameConverter:
    letters = RawDeadLetters(stream)
    if stream != FIREHOSE_RAW_LETTERS:
        return LabelConverter(host, FrameCounters(), letters)
    try:
        url = parse_endpoint(host).http_url()
    except ValueError:
        url = ""  # a hint only: where the repo was seen
    verify = settings.verify
    return RepoConverter(host, url, settings.collections, FrameCounters(), letters, verify=verify)
