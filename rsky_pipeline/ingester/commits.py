"""Frames of `subscribeRepos` to events; no I/O.

Records are taken from the commit's own blocks, and each must have the hash that it is named by.
Where content is missing the repo is queued to be fetched again.
Source: sync specification; wire forms in `streams.event`.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import orjson

from rsky_pipeline.atproto.car import find_blocks
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import parse_commit
from rsky_pipeline.atproto.dagjson import record_to_json
from rsky_pipeline.atproto.datetimes import format_utc, normalize
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    Action,
    CommitMessage,
    IdentityMessage,
    Message,
    RepoOp,
    SyncMessage,
)
from rsky_pipeline.atproto.syntax import split_path, tid_number
from rsky_pipeline.configuration.selection import path_prefixes
from rsky_pipeline.configuration.settings import Verify
from rsky_pipeline.ingester.chain import FUTURE_SECONDS, Update, is_future
from rsky_pipeline.ingester.convert import MAX_TIME, About, Claim, Converted, FrameConverter
from rsky_pipeline.ingester.proof import check_commit, read_contents
from rsky_pipeline.ingester.quarantine import Quarantine
from rsky_pipeline.ingester.relays import News
from rsky_pipeline.ingester.tally import Tally
from rsky_pipeline.ingester.times import timestamp
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.event import (
    EVENT_FIELD,
    AccountEvent,
    IdentityEvent,
    encode_commit_events,
    encode_event,
    encode_record_event,
)
from rsky_pipeline.streams.names import FIREHOSE_LIVE
from rsky_pipeline.streams.repo_job import REPO_FIELD, FetchReason, RepoJob, encode_repo_job

_log = logging.getLogger(__name__)

SUBSCRIBE_REPOS = "com.atproto.sync.subscribeRepos"
# One record may stand under 200 paths and grow sixfold in JSON; past this the repo is fetched.
MAX_FRAME_OUTPUT = 16 * 1024 * 1024
_MAX_TEXT = 2_048  # no honest handle or status is longer


class RepoConverter(FrameConverter):
    """Frames of `subscribeRepos`.

    `verify` says what of a commit is read besides its records: nothing, its signed object, or all
    of its blocks. `clock` is in seconds since 1970.
    """

    def __init__(
        self,
        host: str,
        relay_url: str,
        collections: tuple[str, ...],
        tally: Tally,
        quarantine: Quarantine,
        *,
        verify: Verify = "none",
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(host, tally, quarantine)
        self._relay_url = relay_url
        self._prefixes = path_prefixes(collections)
        self._verify = verify
        self._clock = clock

    def count(self) -> None:
        """Count a frame, readable or not."""
        self.tally.messages += 1

    def convert_message(self, message: Message, raw: bytes) -> Converted:
        """Convert a decoded message of any type."""
        if type(message) is CommitMessage:
            return self._commit(message, raw)
        match message:
            case SyncMessage():
                return self._sync(message, raw)
            case IdentityMessage(seq=seq, time=time, did=did, handle=handle):
                _check_texts(time, handle)
                time = self._believed(time, did)
                return self._event(IdentityEvent(seq, time, did, handle), ("identity", handle))
            case AccountMessage(seq=seq, time=time, did=did, active=active, status=status):
                _check_texts(time, status)
                time = self._believed(time, did)
                event = AccountEvent(seq, time, did, active, status)
                return self._event(event, ("account", active, status))
        return super().convert_message(message, raw)

    def resync(self, stream: str, about: About, reason: str, unwritten: Sequence[RepoOp]) -> Entry:
        """Return the entry that has a repo fetched again, and count it.

        The creates and updates of a commit that is not written are in the repo then; its deletions
        are not seen there, so the job names them.
        """
        why = FetchReason.of(reason)
        self.tally.resyncs[why.word] += 1
        held_back = self._throttle.allow(f"resync {reason}")
        if held_back is not None:
            _log.log(
                logging.INFO if why.expected else logging.WARNING,
                "a repo is queued to be fetched again",
                extra={"host": self.host, "did": about.update.did, "rev": about.rev,
                       "reason": reason, "unlogged": held_back},
            )  # fmt: skip
        deleted = tuple(
            op.path for op in unwritten if op.cid is None and split_path(op.path) is not None
        )
        job = RepoJob(about.update.did, self._relay_url, about.rev, None, True, deleted, why)
        return Entry(stream, REPO_FIELD, encode_repo_job(job))

    def _event(self, event: IdentityEvent | AccountEvent, content: tuple[object, ...]) -> Converted:
        entry = Entry(FIREHOSE_LIVE, EVENT_FIELD, encode_event(event))
        self.tally.events += 1
        return Converted(
            event.seq, event.time, [entry], len(entry.payload),
            changed_did=event.did, news=News(content, timestamp(event.time) or 0.0),
        )  # fmt: skip

    def _believed(self, time: str, did: str) -> str:
        """Return an event's time, or the one of the event before it if it is far in the future.

        The newest event of an account stands, so one from the future would stand for ever. What
        stands in for its time is the same when the event is read again, and keeps the order.
        """
        latest = format_utc(datetime.fromtimestamp(self._clock() + FUTURE_SECONDS, UTC))
        if (normalize(time) or "") <= latest:
            self.time_before = time
            return time
        self.tally.errors["future_time"] += 1
        held_back = self._throttle.allow("future_time")
        if held_back is not None:
            _log.warning("the time of an event is far in the future",
                         extra={"host": self.host, "did": did, "time": time,
                                "unlogged": held_back})  # fmt: skip
        before = normalize(self.time_before or "")
        if before is None or before > latest:
            return format_utc(datetime.fromtimestamp(self._clock(), UTC))
        return before

    def _rev(self, message: CommitMessage | SyncMessage) -> int:
        rev = tid_number(message.rev)
        if is_future(rev, self._clock()):
            raise InvalidDataError("future_rev", f"{message.did[:100]} at {message.rev}")
        return rev

    def _sync(self, message: SyncMessage, raw: bytes) -> Converted:
        _check_texts(message.time, None)
        update = Update(message.did, self._rev(message), kind="sync")
        try:
            contents = read_contents(message)
        except InvalidDataError as error:
            if self._verify == "none":  # as the original service, which did not look at them
                about = About(update, message.rev)
                return Converted(message.seq, message.time, [], 0, about)
            return self._refused(message, update, (), raw, error)
        about = About(update._replace(data=contents.commit.data), message.rev)
        claim = None if self._verify == "none" else Claim(message.did, contents.commit)
        return Converted(message.seq, message.time, [], 0, about, claim)

    def _commit(self, message: CommitMessage, raw: bytes) -> Converted:
        _check_texts(message.time, None)
        self.time_before = message.time
        since = None if message.since is None else _tid(message.since)
        update = Update(message.did, self._rev(message), since, message.prev_data)
        prefixes = self._prefixes
        wanted = [op for op in message.ops if op.path.startswith(prefixes)]
        self.tally.filtered += len(message.ops) - len(wanted)
        if message.too_big or message.rebase:
            return self._too_big(message, update, wanted)
        try:
            return self._operations(message, update, wanted, raw)
        except InvalidDataError as error:
            return self._refused(message, update, wanted, raw, error)

    def _too_big(self, message: CommitMessage, update: Update, ops: Sequence[RepoOp]) -> Converted:
        """Have a repo fetched whose commit says that it does not say everything."""
        self.tally.errors["too_big"] += 1
        update = update._replace(kind="too_big")
        about, claim = About(update, message.rev, tuple(ops), readable=False), None
        if self._verify == "none":
            about = about._replace(readable=True)
        else:
            with suppress(InvalidDataError):  # it may well hold nothing
                commit = read_contents(message).commit
                claim = Claim(message.did, commit)
                about = about._replace(update=update._replace(data=commit.data), readable=True)
        return Converted(message.seq, message.time, [], 0, about, claim)

    def _refused(
        self,
        message: CommitMessage | SyncMessage,
        update: Update,
        ops: Sequence[RepoOp],
        raw: bytes,
        error: InvalidDataError,
    ) -> Converted:
        """Keep a frame aside whose blocks are of no use, and have the repo fetched."""
        entries = self.keep_aside(raw, error.reason, str(error))
        about = About(update, message.rev, tuple(ops), "invalid_blocks", readable=False)
        size = sum(len(entry.payload) for entry in entries)
        return Converted(message.seq, message.time, entries, size, about)

    def _operations(
        self, message: CommitMessage, update: Update, ops: list[RepoOp], raw: bytes
    ) -> Converted:
        checked: Mapping[Any, bytes] | None = None
        claim = None
        if self._verify == "full":
            with self.tally.timed("blocks"):
                contents = read_contents(message)
            checked = contents.blocks
            claim = Claim(message.did, contents.commit, message, contents)
        elif self._verify == "signature":
            block = _block(_find(message, (), message.commit), message.commit)
            claim = Claim(message.did, check_commit(parse_commit(block), message))
        if claim is not None and claim.commit is not None:
            update = update._replace(data=claim.commit.data)
        if not ops:
            return Converted(message.seq, message.time, [], 0, About(update, message.rev), claim)
        reason = None
        payloads = encode_commit_events(message, ops, checked, MAX_FRAME_OUTPUT)
        if payloads is not None:
            written = [op.action for op in ops]
            entries = [Entry(FIREHOSE_LIVE, EVENT_FIELD, payload) for payload in payloads]
            size = sum(map(len, payloads))
        else:
            writer = _OperationWriter(self, message, checked, ops, raw)
            for op in ops:
                writer.add(op)
            written, entries, size = writer.written, writer.entries, writer.size
            reason = "missing_block" if writer.incomplete else None
        tally = self.tally
        tally.events += len(written)
        tally.creates += written.count("create")
        tally.updates += written.count("update")
        tally.deletes += written.count("delete")
        about = About(update, message.rev, tuple(ops), reason)
        return Converted(message.seq, message.time, entries, size, about, claim)


class _OperationWriter:
    """Collects the entries of one commit's operations, looking at each by itself."""

    def __init__(
        self,
        converter: RepoConverter,
        message: CommitMessage,
        checked: Mapping[Any, bytes] | None,
        ops: Sequence[RepoOp],
        raw: bytes,
    ) -> None:
        """`checked` are the commit's blocks where they were read.

        Raises InvalidDataError without.
        """
        self._converter = converter
        self._message = message
        self._commit = str(message.commit)
        self._blocks = _find(message, ops) if checked is None else checked
        self._block = _block if checked is None else _present
        self._raw = raw
        self.entries: list[Entry] = []
        self.written: list[Action] = []
        self.size = 0
        self.incomplete = False  # the repo has more than could be taken from the frame

    def add(self, op: RepoOp) -> None:
        """Append the event of one operation; one that is bad costs only itself."""
        parts = split_path(op.path)
        if parts is None:
            self._refuse("invalid_path", op.path[:200])
            return
        try:
            record = None
            if op.cid is not None:
                record = orjson.Fragment(record_to_json(self._block(self._blocks, op.cid)))
            payload = self._encode(op, parts, record)
        except InvalidDataError as error:
            if error.reason in {"missing_block", "hash_mismatch"}:
                self._converter.tally.errors[error.reason] += 1
                self.incomplete = True
            else:
                self._refuse(error.reason, f"{op.path}: {error}")
            return
        self.size += len(payload)
        if self.size > MAX_FRAME_OUTPUT:
            raise InvalidDataError(
                "expands_too_much", f"more than {MAX_FRAME_OUTPUT} bytes of JSON"
            )
        self.entries.append(Entry(FIREHOSE_LIVE, EVENT_FIELD, payload))
        self.written.append(op.action)

    def _encode(self, op: RepoOp, parts: tuple[str, str], record: object) -> bytes:
        message = self._message
        return encode_record_event(
            op.action,
            seq=message.seq,
            time=message.time,
            did=message.did,
            commit=self._commit,
            rev=message.rev,
            collection=parts[0],
            rkey=parts[1],
            cid=None if op.cid is None else str(op.cid),
            record=record,
        )

    def _refuse(self, reason: str, error: str) -> None:
        self.entries += self._converter.keep_aside(self._raw, reason, error)


