"""Frames of any event stream: decoding, counters, raw dead letters. No I/O.

Whatever a frame holds, it costs at most itself: a frame that cannot be read is counted and becomes
a raw dead letter. `commits.convert` and `labels` read the messages of relays and labelers.
https://atproto.com/specs/event-stream
"""

import logging
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson
import trio

from rsky_pipeline.atproto.errors import InvalidDataError
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
from rsky_pipeline.ingester.commits.relays import AccountUpdate
from rsky_pipeline.ingester.commits.signatures import SignatureStatus
from rsky_pipeline.ingester.commits.states import RepoState
from rsky_pipeline.ingester.commits.validation import RepoUpdate, UnreadCommit
from rsky_pipeline.ingester.sequence import SeqGate
from rsky_pipeline.observability.ingester import INFO_NAMES, IngesterMetrics
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.errors import described
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.streams.append import Entry

_log = logging.getLogger(__name__)

MAX_TIME = 64  # longer than any honest time; it is repeated in each event of a frame
FRAME_FIELD = b"frame"
MAX_RAW_LETTERS = 10_000  # entries of a stream; the oldest matter, later ones are only counted
MAX_RAW_BYTES = 64 * 1024  # of one frame

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


@dataclass(slots=True)
class PendingFrame:
    """One frame between its socket and the store.

    Its entries and its state are appended together or not at all, with a cursor that covers it. It
    is filled in steps: by conversion, by the check of its signature, by admission.
    """

    seq: int | None  # that the stream is covered up to with it; None if it has no number
    time: str | None  # the event's own
    entries: list[Entry]
    size: int  # of the entries, in bytes
    state: tuple[bytes, RepoState] | None = None  # of its repo, by its digest
    unread: UnreadCommit | None = None  # a commit, until its blocks are read
    update: RepoUpdate | None = None  # of a commit or sync, until it is admitted
    account: AccountUpdate | None = None  # of an account or identity event
    status: SignatureStatus | None = None  # None where no signature is checked
    waits: bool = False  # for the status
    again: bool = False  # it is read again, since the database has lost it
    held: int = 0  # bytes that it takes in the reorder buffer

    def fill(self, read: "PendingFrame") -> None:
        """Take the entries and the update that its blocks were found to be."""
        self.unread = None
        self.entries, self.size, self.update = read.entries, read.size, read.update

    def clear(self) -> None:
        """Write nothing of the frame but the cursor that covers it."""
        self.entries, self.size = [], 0

    def add(self, entry: Entry) -> None:
        """Append one more entry."""
        self.entries.append(entry)
        self.size += len(entry.payload)


