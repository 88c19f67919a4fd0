"""Messages of `subscribeRepos` to stream entries. No I/O.

Records are taken from the commit's own blocks, and each must have the hash that it is named by.
Where content is missing the repo is queued to be fetched. https://atproto.com/specs/sync; the wire
forms are in `streams.event`.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from time import perf_counter
from typing import Any

import orjson

from rsky_pipeline.atproto import compiled
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
    UnreadableCommitError,
)
from rsky_pipeline.atproto.syntax import split_path, tid_number
from rsky_pipeline.configuration.selection import path_prefixes
from rsky_pipeline.configuration.settings import Verify
from rsky_pipeline.ingester.commits.relays import AccountUpdate
from rsky_pipeline.ingester.commits.validation import (
    FUTURE_SECONDS,
    CommitProof,
    RepoUpdate,
    UnreadCommit,
    check_commit,
    is_future,
    read_contents,
)
from rsky_pipeline.ingester.frames import (
    MAX_TIME,
    FrameConverter,
    FrameCounters,
    PendingFrame,
    RawDeadLetters,
)
from rsky_pipeline.ingester.sequence import timestamp
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.event import (
    EVENT_FIELD,
    AccountEvent,
    IdentityEvent,
    encode_event,
    encode_record_event,
    numbered,
)
from rsky_pipeline.streams.names import FIREHOSE_LIVE
from rsky_pipeline.streams.repo_job import REPO_FIELD, FetchReason, RepoJob, encode_repo_job

Found = tuple[Cid | None, bool | None, bytes | None, list[bytes]]  # see `compiled.prove`
SUBSCRIBE_REPOS = "com.atproto.sync.subscribeRepos"
# One record may stand under 200 paths and grow sixfold in JSON; past this the repo is fetched.
MAX_FRAME_OUTPUT = 16 * 1024 * 1024
_MAX_TEXT = 2_048  # no honest handle or status is longer


class RepoConverter(FrameConverter):
    """Converts the frames of one relay.

    `verify` decides how much of a commit is read besides its records: nothing, its signed object,
    or all of its blocks. `clock` is in seconds since 1970.
    """

    def __init__(
        self,
        host: str,
        relay_url: str,
        collections: tuple[str, ...],
        counters: FrameCounters,
        letters: RawDeadLetters,
        *,
        verify: Verify = "none",
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(host, counters, letters)
        self._relay_url = relay_url
        self._prefixes = path_prefixes(collections)
        self.left_out: tuple[str, ...] = ()  # prefixes of paths in blocked collections
        self._verify = verify
        self.proves = verify != "none"
        self.mode = ("none", "signature", "full").index(verify)  # of `compiled.prove`
        self._clock = clock
        self.numbering = 0  # of the connection, see `SourceCursor.numbering`

    def convert_message(self, message: Message, raw: bytes) -> PendingFrame:
        """Convert a decoded message of any type. Raises InvalidDataError."""
        match message:
            case CommitMessage():
                return self.convert_commit(message, raw, tid_number(message.rev))
            case SyncMessage():
                return self.convert_sync(message, raw, tid_number(message.rev))
            case IdentityMessage(seq=seq, time=time, did=did, handle=handle):
                _check_texts(time, handle)
                time = self._plausible(time, did)
                return self._event(IdentityEvent(seq, time, did, handle), ("identity", handle))
            case AccountMessage(seq=seq, time=time, did=did, active=active, status=status):
                _check_texts(time, status)
                time = self._plausible(time, did)
                event = AccountEvent(
                    seq, time, did, active, status, numbered(self.host, self.numbering)
                )
                return self._event(event, ("account", active, status))
        return super().convert_message(message, raw)

    def failed(self, raw: bytes, error: Exception) -> PendingFrame:
        """Have the repo fetched of a commit that cannot be read, if its account and rev can be."""
        frame = super().failed(raw, error)
        if isinstance(error, UnreadableCommitError):
            rev = tid_number(error.rev)
            if not is_future(rev, self._clock()):
                prefixes = self._prefixes
                ops = tuple(op for op in error.ops if op.path.startswith(prefixes))
                frame.update = RepoUpdate(
                    error.did, rev, ops=ops, problem=FetchReason.INVALID_BLOCKS, readable=False
                )
            frame.seq, frame.time = error.seq, error.time and error.time[:MAX_TIME]
        return frame

    def resync(
        self, stream: str, did: str, rev: str, reason: FetchReason, unwritten: Sequence[RepoOp]
    ) -> Entry:
        """Return the entry that has a repo fetched, and count it. `rev` is empty where unknown.

        The creates and updates of a commit that is not written are in the repo then; its deletions
        are not seen there, so the job names them.
        """
        self.counters.resyncs[reason.word] += 1
        self._log.log(
            logging.INFO if reason.expected else logging.WARNING, "queued resync",
            key=reason.word, host=self.host, did=did, rev=rev, reason=reason.word,
        )  # fmt: skip
        deleted = tuple(
            op.path for op in unwritten if op.cid is None and split_path(op.path) is not None
        )
        job = RepoJob(did, self._relay_url, rev, None, True, deleted, reason)
        return Entry(stream, REPO_FIELD, encode_repo_job(job))

    def convert_commit(self, message: CommitMessage, raw: bytes, rev: int) -> PendingFrame:
        """Convert a commit; `rev` is its rev as a number. Raises InvalidDataError."""
        frame = self.begin_commit(message, raw, rev)
        unread = frame.unread
        if unread is not None:
            proven = compiled.prove([(message, unread.ops, None)], self.mode, MAX_FRAME_OUTPUT)
            self.complete(frame, unread, None if proven is None else proven[0][0])
        return frame

    def begin_commit(self, message: CommitMessage, raw: bytes, rev: int) -> PendingFrame:
        """Convert a commit but for its blocks, which `complete` takes. Raises InvalidDataError."""
        if is_future(rev, self._clock()):
            raise InvalidDataError("future_rev", f"{message.did[:100]} at {message.rev}")
        since = None if message.since is None else _tid(message.since)
        prefixes = self._prefixes
        ops = tuple([op for op in message.ops if op.path.startswith(prefixes)])
        self.counters.filtered += len(message.ops) - len(ops)
        if self.left_out:
            ops = self._without_blocked(ops)
        if len(message.time) > MAX_TIME:
            update = RepoUpdate(message.did, rev, ops=ops)
            return self._with_bad_blocks(message, update, raw, _absurd())
        self.time_before = message.time
        if message.too_big or message.rebase:
            return self._too_big(message, rev, since, ops)
        frame = PendingFrame(message.seq, message.time, [], 0)
        if ops or self.proves:
            frame.unread = UnreadCommit(message, raw, rev, since, ops)
        else:
            frame.update = RepoUpdate(message.did, rev, since, message.prev_data)
        return frame

    def complete(self, frame: PendingFrame, unread: UnreadCommit, found: Found | None) -> None:
        """Fill a frame with what `compiled.prove` found in its blocks; None: read them here."""
        message, raw, rev, since, ops = unread
        if found is None:
            try:
                frame.fill(self._with_records(message, rev, since, ops, raw))
            except InvalidDataError as error:
                update = RepoUpdate(message.did, rev, since, message.prev_data, ops=ops)
                frame.fill(self._with_bad_blocks(message, update, raw, error))
            return
        data, _, block, payloads = found
        proof = None
        if data is not None:
            commit = None if block is None else parse_commit(block)
            tree = message.prev_data if self._verify == "full" else None
            proof = CommitProof(commit, tree=tree)
        frame.unread = None
        frame.entries = [Entry(FIREHOSE_LIVE, EVENT_FIELD, item) for item in payloads]
        frame.size = sum(map(len, payloads))
        self._count([op.action for op in ops])
        frame.update = RepoUpdate(
            message.did, rev, since, message.prev_data, data, "commit", ops, None, True, proof
        )  # fmt: skip

    def _count(self, written: Sequence[Action]) -> None:
        counters = self.counters
        for action in written:
            counters.events += 1
            if action == "create":
                counters.creates += 1
            elif action == "delete":
                counters.deletes += 1
            else:
                counters.updates += 1

    def _without_blocked(self, ops: tuple[RepoOp, ...]) -> tuple[RepoOp, ...]:
        """Leave out operations on blocked collections; the repo's state goes on all the same."""
        left_out = self.left_out
        kept = tuple([op for op in ops if not op.path.startswith(left_out)])
        if len(kept) < len(ops):
            self.counters.blocked["collection"] += len(ops) - len(kept)
        return kept

    def _with_records(
        self, message: CommitMessage, rev: int, since: int | None, ops: tuple[RepoOp, ...],
        raw: bytes,
    ) -> PendingFrame:  # fmt: skip
        """Read the commit object and the records. Raises InvalidDataError for blocks of no use."""
        checked: Mapping[Any, bytes] | None = None
        data = proof = None
        if self._verify == "full":
            begin = perf_counter()
            commit, checked = read_contents(message)
            self.counters.seconds["blocks"] += perf_counter() - begin
            data, proof = commit.data, CommitProof(commit, message, checked)
        elif self._verify == "signature":
            block = _block(_find(message, (), message.commit), message.commit)
            commit = check_commit(parse_commit(block), message)
            data, proof = commit.data, CommitProof(commit)
        frame = PendingFrame(message.seq, message.time, [], 0)
        problem = None
        if ops:
            writer = _OperationWriter(self, message, checked, ops, raw)
            written, frame.entries = writer.write(ops)
            frame.size = sum([len(entry.payload) for entry in frame.entries])
            problem = FetchReason.MISSING_BLOCK if writer.incomplete else None
            self._count(written)
        frame.update = RepoUpdate(
            message.did, rev, since, message.prev_data, data, "commit", ops, problem, True, proof
        )  # fmt: skip
        return frame

    def _too_big(
        self, message: CommitMessage, rev: int, since: int | None, ops: tuple[RepoOp, ...]
    ) -> PendingFrame:
        """Have a repo fetched whose commit names only a part of its operations."""
        self.counters.errors["too_big"] += 1
        readable = self._verify == "none"
        update = RepoUpdate(
            message.did, rev, since, message.prev_data, None, "too_big", ops,
            FetchReason.TOO_BIG, readable,
        )  # fmt: skip
        if not readable:
            with suppress(InvalidDataError):  # it may well hold nothing
                commit = read_contents(message).commit
                proof = CommitProof(commit)
                update = update._replace(data=commit.data, proof=proof, readable=True)
        return PendingFrame(message.seq, message.time, [], 0, update=update)

    def convert_sync(self, message: SyncMessage, raw: bytes, rev: int) -> PendingFrame:
        """Convert a sync event; `rev` is its rev as a number. Raises InvalidDataError."""
        if is_future(rev, self._clock()):
            raise InvalidDataError("future_rev", f"{message.did[:100]} at {message.rev}")
        update = RepoUpdate(message.did, rev, kind="sync")
        if len(message.time) > MAX_TIME:
            return self._with_bad_blocks(message, update, raw, _absurd())
        try:
            commit = read_contents(message).commit
        except InvalidDataError as error:
            if self._verify != "none":
                return self._with_bad_blocks(message, update, raw, error)
            # As the Rust service, which did not read them.
        else:
            proof = None if self._verify == "none" else CommitProof(commit)
            update = update._replace(data=commit.data, proof=proof)
        return PendingFrame(message.seq, message.time, [], 0, update=update)

    def _with_bad_blocks(
        self,
        message: CommitMessage | SyncMessage,
        update: RepoUpdate,
        raw: bytes,
        error: InvalidDataError,
    ) -> PendingFrame:
        """Make a frame of no use a raw dead letter, and have the repo fetched."""
        frame = self.unusable(raw, error.reason, str(error))
        frame.seq, frame.time = message.seq, message.time[:MAX_TIME]
        frame.update = update._replace(problem=FetchReason.INVALID_BLOCKS, readable=False)
        return frame

    def _event(
        self, event: IdentityEvent | AccountEvent, content: tuple[object, ...]
    ) -> PendingFrame:
        entry = Entry(FIREHOSE_LIVE, EVENT_FIELD, encode_event(event))
        self.counters.events += 1
        account = AccountUpdate(event.did, content, timestamp(event.time) or 0.0)
        return PendingFrame(event.seq, event.time, [entry], len(entry.payload), account=account)

    def _plausible(self, time: str, did: str) -> str:
        """Return an event's time, or the one of the event before it if it is far in the future.

        The newest event of an account stands, so one from the future would stand for ever. The
        time that replaces it is the same when the event is read again, and keeps the order.
        """
        latest = format_utc(datetime.fromtimestamp(self._clock() + FUTURE_SECONDS, UTC))
        if (normalize(time) or "") <= latest:
            self.time_before = time
            return time
        self.counters.errors["future_time"] += 1
        self._log.warning("time of an event far in the future", host=self.host, did=did, time=time)
        before = normalize(self.time_before or "")
        if before is None or before > latest:
            return format_utc(datetime.fromtimestamp(self._clock(), UTC))
        return before


