"""Repo jobs: the entries of `repo_backfill` and its siblings, and the reasons for a fetch."""

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
    """The word and properties of a reason; the defaults are those of a commit not applied."""

    word: str
    forced: bool = True
    confirmable: bool = False
    repair: bool = True
    expected: bool = False
    followed: bool = True


class FetchReason(Enum):
    """Why a repo is fetched, with every decision that depends on the reason.

    `forced`: fetch even if the stored rev is current, because later commits may have been applied
    while one in between is missing. Without it, a repo is current if it was once stored as a whole
    and its stored rev is at least the job's rev (or that of its PDS, if the job has none).
    `confirmable`: forced, but skipped if the PDS serves exactly the rev at which the repo was last
    stored as a whole. Lost state (Redis was flushed) or a reactivated account do not imply that a
    commit is missing.
    `repair`: no other mechanism would find the missing commit, so `backfill cancel --all` keeps it.
    `expected`: occurs on a healthy network, so it is logged at level INFO.
    `followed`: earlier commits of the repo were written and some may still be queued, so the repo
    is checked again after it is stored (see `RepoJob.settles`).

    The words are those of the entries and of `ingester_resyncs_total`. An unknown word, written by
    another version, is OTHER: always fetched and always kept.
    """

    # Named by a listing, an operator or an original service; no commit is known to be missing.
    LISTED = _Traits("", forced=False, repair=False, expected=True, followed=False)
    OPERATOR = _Traits("operator", repair=False, expected=True)  # `backfill add --force`
    GAP = _Traits("gap", expected=True)  # listed after events were lost
    UNSEEN = _Traits("unseen", confirmable=True, repair=False, expected=True, followed=False)
    REACTIVATED = _Traits("reactivated", confirmable=True, expected=True)
    SYNC = _Traits("sync", expected=True)  # a #sync event: the repo was replaced as a whole
    # A commit was not written, or only in part:
    TOO_BIG = _Traits("too_big")
    MISSING_BLOCK = _Traits("missing_block")
    INVALID_BLOCKS = _Traits("invalid_blocks")
    UNVERIFIED = _Traits("unverified")
    FORGED = _Traits("forged")
    MISSING_NODE = _Traits("missing_node")
    INVERSION = _Traits("inversion")
    INVALID_OPERATION = _Traits("invalid_operation")
    BROKEN_CHAIN = _Traits("broken_chain")  # the preceding commit is missing
    # Nobody can say whether it is: a commit without `prevData` of an account that never showed it.
    NO_PREV_DATA = _Traits("no_prev_data", expected=True)
    COMMIT = _Traits("commit", expected=True)  # retried from the raw dead letters
    SETTLE = _Traits("settle", expected=True)  # queued as a whole; see `RepoJob.settles`
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
        """Return the reason for the word of an entry; OTHER if it is unknown."""
        return _BY_WORD.get(word, FetchReason.OTHER)


_BY_WORD = {reason.word: reason for reason in FetchReason}
_OTHERS_GIVE = {
    FetchReason.LISTED, FetchReason.OPERATOR, FetchReason.GAP, FetchReason.COMMIT,
    FetchReason.SETTLE, FetchReason.OTHER,
}  # fmt: skip
FIREHOSE_REASONS = tuple(reason for reason in FetchReason if reason not in _OTHERS_GIVE)


@dataclass(frozen=True, slots=True)
class RepoJob:
    """A repo to fetch; `host` is the URL of the relay or PDS that named it.

    The other keys are unknown to the original services. `deleted` are paths that a commit deleted
    which was not written. `reason` is why the job was queued. `attempts` is the number of attempts
    that failed because of the repo; `failing` and `in_row` are the mark of the last failure of any
    kind (see `RepoError`) and how many in a row had it, `since` when the first of these was, in
    Unix seconds. `settles` is 0 for a job that fetches. Otherwise the repo was queued as a whole at
    `rev`, the job checks for older rows once that rev is stored, and `settles` numbers the check.
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
    failing: str = ""
    in_row: int = 0
    since: int = 0

    @property
    def forced(self) -> bool:
        """Whether to fetch the repo even if the stored rev is current."""
        return bool(self.deleted) or self.reason.forced

    @property
    def repair(self) -> bool:
        """Whether cancelling the job would lose a repair or deletions for good."""
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
    if job.failing:
        body |= {"failing": job.failing, "in_row": job.in_row, "since": job.since}
    return orjson.dumps(body)


def decode_repo_job(payload: bytes) -> RepoJob:
    """Read the `repo` field of an entry, of any version of this or the original services.

    Raises MalformedEventError.
    """
    body = parse_payload(payload)
    active, deleted = body.get("active", True), body.get("deleted", [])
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
        _count(body, "attempts"),
        _count(body, "settles"),
        optional_text(body, "failing") or "",
        _count(body, "in_row"),
        _count(body, "since"),
    )


def _count(body: dict[str, Any], key: str) -> int:
    value = body.get(key, 0)
    return max(0, value) if type(value) is int else 0
