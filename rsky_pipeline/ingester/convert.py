"""Frames of any event stream to stream entries; no I/O.

Whatever a frame holds, it costs at most itself: what cannot be read is counted and kept aside.
Source: https://atproto.com/specs/event-stream.
"""

import logging
from typing import NamedTuple, Protocol

from rsky_pipeline.atproto.errors import InvalidData
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    ErrorMessage,
    IdentityMessage,
    InfoMessage,
    LabelsMessage,
    Message,
    SyncMessage,
    UnknownMessage,
    decode_frame,
)
from rsky_pipeline.ingester.quarantine import Quarantine
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
    """What a signature has to prove: that an account made this commit."""

    did: str
    rev: str
    block: bytes  # of the commit object; its hash is checked


class Converted(NamedTuple):
    """What became of one frame. Its entries are appended together or not at all."""

    seq: int | None  # None where it has none or it cannot be read
    time: str | None  # the frame's own
    entries: list[Entry]
    size: int  # of the entries, in bytes
    claim: Claim | None = None
    instead: Entry | None = None  # replaces the entries if the claim is not proven
    changed_did: str | None = None  # this account's keys may be others from here on


class Converter(Protocol):
    """Turns the frames of one stream into entries."""

    tally: Tally
    ended: ErrorMessage | None  # the frame after which the server closes

    def convert(self, raw: bytes) -> Converted:
        """Convert one frame; never raises because of its content."""


class FrameConverter:
    """What relays and labelers have in common: remarks, errors, unknown and unreadable frames."""

    def __init__(self, host: str, tally: Tally, quarantine: Quarantine) -> None:
        self.host = host
        self.tally = tally
        self.ended: ErrorMessage | None = None
        self._quarantine = quarantine
        self._throttle = Throttled()

    def convert(self, raw: bytes) -> Converted:
        """Convert one frame; never raises because of its content."""
        self.count()
        try:
            message = decode_frame(raw)
            self.tally.frames[_FRAME_TYPES[type(message)]] += 1
            return self.convert_message(message, raw)
        except InvalidData as error:
            self.tally.frames["undecodable"] += 1
            return self._unreadable(raw, error.reason, str(error))
        except Exception as error:  # noqa: BLE001
            # A frame that hits a defect of ours must not be met again after every restart.
            _log.exception("frame conversion failed")
            return self._unreadable(raw, "internal", repr(error))

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
