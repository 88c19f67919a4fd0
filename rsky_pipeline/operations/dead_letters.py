"""Dead letters of every stream: counted by reason, shown, tried again, dropped.

A command covers the letters that were there when it began, so that it does not meet a letter twice
that comes back while it runs. Every step of the server moves or removes letters as a whole, so that
an interrupted command loses nothing and can be repeated.
"""

import time
from base64 import b64decode
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import orjson

from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import CommitMessage, decode_frame
from rsky_pipeline.atproto.syntax import tid_text
from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.configuration.expectations import high_water_marks
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.ingester.commits.convert import RepoConverter
from rsky_pipeline.ingester.frames import FRAME_FIELD, FrameConverter, FrameCounters, RawDeadLetters
from rsky_pipeline.ingester.labels import LabelConverter
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.dead_letters import (
    DeadLetter,
    list_dead_letters,
    remove_dead_letters,
    replace_dead_letter,
    retry_dead_letters,
)
from rsky_pipeline.streams.event import MalformedEventError
from rsky_pipeline.streams.lag import StreamReport, inspect
from rsky_pipeline.streams.limits import BATCH_LETTERS
from rsky_pipeline.streams.names import (
    FIREHOSE_RAW_LETTERS,
    GAPS,
    LABEL_RAW_LETTERS,
    REPO_BACKFILL_HIGH,
    STREAMS,
    dead_letters,
)
from rsky_pipeline.streams.repo_job import (
    REPO_FIELD,
    FetchReason,
    decode_repo_job,
    encode_repo_job,
)
from rsky_pipeline.streams.scan import moment, newest

RAW = (FIREHOSE_RAW_LETTERS, LABEL_RAW_LETTERS)
LETTER_STREAMS = (*(dead_letters(stream) for stream in (*STREAMS, GAPS)), *RAW)
MAX_WATCHED = 100_000  # retried entries that are recognised when they come back
_LOOK_SECONDS = 0.25
_QUIET_SECONDS = 2.0  # after which a stream that nobody reads is not waited for
MAX_SHOWN = 2_000  # characters of one field
_FULL_POLL_SECONDS = 0.5

Progress = Callable[[str], None]


@dataclass(slots=True)
class ReasonCount:
    """Letters of one stream and reason; ids are of the oldest and newest of them."""

    stream: str
    reason: str
    count: int = 0
    oldest: str = ""
    newest: str = ""

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "stream": self.stream, "reason": self.reason, "count": self.count,
            "oldest_id": self.oldest, "oldest_time": moment(self.oldest),
            "newest_id": self.newest, "newest_time": moment(self.newest),
        }  # fmt: skip


@dataclass(slots=True)
class Retried:
    """The outcome of retrying letters."""

    retried: int = 0
    gone: int = 0  # another command was quicker
    kept: list[tuple[str, str]] = field(default_factory=list)  # id and why, the first few
    kept_count: int = 0
    sent: list[tuple[str, bytes]] = field(default_factory=list)  # stream and mark of each entry

    def note(self, *sent: tuple[str, bytes]) -> None:
        """Note entries that were put back, to see which of them become dead letters again."""
        self.sent += sent[: MAX_WATCHED - len(self.sent)]

    def keep(self, letter_id: str, why: str) -> None:
        """Note a letter that stays."""
        self.kept_count += 1
        if len(self.kept) < 20:
            self.kept.append((letter_id, why))


def letter_stream(name: str) -> str:
    """Return the dead-letter stream that a name means: its own, or that of a source stream.

    Raises ValueError with the names that are allowed.
    """
    for candidate in (name, dead_letters(name)):
        if candidate in LETTER_STREAMS:
            return candidate
    raise ValueError(f"{name!r} is no dead-letter stream: allowed are {', '.join(LETTER_STREAMS)}")