class _OperationWriter:
    """Makes the entries of one commit's operations, looking at each by itself."""

    def __init__(
        self,
        converter: RepoConverter,
        message: CommitMessage,
        checked: Mapping[Any, bytes] | None,
        ops: Sequence[RepoOp],
        raw: bytes,
    ) -> None:
        """`checked`: the blocks where they were read; without, raises InvalidDataError."""
        self._converter = converter
        self._message = message
        self._commit = str(message.commit)
        self._blocks = _find(message, ops) if checked is None else checked
        self._block = _block if checked is None else _present
        self._raw = raw
        self._entries: list[Entry] = []
        self._written: list[Action] = []
        self._size = 0
        self.incomplete = False  # the repo has more than could be taken from the frame

    def write(self, ops: Sequence[RepoOp]) -> tuple[list[Action], list[Entry]]:
        """Return the actions that were written, and the entries, dead letters among them."""
        for op in ops:
            self._add(op)
        return self._written, self._entries

    def _add(self, op: RepoOp) -> None:
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
                self._converter.counters.errors[error.reason] += 1
                self.incomplete = True
            else:
                self._refuse(error.reason, f"{op.path}: {error}")
            return
        self._size += len(payload)
        if self._size > MAX_FRAME_OUTPUT:
            raise InvalidDataError(
                "expands_too_much", f"more than {MAX_FRAME_OUTPUT} bytes of JSON"
            )
        self._entries.append(Entry(FIREHOSE_LIVE, EVENT_FIELD, payload))
        self._written.append(op.action)

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
        self._entries += self._converter.keep_raw(self._raw, reason, error)


def _find(message: CommitMessage, ops: Sequence[RepoOp], *also: Cid) -> dict[bytes, bytes]:
    """Return blocks of operations, and others, out of a commit's CAR. Raises InvalidDataError."""
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
    """Return a block of a commit's CAR if it is there and has the hash that it is named by."""
    block = _present(blocks, cid)
    if sha256(block).digest() != cid[4:]:
        raise InvalidDataError("hash_mismatch", str(cid))
    return block


def _tid(text: str) -> int:
    """Return the number of a TID; -1, which no rev is, for any other text."""
    try:
        return tid_number(text)
    except ValueError:
        return -1


def _check_texts(time: str, text: str | None) -> None:
    if len(time) > MAX_TIME or (text is not None and len(text) > _MAX_TEXT):
        raise _absurd()


def _absurd() -> InvalidDataError:
    return InvalidDataError("text_too_long", "a time, handle or status has an absurd length")