class FrameCounters:
    """Plain numbers for the hot path, since the last `report` to the metrics."""

    def __init__(self, *, of_labeler: bool = False) -> None:
        self.of_labeler = of_labeler
        self.messages = 0  # readable or not
        self.events = 0
        self.creates = 0
        self.updates = 0
        self.deletes = 0
        self.filtered = 0
        self.duplicates = 0
        self.elsewhere = 0  # account events of a PDS that the account does not live at
        self.quarantined = 0
        self.blocked: Counter[str] = Counter()
        self.frames: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.resyncs: Counter[str] = Counter()
        self.infos: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.label_verdicts: Counter[str] = Counter()
        self.replays = 0  # commits that were taken over before
        self.firsts = 0  # commits that no other relay brought before
        self.resyncs_spared = 0  # repos to fetch that another job takes care of
        self.resyncs_owed = 0  # repos to fetch at a later commit
        self.gaps: Counter[str] = Counter()
        self.jumps: Counter[str] = Counter()  # of a host's numbers: followed or ignored
        self.seconds: defaultdict[str, float] = defaultdict(float)  # spent on checks, by step

    def internal_error(self) -> None:
        """Count an undeclared exception in the work on one frame or account."""
        self.errors["internal_error"] += 1

    def report(self, metrics: IngesterMetrics, host: str) -> None:
        """Add everything to the metrics and start again at 0; `host` sent the frames."""
        (metrics.labeler_events if self.of_labeler else metrics.messages).inc(self.messages)
        metrics.events.inc(self.events)
        metrics.creates.inc(self.creates)
        metrics.updates.inc(self.updates)
        metrics.deletes.inc(self.deletes)
        metrics.filtered.inc(self.filtered)
        metrics.duplicates.inc(self.duplicates)
        metrics.elsewhere.inc(self.elsewhere)
        metrics.quarantined.inc(self.quarantined)
        metrics.resyncs_spared.inc(self.resyncs_spared)
        metrics.resyncs_owed.inc(self.resyncs_owed)
        if self.replays:
            metrics.replays.labels(host).inc(self.replays)
        if self.firsts:
            metrics.firsts.labels(host).inc(self.firsts)
        for step, seconds in self.seconds.items():
            metrics.check_seconds.labels(step).inc(seconds)
        for reason, count in self.errors.items():
            metrics.error(reason, count)
        for name, count in self.infos.items():
            metrics.infos.labels(name if name in INFO_NAMES else "other").inc(count)
        for metric, counts in (
            (metrics.frames, self.frames),
            (metrics.resyncs, self.resyncs),
            (metrics.verdicts, self.verdicts),
            (metrics.label_verdicts, self.label_verdicts),
            (metrics.gaps, self.gaps),
            (metrics.blocked, self.blocked),
            (metrics.seq_jumps, self.jumps),
        ):
            for value, count in counts.items():
                metric.labels(value).inc(count)
        # The same fields, all at 0 again.
        self.__init__(of_labeler=self.of_labeler)  # type: ignore[misc]


class RawDeadLetters:
    """The entries of one stream of raw frames, which never grows far above its limit."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self._length = 0

    @property
    def length(self) -> int:
        """The entries that the stream holds, as far as is known."""
        return self._length

    def observe_length(self, length: int) -> None:
        """Set the stream's real length."""
        self._length = length

    def entry(self, raw: bytes, *, host: str, reason: str, error: str) -> Entry | None:
        """Return the entry that keeps a frame, or None when enough are kept already."""
        if self._length >= MAX_RAW_LETTERS:
            return None
        self._length += 1
        body = {
            "host": host,
            "reason": reason,
            "error": error[:500],
            "size": len(raw),
            "frame": b64encode(raw[:MAX_RAW_BYTES]).decode("ascii"),
        }
        return Entry(self.stream, FRAME_FIELD, orjson.dumps(body))