def _find(message: CommitMessage, ops: Sequence[RepoOp], *also: Cid) -> dict[bytes, bytes]:
    """Return the blocks of operations out of a commit's CAR, and others.

    Raises InvalidDataError.
    """
    wanted: set[bytes] = {op.cid for op in ops if op.cid is not None}
    wanted.update(also)
    if not wanted:
        return {}
    roots, blocks = find_blocks(message.blocks, wanted)
    if roots[0] != message.commit:
        raise InvalidDataError("root_mismatch", "the blocks are not those of the commit")
    return blocks


def _present(blocks: Mapping[Any, bytes], cid: Cid) -> bytes:
    block = blocks.get(cid)
    if block is None:
        raise InvalidDataError("missing_block", str(cid))
    return block


def _block(blocks: Mapping[Any, bytes], cid: Cid) -> bytes:
    """Return a block of a commit's CAR if it is there and is what it is named."""
    block = _present(blocks, cid)
    if sha256(block).digest() != cid[4:]:
        raise InvalidDataError("hash_mismatch", str(cid))
    return block


def _tid(text: str) -> int:
    """Return the number of a TID; -1, which no rev is, for what is none."""
    try:
        return tid_number(text)
    except ValueError:
        return -1


def _check_texts(time: str, text: str | None) -> None:
    if len(time) > MAX_TIME or (text is not None and len(text) > _MAX_TEXT):
        raise InvalidDataError("text_too_long", "a time, handle or status has an absurd length")
