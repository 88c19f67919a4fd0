"""Repos to fetch: the entries of `repo_backfill` and its siblings, and why a repo is fetched."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson

from rsky_pipeline.streams.event import (
    MalformedEventError,
    optional_text,
    parse_payload,
    required_text,
)

REPO_FIELD = b"repo"


@dataclass(frozen=True, slots=True)
class _Traits:
    """A reason's word, and how it differs from that of a commit which could not be followed."""

    word: str
    forced: bool = True
    confirmable: bool = False
    repair: bool = True
    expected: bool = False
    followed: bool = True


class FetchReason(Enum):
    """Why a repo is fetched, and all that follows from that, wherever it is asked.

    `forced`: fetch it even if the stored revs look current, because commits that came later may
    have been applied while one in between is missing. Without it, a repo is current if it was
    stored as a whole once and its stored rev is at least the job's (its PDS's, where the job has
    none).
    `confirmable`: forced, but not fetched if its PDS has the very rev at which the repo was last
    stored as a whole. That nothing was known of a repo any more (Redis was lost), or that its
    account was away, is no sign that anything is missing.
    `repair`: nothing else finds again what is missing, so `backfill cancel --all` keeps it.
    `expected`: happens on a healthy network; it is logged as information.
    `followed`: earlier commits of the repo were written. Some of them may still be queued, so that
    the repo is looked at once more when it is stored.

    The words are those of the entries and of `ingester_resyncs_total`. A word of another version
    that is not known here is OTHER, which is fetched and kept in any case.
    """

    # A listing or an operator named it, or an original service: nothing is known to be wrong.
    LISTED = _Traits("", forced=False, repair=False, expected=True, followed=False)
    OPERATOR = _Traits("operator", repair=False, expected=True)  # asked for by force
    GAP = _Traits("gap", expected=True)  # listed after events were lost
    UNSEEN = _Traits("unseen", confirmable=True, repair=False, expected=True, followed=False)
    REACTIVATED = _Traits("reactivated", confirmable=True, expected=True)
    SYNC = _Traits("sync", expected=True)  # its host says that it was changed as a whole
    # A commit that was not written, or not as a whole:
    TOO_BIG = _Traits("too_big")
    MISSING_BLOCK = _Traits("missing_block")
    INVALID_BLOCKS = _Traits("invalid_blocks")
    UNVERIFIED = _Traits("unverified")
    FORGED = _Traits("forged")
    MISSING_NODE = _Traits("missing_node")
    INVERSION = _Traits("inversion")
    INVALID_OPERATION = _Traits("invalid_operation")
    BROKEN_CHAIN = _Traits("broken_chain")  # one before it is missing
    COMMIT = _Traits("commit", expected=True)  # of the raw dead letters, tried again
    SETTLE = _Traits("settle", expected=True)  # was queued as a whole, see `RepoJob.settles`
    OTHER = _Traits("other")

    def __init__(self, traits: _Traits) -> None:
        self.word = traits.word
        self.forced = traits.forced
        self.confirmable = traits.confirmable
        self.repair = traits.repair
        self.expected = traits.expected
        self.followed = traits.followed

    @staticmethod
    def of(word: str) -> "FetchReason":
        """Return the reason of an entry's word, whoever wrote it."""
        return _BY_WORD.get(word, FetchReason.OTHER)


_BY_WORD = {reason.word: reason for reason in FetchReason}
_OTHERS_GIVE = {
    FetchReason.LISTED, FetchReason.OPERATOR, FetchReason.GAP, FetchReason.COMMIT,
    FetchReason.SETTLE, FetchReason.OTHER,
}  # fmt: skip
FIREHOSE_REASONS = tuple(reason for reason in FetchReason if reason not in _OTHERS_GIVE)


@dataclass(frozen=True, slots=True)
class RepoJob:
    """A repo to fetch; `host` is the relay or PDS that named it, as a URL.

    Four keys are ours, the original services neither write nor read them. `deleted` are paths
    that a commit which was not written says are gone. `reason` is why it was queued. `attempts` is
    how many attempts have failed so far. `settles` is not 0 for a repo that was queued as a whole
    at `rev`, and is looked at once more when that is stored: how many looks there were, this one
    included.
    """

    did: str
    host: str
    rev: str
    status: str | None
    active: bool
    deleted: tuple[str, ...] = ()
    reason: FetchReason = FetchReason.LISTED
    attempts: int = 0
    settles: int = 0

    @property
    def forced(self) -> bool:
        """Whether to fetch the repo even if the stored revs look current."""
        return bool(self.deleted) or self.reason.forced

    @property
    def repair(self) -> bool:
        """Whether nothing else finds again what is missing, deletions among it."""
        return bool(self.deleted) or self.reason.repair


def encode_repo_job(job: RepoJob) -> bytes:
    """Return the JSON of a `repo_backfill` entry."""
    body: dict[str, Any] = {
        "did": job.did, "host": job.host, "rev": job.rev, "status": job.status,
        "active": job.active,
    }  # fmt: skip
    if job.deleted:
        body["deleted"] = job.deleted
    if job.reason is not FetchReason.LISTED:
        body["reason"] = job.reason.word
    if job.attempts:
        body["attempts"] = job.attempts
    if job.settles:
        body["settles"] = job.settles
    return orjson.dumps(body)


def decode_repo_job(payload: bytes) -> RepoJob:
    """Read the `repo` field of an entry, of whatever version or service.

    Raises MalformedEventError.
    """
    body = parse_payload(payload)
    active, deleted = body.get("active", True), body.get("deleted", [])
    attempts, settles = body.get("attempts", 0), body.get("settles", 0)
    if type(deleted) is not list or not all(type(path) is str for path in deleted):
        raise MalformedEventError("invalid_field", "deleted is not a list of texts")
    return RepoJob(
        required_text(body, "did"),
        optional_text(body, "host") or "",
        optional_text(body, "rev") or "",
        optional_text(body, "status"),
        active if type(active) is bool else True,
        tuple(deleted),
        FetchReason.of(optional_text(body, "reason") or ""),
        max(0, attempts) if type(attempts) is int else 0,
        max(0, settles) if type(settles) is int else 0,
    )