class FrameConverter:
    """The part of converting frames that relays and labelers have in common.

    Info and error frames, unknown and unreadable ones. Subclasses convert the messages of theirs.
    All work on the frames of a host shares `boundary`.
    """

    def __init__(self, host: str, counters: FrameCounters, letters: RawDeadLetters) -> None:
        self.host = host
        self.counters = counters
        self.boundary = Boundary(counters.internal_error)
        self.ended: ErrorMessage | None = None  # the frame after which the server closes
        self.time_before: str | None = None  # of the event before the next one
        self._letters = letters
        self._log = ThrottledLog(_log)

    def convert(self, raw: bytes) -> PendingFrame:
        """Read and convert one frame; never raises because of its content."""
        message = self.read(raw)
        return message if isinstance(message, PendingFrame) else self.convert_read(message, raw)

    def read(self, raw: bytes) -> Message | PendingFrame:
        """Decode one frame; an unreadable one is converted at once."""
        self.counters.messages += 1
        try:
            message = decode_frame(raw)
            self.counters.frames[_FRAME_TYPES[type(message)]] += 1
            return message
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            self.counters.frames["undecodable"] += 1
            return self.failed(raw, error)

    def convert_read(self, message: Message, raw: bytes) -> PendingFrame:
        """Convert a frame that was read; never raises because of its content."""
        try:
            return self.convert_message(message, raw)
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            return self.failed(raw, error)

    def convert_message(self, message: Message, raw: bytes) -> PendingFrame:
        """Convert a decoded message of any type. Raises InvalidDataError."""
        match message:
            case InfoMessage():
                self._note_info(message)
                return PendingFrame(None, None, [], 0)
            case ErrorMessage():
                self.ended = message
                return PendingFrame(None, None, [], 0)
            case UnknownMessage(seq=seq):
                return PendingFrame(seq, None, [], 0)
            case LabelsMessage() | CommitMessage() | SyncMessage():
                return PendingFrame(message.seq, None, [], 0)
        return PendingFrame(message.seq, message.time[:MAX_TIME], [], 0)

    def keep_raw(self, raw: bytes, reason: str, error: str) -> list[Entry]:
        """Count an error and return the dead letter of its frame, if there is room for it."""
        self.counters.errors[reason] += 1
        self._log.warning(
            "frame not usable, or only in part",
            key=reason, host=self.host, reason=reason, error=error,
        )  # fmt: skip
        entry = self._letters.entry(raw, host=self.host, reason=reason, error=error)
        if entry is None:
            return []
        self.counters.quarantined += 1
        return [entry]

    def unusable(self, raw: bytes, reason: str, error: str) -> PendingFrame:
        """Return a frame that becomes a raw dead letter and nothing else."""
        entries = self.keep_raw(raw, reason, error)
        return PendingFrame(None, None, entries, sum(len(entry.payload) for entry in entries))

    def failed(self, raw: bytes, error: Exception) -> PendingFrame:
        """Return the frame of a conversion that raised: for bad data, or by a defect of ours.

        The frame must not be met again at every restart, whichever it was.
        """
        if isinstance(error, InvalidDataError):
            return self.unusable(raw, error.reason, str(error))
        self.boundary.caught(error, "frame", host=self.host)
        return self.unusable(raw, "internal", described(error))

    def _note_info(self, message: InfoMessage) -> None:
        self.counters.infos[message.name] += 1
        fields = {"info": message.name[:50], "note": (message.message or "")[:200]}
        if message.name == "OutdatedCursor":
            self._log.error(
                "events lost: cursor older than the oldest event of the host",
                host=self.host, **fields,
            )  # fmt: skip
        else:
            self._log.warning("info frame from host", host=self.host, **fields)


class ReadFrame(NamedTuple):
    """A decoded frame, and how far the stream is covered with it; None if it has no number."""

    message: Message | PendingFrame
    raw: bytes
    covered: int | None


class FrameReader:
    """Decodes the frames of one connection, and leaves out those that came before."""

    def __init__(self, converter: FrameConverter, gate: SeqGate) -> None:
        self._converter = converter
        self._gate = gate
        self._log = ThrottledLog(_log)

    def read(self, messages: Sequence[bytes]) -> list[ReadFrame]:
        """Return the new frames among those that a socket gave at once."""
        read, gate = self._converter.read, self._gate
        now = trio.current_time()
        frames: list[ReadFrame] = []
        for raw in messages:
            message = read(raw)
            seq: int | None = getattr(message, "seq", None)
            if seq is None:
                frames.append(ReadFrame(message, raw, None))
                continue
            if gate.place(seq, now) == "old":
                self._note_old(seq)
                continue
            if gate.jumps:
                self._note_jumps()
            frames.append(ReadFrame(message, raw, gate.last if gate.last >= 0 else None))
        return frames

    def _note_old(self, seq: int) -> None:
        self._converter.counters.duplicates += 1
        self._log.info(
            "skipped an event whose sequence number is not new",
            host=self._converter.host, seq=seq, last=self._gate.last,
        )  # fmt: skip

    def _note_jumps(self) -> None:
        for jump in self._gate.jumps:
            outcome = "followed" if jump.followed else "ignored"
            self._converter.counters.jumps[outcome] += 1
            self._log.warning(
                "followed a jump in the sequence numbers of a host" if jump.followed
                else "ignored a sequence number from which its host did not go on",
                host=self._converter.host, before=jump.before, seq=jump.seq,
            )  # fmt: skip
        self._gate.jumps.clear()