def select(
    store: Store,
    stream: str,
    reason: str | None = None,
    ids: Sequence[str] = (),
    until: str | None = None,
) -> Iterator[DeadLetter]:
    """Yield the letters of a dead-letter stream, oldest first: those there now, or until an id.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    last = until if until is not None else last_id(store, stream)
    source, wanted, after = stream.removesuffix("_dlq"), frozenset(ids), "-"
    while last:
        page = list_dead_letters(store, source, after=after, until=last)
        if not page:
            return
        after = page[-1].id
        for letter in page:
            if stream in RAW:
                letter = _raw_letter(letter)
            if reason in (None, letter.reason) and (not wanted or letter.id in wanted):
                yield letter


def last_id(store: Store, stream: str) -> str:
    """Return the id of the newest letter, empty if there is none."""
    found = newest(store, stream, 1)
    return found[0].id if found else ""


def tally(
    store: Store, stream: str, reason: str | None = None, until: str | None = None
) -> list[ReasonCount]:
    """Count the letters of a dead-letter stream by reason, most frequent first."""
    found: dict[str, ReasonCount] = {}
    for letter in select(store, stream, reason, until=until):
        counted = found.setdefault(letter.reason, ReasonCount(stream, letter.reason))
        counted.count += 1
        counted.oldest = counted.oldest or letter.id
        counted.newest = letter.id
    return sorted(found.values(), key=lambda item: (-item.count, item.reason))


def describe(stream: str, letter: DeadLetter) -> dict[str, Any]:
    """Return a letter as JSON of bounded size; raw frames are summarised."""
    entry: dict[str, Any]
    if stream in RAW:
        try:
            entry = summary(parse_raw(letter.fields))
        except NotConvertibleError as error:
            entry = {"unreadable": str(error)}
    else:
        entry = {_text(name): _text(value) for name, value in letter.fields.items()}
    return {
        "stream": stream, "id": letter.id, "time": moment(letter.id), "reason": letter.reason,
        "error": letter.error, "attempts": letter.attempts, "source_id": letter.source_id or None,
        "entry": entry,
    }  # fmt: skip


def retry(
    store: Store,
    stream: str,
    letters: Iterator[DeadLetter],
    settings: Settings,
    on_progress: Progress = lambda _: None,
) -> Retried:
    """Put letters back into the stream they came from, or convert raw frames again.

    Waits while that stream is at its high-water mark.
    """
    done, marks = Retried(), high_water_marks(settings)
    source, waiting = stream.removesuffix("_dlq"), list[DeadLetter]()

    def replace_by(letter: DeadLetter, entries: Sequence[Entry]) -> None:
        wait_for_room(store, {entry.stream for entry in entries}, marks, on_progress)
        moved = replace_dead_letter(store, stream, letter.id, entries)
        if moved:
            done.note(*((each.stream, mark_of({each.field: each.payload})) for each in entries))
        done.retried, done.gone = done.retried + moved, done.gone + (not moved)
        on_progress(f"{done.retried:,} retried")

    def put_back(letters: Sequence[DeadLetter]) -> None:
        wait_for_room(store, [source], marks, on_progress)
        moved = retry_dead_letters(store, source, [each.id for each in letters])
        done.note(*((source, mark_of(each.fields)) for each in letters))
        done.retried, done.gone = done.retried + moved, done.gone + len(letters) - moved
        on_progress(f"{done.retried:,} retried")

    for letter in letters:
        if stream in RAW:
            try:
                replace_by(letter, convert_again(stream, parse_raw(letter.fields), settings))
            except NotConvertibleError as error:
                done.keep(letter.id, str(error))
        elif not letter.fields:
            done.keep(letter.id, "its entry had lost its body: there is nothing to try again")
        elif (fresh := _fresh_job(letter)) is not None:
            replace_by(letter, [Entry(source, REPO_FIELD, fresh)])
        else:
            waiting.append(letter)
            if len(waiting) == BATCH_LETTERS:
                put_back(waiting)
                waiting = []
    if waiting:
        put_back(waiting)
    return done


def edit(store: Store, stream: str, letter: DeadLetter, text: str, settings: Settings) -> Retried:
    """Put an entry with another JSON text back into its stream, in the place of its letter.

    Raises ValueError where the letter cannot be edited, or the text is no JSON object.
    """
    name = editable(stream, letter)
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the text is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ValueError("the text is no JSON object")
    payload = orjson.dumps(body)
    if name == REPO_FIELD:
        decode_repo_job(payload)  # raises MalformedEventError, a ValueError
    done, source = Retried(), stream.removesuffix("_dlq")
    wait_for_room(store, [source], high_water_marks(settings), lambda _: None)
    done.retried = int(
        replace_dead_letter(store, stream, letter.id, [Entry(source, name, payload)])
    )
    done.gone = 1 - done.retried
    if done.retried:
        done.note((source, mark_of({name: payload})))
    return done


def editable(stream: str, letter: DeadLetter) -> bytes:
    """Return the name of the one field of a letter. Raises ValueError where it has no such form."""
    if stream in RAW:
        raise ValueError("a raw frame is signed binary data: it can be retried or dropped")
    if len(letter.fields) != 1:
        raise ValueError(f"an entry of {len(letter.fields)} fields cannot be edited")
    return next(iter(letter.fields))


def mark_of(fields: Mapping[bytes, bytes]) -> bytes:
    """Return what an entry is recognised by when it comes back; a repo job by its account."""
    job = fields.get(REPO_FIELD)
    if job is not None:
        with suppress(MalformedEventError):
            return decode_repo_job(job).did.encode()
    digest = sha256()
    for name, value in sorted(fields.items()):
        digest.update(b"%d %d " % (len(name), len(value)) + name + value)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Returned:
    """Retried entries that are dead letters again; `tried` is whether all others were processed."""

    count: int
    examples: tuple[dict[str, Any], ...]
    tried: bool


def newest_letters(store: Store) -> dict[str, str]:
    """Return the newest letter of each dead-letter stream; for `watch`, before a retry."""
    return {stream: last_id(store, stream) for stream in LETTER_STREAMS}


def watch(
    store: Store,
    sent: Sequence[tuple[str, bytes]],
    before: Mapping[str, str],
    seconds: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Returned:
    """Wait until retried entries were processed, and return those that failed again.

    Waits `seconds` at most, and less where nobody reads their streams.
    """
    streams = {stream for stream, _ in sent}
    ends = {stream: _position(inspect(store, stream).last_id or "0-0") for stream in streams}
    began = moved_at = clock()
    seen: object = None
    while True:
        reports = [inspect(store, stream) for stream in streams]
        tried = all(_has_read(each, ends[each.name]) for each in reports)
        if tried or clock() - began >= seconds:
            break
        state = [(each.last_delivered_id, each.pending) for one in reports for each in one.groups]
        if state != seen:
            seen, moved_at = state, clock()
        elif clock() - moved_at >= _QUIET_SECONDS:
            break
        sleep(_LOOK_SECONDS)
    marks = set(sent)
    found = [
        (stream, letter)
        for source in streams
        for stream in (dead_letters(source),)
        for letter in _newer(store, source, before.get(stream, ""))
        if (source, mark_of(letter.fields)) in marks
    ]
    examples = tuple(
        {"stream": stream, "id": letter.id, "reason": letter.reason, "error": letter.error}
        for stream, letter in found[:20]
    )
    return Returned(len(found), examples, tried)


def _newer(store: Store, source: str, after: str) -> Iterator[DeadLetter]:
    while page := list_dead_letters(store, source, after=after or "-"):
        yield from page
        after = page[-1].id


def _has_read(report: StreamReport, end: tuple[int, int]) -> bool:
    """Return whether every group has finished everything up to an entry."""
    return bool(report.groups) and all(
        _position(group.last_delivered_id) >= end
        and (group.oldest_pending_id is None or _position(group.oldest_pending_id) > end)
        for group in report.groups
    )


def _position(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


def drop(
    store: Store,
    stream: str,
    letters: Iterator[DeadLetter],
    on_progress: Progress = lambda _: None,
) -> int:
    """Remove letters for good; return how many."""
    removed, waiting = 0, list[str]()
    for letter in letters:
        waiting.append(letter.id)
        if len(waiting) == BATCH_LETTERS:
            removed += remove_dead_letters(store, stream.removesuffix("_dlq"), waiting)
            on_progress(f"{removed:,} dropped")
            waiting = []
    return removed + remove_dead_letters(store, stream.removesuffix("_dlq"), waiting)


def _fresh_job(letter: DeadLetter) -> bytes | None:
    """Return a repo job with its attempts set to 0; None for other entries, and if they are 0."""
    try:
        job = decode_repo_job(letter.fields.get(REPO_FIELD, b""))
    except MalformedEventError:
        return None
    return encode_repo_job(replace(job, attempts=0)) if job.attempts else None


def wait_for_room(
    store: Store, streams: Collection[str], marks: Mapping[str, int], tell: Progress
) -> None:
    """Return when none of the streams is at its high-water mark."""
    for stream in streams:
        mark = marks.get(stream)
        while mark is not None and int(store.call("XLEN", stream)) >= mark:
            tell(f"{stream} is at its high-water mark ({mark:,} entries): waiting for room")
            time.sleep(_FULL_POLL_SECONDS)


def _raw_letter(letter: DeadLetter) -> DeadLetter:
    try:
        frame = parse_raw(letter.fields)
    except NotConvertibleError as error:
        return replace(letter, reason="unreadable", error=str(error))
    return replace(letter, reason=frame.reason, error=frame.error)


def _text(value: bytes) -> str:
    text = value[: 4 * MAX_SHOWN].decode("utf-8", "replace")
    if len(text) <= MAX_SHOWN and len(value) <= 4 * MAX_SHOWN:
        return text
    return f"{text[:MAX_SHOWN]}... ({len(value):,} bytes)"


# --- raw dead letters: frames that the ingester could not use. No I/O. ----------------------------
#
# A frame whose commits are checked by signature is not written as it is: the repo that it names is
# queued to be fetched, which proves everything and loses nothing.


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
        # The text of bad data begins with its reason.
        known = again.error.startswith(f"{again.reason}: ")
        raise NotConvertibleError(again.error if known else f"{again.reason}: {again.error}")
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
