"""What each place on the way says about a record. Values; None stands for "could not be asked"."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rsky_pipeline.atproto.syntax import is_did, parse_at_uri


@dataclass(frozen=True, slots=True)
class Subject:
    """A record, or an account where collection and rkey are empty."""

    did: str
    collection: str = ""
    rkey: str = ""

    @property
    def uri(self) -> str:
        """The record's uri, or the DID."""
        return f"at://{self.did}/{self.collection}/{self.rkey}" if self.collection else self.did


def parse_subject(text: str) -> Subject:
    """Read an AT-URI or a DID. Raises ValueError, worded for the operator."""
    if is_did(text):
        return Subject(text)
    parts = parse_at_uri(text) if text.startswith("at://") else None
    if parts is None:
        raise ValueError(f"{text[:200]!r} is neither a DID nor at://DID/COLLECTION/RKEY")
    did, collection, rkey = parts
    if not is_did(did):
        raise ValueError(f"{did[:100]} is a handle: give the account's DID")
    return Subject(did, collection or "", rkey or "")


@dataclass(frozen=True, slots=True)
class AtPds:
    """What the account's host says; `problem` where it could not be asked."""

    host: str | None = None
    handle: str | None = None
    rev: str | None = None  # of the newest commit
    state: str | None = None  # why the host does not serve the repo, as RepoDeactivated
    present: bool | None = None  # whether it has the record
    cid: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class InStream:
    """An entry about the record; `groups` maps each group to unread, done or pending with whom."""

    stream: str
    id: str
    time: str | None
    kind: str
    rev: str
    groups: Mapping[str, str]

    @property
    def wanted(self) -> bool:
        """Whether some group has not finished with it."""
        return any(state != "done" for state in self.groups.values()) or not self.groups


@dataclass(frozen=True, slots=True)
class Buried:
    """A dead letter about the record."""

    stream: str
    id: str
    time: str | None
    reason: str
    error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Searched:
    """How much of a stream was looked at: newest first, up to a limit."""

    stream: str
    entries: int
    of: int


@dataclass(frozen=True, slots=True)
class InRedis:
    """Everything found in streams and dead-letter streams."""

    entries: tuple[InStream, ...] = ()
    letters: tuple[Buried, ...] = ()
    searched: tuple[Searched, ...] = ()
    problem: str | None = None

    @property
    def complete(self) -> bool:
        """Whether everything was looked at."""
        return self.problem is None and all(item.entries >= item.of for item in self.searched)


@dataclass(frozen=True, slots=True)
class InDatabase:
    """What PostgreSQL holds about the record and its account."""

    record: Mapping[str, Any] | None = None  # cid, rev, indexed_at, taken_down
    tables: Mapping[str, int] = field(default_factory=dict)  # rows by table, `record` left out
    main_table: str | None = None  # where a record of this collection has its row
    duplicate_of: str | None = None
    tombstone: Mapping[str, Any] | None = None  # rev, deleted_at
    floor: str | None = None  # everything of the repo up to this rev is known
    actor: Mapping[str, Any] | None = None  # handle, status, taken_down
    account_event: Mapping[str, Any] | None = None
    synced_rev: str | None = None
    backfill: Mapping[str, Any] | None = None
    labels: tuple[Mapping[str, Any], ...] = ()
    flags: Mapping[str, bool] = field(default_factory=dict)  # of a post
    records: Mapping[str, int] = field(default_factory=dict)  # of an account, by collection
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Firehose:
    """How far the ingester has read, in seconds since 1970; None where no ingester told."""

    read_to: float | None = None
    written_at: float | None = None  # when the record's key says it was written
    selected: bool = True  # whether settings select the collection

    @property
    def passed(self) -> bool | None:
        """Whether the ingester has read beyond the moment of the record."""
        if self.read_to is None or self.written_at is None:
            return None
        return self.read_to > self.written_at


@dataclass(frozen=True, slots=True)
class Traced:
    """Everything that was found about a subject."""

    subject: Subject
    pds: AtPds
    firehose: Firehose
    redis: InRedis
    database: InDatabase

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        found = asdict(self)
        found["subject"] = self.subject.uri
        found["firehose"]["passed"] = self.firehose.passed
        found["redis"]["complete"] = self.redis.complete
        return found
