"""One repo at its PDS: the URL of its CAR, its rev, and what a failure means."""

from typing import Literal
from urllib.parse import quote

from rsky_pipeline.atproto.syntax import is_rev
from rsky_pipeline.network.http import HttpClient, HttpError, RateLimit

MAX_ANSWER = 16 * 1024

# Answers after which asking again is pointless until something changes at the account.
PERMANENT_CODES = frozenset(
    {"RepoNotFound", "NotFound", "RepoDeactivated", "RepoSuspended", "RepoTakendown",
     "RepoDeleted", "RepoInactive"}
)  # fmt: skip
_RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})

Kind = Literal["permanent", "transient", "rate_limited", "invalid"]


class RepoUnavailableError(Exception):
    """A repo could not be fetched. `code` is a short reason, safe as a metric label.

    `retry_after` (seconds) and `limit` are the host's rate limit, where it stated one.
    """

    def __init__(
        self, kind: Kind, code: str, message: str, retry_after: float | None = None,
        limit: RateLimit | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.kind = kind
        self.code = code
        self.retry_after = retry_after
        self.limit = limit


def repo_url(pds: str, did: str) -> str:
    """Return where a PDS serves the CAR of a repo."""
    return f"{pds}/xrpc/com.atproto.sync.getRepo?did={quote(did, safe=':')}"


async def latest_rev(http: HttpClient, pds: str, did: str) -> str:
    """Ask a PDS for the rev of a repo. Raises RepoUnavailableError."""
    url = f"{pds}/xrpc/com.atproto.sync.getLatestCommit?did={quote(did, safe=':')}"
    try:
        body = await http.get_json(url, max_bytes=MAX_ANSWER, total_seconds=30.0)
    except HttpError as error:
        raise classify(error) from error
    rev = body.get("rev") if isinstance(body, dict) else None
    if not isinstance(rev, str) or not is_rev(rev):
        raise RepoUnavailableError("transient", "malformed", f"{url} has no rev")
    return rev


def classify(error: HttpError) -> RepoUnavailableError:
    """Return the meaning of a failed request for the repo it asked for."""
    kind, code = _meaning(error)
    return RepoUnavailableError(kind, code, str(error), error.retry_after, error.limit)


def _meaning(error: HttpError) -> tuple[Kind, str]:
    if error.kind == "status":
        if error.code in PERMANENT_CODES:
            return "permanent", error.code
        if error.status == 429 or (error.status == 503 and error.retry_after is not None):
            return "rate_limited", "rate_limited"
        if error.status in _RETRYABLE_STATUS or error.code == "RepoNotSynchronized":
            return "transient", "server_error"
        # A service names its error; a page is from a proxy before it, and about the host.
        return "transient", "refused" if error.code else "not_xrpc"
    if error.kind == "forbidden" and error.misled:
        return "transient", "misled"
    if error.kind in {"too_big", "forbidden"}:
        return "invalid", error.kind
    return "transient", error.kind
