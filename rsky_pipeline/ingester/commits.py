"""Frames of `subscribeRepos` to events; no I/O.

Records are taken from the commit's own blocks, and each must have the hash that it is named by.
Where content is missing the repo is queued to be fetched again.
Source: sync specification; wire forms in `streams.event`.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.car import find_blocks
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidData
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    IdentityMessage,
    Message,
    RepoOp,
    SyncMessage,
)
from rsky_pipeline.atproto.syntax import split_path
from rsky_pipeline.configuration.selection import path_prefixes
from rsky_pipeline.ingester.convert import MAX_TIME, Claim, Converted, FrameConverter
from rsky_pipeline.ingester.quarantine import Quarantine
from rsky_pipeline.ingester.tally import Tally
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.event import (
    EVENT_FIELD,
    REPO_FIELD,
    AccountEvent,
    IdentityEvent,
    RepoJob,
    encode_event,
    encode_record_event,
    encode_repo_job,
)
from rsky_pipeline.streams.names import FIREHOSE_LIVE, REPO_BACKFILL

SUBSCRIBE_REPOS = "com.atproto.sync.subscribeRepos"
# One record may stand under 200 paths and grow sixfold in JSON; past this the repo is fetched.
MAX_FRAME_OUTPUT = 16 * 1024 * 1024
_MAX_TEXT = 2_048  # no honest handle or status is longer


class RepoConverter(FrameConverter):
    """Frames of `subscribeRepos`. `claims` asks for what a signature check needs."""

    def __init__(
        self,
        host: str,
        relay_url: str,
        collections: tuple[str, ...],
        tally: Tally,
        quarantine: Quarantine,
        *,
        claims: bool = False,
    ) -> None:
        super().__init__(host, tally, quarantine)
        self._relay_url = relay_url
        self._prefixes = path_prefixes(collections)
        self._claims = claims

    def count(self) -> None:
        """Count a frame, readable or not."""
        self.tally.messages += 1

    def convert_message(self, message: Message, raw: bytes) -> Converted:
        """Convert a decoded message of any type."""
        if type(message) is CommitMessage:
            return self._commit(message, raw)
        match message:
            case SyncMessage(seq=seq, did=did, rev=rev, time=time):
                return self._resync(seq, time, did, rev, "sync")
            case IdentityMessage(seq=seq, time=time, did=did, handle=handle):
                _check_texts(time, handle)
                return self._event(IdentityEvent(seq, time, did, handle))._replace(changed_did=did)
            case AccountMessage(seq=seq, time=time, did=did, active=active, status=status):
                _check_texts(time, status)
                return self._event(AccountEvent(seq, time, did, active, status))
        return super().convert_message(message, raw)

    def resync(self, did: str, rev: str, reason: str, ops: Sequence[RepoOp] = ()) -> Entry:
        """Return the entry that has a repo fetched again, and count it.

        `ops` are those of a commit that is not written. Its creates and updates are in the repo
        then; its deletions are not seen there, so the job names them.
        """
        self.tally.resyncs[reason] += 1
        return self._job(did, rev, ops)

    def _job(self, did: str, rev: str, ops: Sequence[RepoOp] = ()) -> Entry:
        deleted = tuple(
            op.path
            for op in ops
            if op.cid is None and op.path.startswith(self._prefixes) and split_path(op.path)
        )
        job = RepoJob(did, self._relay_url, rev, None, True, deleted)
        return Entry(REPO_BACKFILL, REPO_FIELD, encode_repo_job(job))

    def _resync(
        self, seq: int, time: str, did: str, rev: str, reason: str, ops: Sequence[RepoOp] = ()
    ) -> Converted:
        entry = self.resync(did, rev, reason, ops)
        return Converted(seq, time[:MAX_TIME], [entry], len(entry.payload))

    def _event(self, event: IdentityEvent | AccountEvent) -> Converted:
        entry = Entry(FIREHOSE_LIVE, EVENT_FIELD, encode_event(event))
        self.tally.events += 1
        return Converted(event.seq, event.time, [entry], len(entry.payload))

    def _commit(self, message: CommitMessage, raw: bytes) -> Converted:
        _check_texts(message.time, None)
        if message.too_big:
            self.tally.errors["too_big"] += 1
            return self._resync(
                message.seq, message.time, message.did, message.rev, "too_big", message.ops
            )
        prefixes = self._prefixes
        wanted = [op for op in message.ops if op.path.startswith(prefixes)]
        self.tally.filtered += len(message.ops) - len(wanted)
        if not wanted:
            return Converted(message.seq, message.time, [], 0)
        try:
            return self._operations(message, wanted, raw)
        except InvalidData as error:
            entries = self.keep_aside(raw, error.reason, str(error))
            entries.append(self.resync(message.did, message.rev, "invalid_blocks", wanted))
            size = sum(len(entry.payload) for entry in entries)
            return Converted(message.seq, message.time, entries, size)

    def _operations(self, message: CommitMessage, ops: list[RepoOp], raw: bytes) -> Converted:
        blocks: dict[bytes, bytes] = {}
        claim = instead = None
        wanted: set[bytes] = {op.cid for op in ops if op.cid is not None}
        if self._claims:
            wanted.add(message.commit)
        if wanted:
            roots, blocks = find_blocks(message.blocks, wanted)
            if roots[0] != message.commit:
                raise InvalidData("root_mismatch", "the blocks are not those of the commit")
        if self._claims:
            claim = Claim(message.did, message.rev, _block(blocks, message.commit))
            instead = self._job(message.did, message.rev, ops)
        writer = _OperationWriter(self, message, blocks, raw)
        for op in ops:
            writer.add(op)
        if writer.incomplete:
            writer.entries.append(self.resync(message.did, message.rev, "missing_block"))
        self.tally.events += writer.events
        return Converted(message.seq, message.time, writer.entries, writer.size, claim, instead)


class _OperationWriter:
    """Collects the entries of one commit's operations."""

    def __init__(
        self,
        converter: RepoConverter,
        message: CommitMessage,
        blocks: Mapping[bytes, bytes],
        raw: bytes,
    ) -> None:
        self._converter = converter
        self._message = message
        self._commit = str(message.commit)
        self._blocks = blocks
        self._raw = raw
        self.entries: list[Entry] = []
        self.events = 0
        self.size = 0
        self.incomplete = False  # the repo has more than could be taken from the frame

    def add(self, op: RepoOp) -> None:
        """Append the event of one operation; one that is bad costs only itself."""
        tally = self._converter.tally
        parts = split_path(op.path)
        if parts is None:
            self._refuse("invalid_path", op.path[:200])
            return
        try:
            record = None if op.cid is None else _record(self._blocks, op.cid)
            payload = self._encode(op, parts, record)
        except InvalidData as error:
            if error.reason in {"missing_block", "hash_mismatch"}:
                tally.errors[error.reason] += 1
                self.incomplete = True
            else:
                self._refuse(error.reason, f"{op.path}: {error}")
            return
        self.size += len(payload)
        if self.size > MAX_FRAME_OUTPUT:
            raise InvalidData("expands_too_much", f"more than {MAX_FRAME_OUTPUT} bytes of JSON")
        self.entries.append(Entry(FIREHOSE_LIVE, EVENT_FIELD, payload))
        self.events += 1
        if op.action == "create":
            tally.creates += 1
        elif op.action == "update":
            tally.updates += 1
        else:
            tally.deletes += 1

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


def _block(blocks: Mapping[bytes, bytes], cid: Cid) -> bytes:
    """Return a block of a commit's CAR if it is there and is what it is named."""
    block = blocks.get(cid)
    if block is None:
        raise InvalidData("missing_block", str(cid))
    if sha256(block).digest() != cid[4:]:
        raise InvalidData("hash_mismatch", str(cid))
    return block


def _record(blocks: Mapping[bytes, bytes], cid: Cid) -> dict[str, object]:
    record = cbor.decode(_block(blocks, cid))
    if type(record) is not dict:
        raise InvalidData("invalid_record", "a record is a map")
    return record


def _check_texts(time: str, text: str | None) -> None:
    if len(time) > MAX_TIME or (text is not None and len(text) > _MAX_TEXT):
        raise InvalidData("text_too_long", "a time, handle or status has an absurd length")
