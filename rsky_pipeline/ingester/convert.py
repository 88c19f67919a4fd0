"""Frames of any event stream to stream entries; no I/O.

Whatever a frame holds, it costs at most itself: what cannot be read is counted and kept aside.
Source: https://atproto.com/specs/event-stream.
"""

import logging
from typing import NamedTuple, Protocol

from rsky_pipeline.atproto.commit import Commit
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    ErrorMessage,
    IdentityMessage,
    InfoMessage,
    LabelsMessage,
    Message,
    RepoOp,
    SyncMessage,
    UnknownMessage,
    decode_frame,
)
from rsky_pipeline.ingester.chain import Update
from rsky_pipeline.ingester.proof import Contents
from rsky_pipeline.ingester.quarantine import Quarantine
from rsky_pipeline.ingester.relays import News
from rsky_pipeline.ingester.repo_state import RepoState
from rsky_pipeline.ingester.tally import Tally
from rsky_pipeline.runtime.logging import Throttled
from rsky_pipeline.streams.append import Entry

_log = logging.getLogger(__name__)

# Longer than any honest time; it is repeated in each event of a frame.
MAX_TIME = 64

_FRAME_TYPES: dict[type, str] = {
    CommitMessage: "commit",
    SyncMessage: "sync",
    IdentityMessage: "identity",
    AccountMessage: "account",
    LabelsMessage: "labels",
    InfoMessage: "info",
    ErrorMessage: "error",
    UnknownMessage: "unknown",
}


class Claim(NamedTuple):
    """What must be proven: that an account signed a commit, and what its operations were."""

    did: str
    commit: Commit | None  # None where what was sent is no commit of this account
    message: CommitMessage | None = None  # whose operations must be proven as well
    contents: Contents | None = None


class About(NamedTuple):
    """What a frame says of a repo, apart from its records."""

    update: Update
    rev: str
    ops: tuple[RepoOp, ...] = ()  # on collections that are kept
    reason: str | None = None  # why the repo must be fetched, whatever else is found
    readable: bool = True  # whether the repo may be taken to be at this commit


class Converted(NamedTuple):
    """What became of one frame. Its entries are appended together or not at all."""

    seq: int | None  # None where it has none or it cannot be read
    time: str | None  # the frame's own
    entries: list[Entry]
    size: int  # of the entries, in bytes
    about: About | None = None
    claim: Claim | None = None
    changed_did: str | None = None  # this account's keys may be others from here on
    news: News | None = None  # what else is said of that account
    state: tuple[bytes, RepoState] | None = None  # by its digest; written with the entries


class Converter(Protocol):
    """Turns the frames of one stream into entries."""

    host: str
    tally: Tally
    ended: ErrorMessage | None  # the frame after which the server closes
    time_before: str | None  # of the event before the next one

    def read(self, raw: bytes) -> Message | Converted:
        """Decode one frame; what cannot be decoded is converted at once."""

    def convert_read(self, message: Message, raw: bytes) -> Converted:
        """Convert a frame that was read; never raises because of its content."""

    def keep_aside(self, raw: bytes, reason: str, error: str) -> list[Entry]:
        """Count an error and return the entry that keeps its frame, if there is room for it."""


class FrameConverter:
    """What relays and labelers have in common: remarks, errors, unknown and unreadable frames."""

    def __init__(self, host: str, tally: Tally, quarantine: Quarantine) -> None:
        self.host = host
        self.tally = tally
        self.ended: ErrorMessage | None = None
        self.time_before: str | None = None
        self._quarantine = quarantine
        self._throttle = Throttled()

    def convert(self, raw: bytes) -> Converted:
        """Read and convert one frame; never raises because of its content."""
        message = self.read(raw)
        return message if isinstance(message, Converted) else self.convert_read(message, raw)

    def read(self, raw: bytes) -> Message | Converted:
        """Decode one frame; what cannot be decoded is converted at once."""
        self.count()
        try:
            message = decode_frame(raw)
            self.tally.frames[_FRAME_TYPES[type(message)]] += 1
            return message
        except InvalidDataError as error:
            self.tally.frames["undecodable"] += 1
            return self._unreadable(raw, error.reason, str(error))
        except Exception as error:  # noqa: BLE001
            return self._defect(raw, error)

    def convert_read(self, message: Message, raw: bytes) -> Converted:
        """Convert a frame that was read; never raises because of its content."""
        try:
            return self.convert_message(message, raw)
        except InvalidDataError as error:
            return self._unreadable(raw, error.reason, str(error))
        except Exception as error:  # noqa: BLE001
            return self._defect(raw, error)

    def count(self) -> None:
        """Count a frame, readable or not."""

    def convert_message(self, message: Message, raw: bytes) -> Converted:
        """Convert a decoded message of any type."""
        match message:
            case InfoMessage():
                self._remark(message)
                return Converted(None, None, [], 0)
            case ErrorMessage():
                self.ended = message
                return Converted(None, None, [], 0)
            case UnknownMessage(seq=seq):
                return Converted(seq, None, [], 0)
            case LabelsMessage() | CommitMessage() | SyncMessage():
                return Converted(message.seq, None, [], 0)
        return Converted(message.seq, message.time[:MAX_TIME], [], 0)

    def keep_aside(self, raw: bytes, reason: str, error: str) -> list[Entry]:
        """Count an error and return the entry that keeps its frame, if there is room for it."""
        self.tally.errors[reason] += 1
        held_back = self._throttle.allow(reason)
        if held_back is not None:
            _log.warning(
                "cannot use a frame, or a part of it",
                extra={"host": self.host, "reason": reason, "error": error, "unlogged": held_back},
            )
        entry = self._quarantine.entry(raw, host=self.host, reason=reason, error=error)
        if entry is None:
            return []
        self.tally.quarantined += 1
        return [entry]

    def _defect(self, raw: bytes, error: Exception) -> Converted:
        """Keep aside a frame that hits a defect of ours: it must not be met at every restart."""
        _log.exception("frame conversion failed")
        return self._unreadable(raw, "internal", repr(error))

    def _unreadable(self, raw: bytes, reason: str, error: str) -> Converted:
        entries = self.keep_aside(raw, reason, error)
        return Converted(None, None, entries, sum(len(entry.payload) for entry in entries))

    def _remark(self, message: InfoMessage) -> None:
        self.tally.infos[message.name] += 1
        extra = {
            "host": self.host,
            "info": message.name[:50],
            "note": (message.message or "")[:200],
        }
        if message.name == "OutdatedCursor":
            _log.error(
                "events were lost: the cursor is older than what the host keeps", extra=extra
            )
        else:
            _log.warning("remark of a host", extra=extra)
