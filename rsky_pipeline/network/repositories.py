"""Listing repos of a relay or PDS, and fetching one. https://atproto.com/specs/sync"""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from rsky_pipeline.atproto.syntax import is_did, is_tid
from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.network.http import HttpClient, HttpFailure
from rsky_pipeline.network.rate_headers import RateLimit

PAGE_SIZE = 1_000
MAX_PAGE = 4 * 1024 * 1024
MAX_ANSWER = 16 * 1024

# Answers after which asking again is pointless until something changes at the account.
_PERMANENT_CODES = frozenset(
    {"RepoNotFound", "NotFound", "RepoDeactivated", "RepoSuspended", "RepoTakendown",
     "RepoDeleted", "RepoInactive"}
)  # fmt: skip
_RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})

Kind = Literal["permanent", "transient", "rate_limited", "invalid"]


class RepoUnavailable(Exception):
    """A repo could not be fetched. `code` is a short reason, safe as a metric label.

    `retry_after` (seconds) and `limit` are what the host said of its rate limit.
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


@dataclass(frozen=True, slots=True)
class ListedRepo:
    """A repo as a host lists it."""

    did: str
    rev: str
    active: bool
    status: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing; without a cursor it is the last. `refused` entries were malformed."""

    repos: tuple[ListedRepo, ...]
    cursor: str | None
    refused: int = 0


async def list_repos(
    http: HttpClient, endpoint: Endpoint, cursor: str | None, limit: int = PAGE_SIZE
) -> Page:
    """Fetch a page of listRepos from a configured host. Cursors are opaque.

    Raises HttpFailure; entries that are malformed are left out.
    """
    return await _page(http, endpoint, "listRepos", cursor, limit)


async def list_repos_by_collection(
    http: HttpClient, collection: str, endpoint: Endpoint, cursor: str | None, limit: int
) -> Page:
    """Fetch a page of listReposByCollection: accounts with records of a collection.

    It tells neither rev nor hosting status. Raises HttpFailure.
    """
    name = f"listReposByCollection?collection={quote(collection, safe='')}"
    return await _page(http, endpoint, name, cursor, limit)


async def _page(
    http: HttpClient, endpoint: Endpoint, name: str, cursor: str | None, limit: int
) -> Page:
    query = f"limit={limit}" + (f"&cursor={quote(cursor, safe='')}" if cursor else "")
    joint = "&" if "?" in name else "?"
    url = endpoint.http_url(f"/xrpc/com.atproto.sync.{name}{joint}{query}")
    body = await http.get_json(url, max_bytes=MAX_PAGE, total_seconds=60.0, trusted=True)
    repos = body.get("repos") if isinstance(body, dict) else None
    if not isinstance(repos, list):
        raise HttpFailure("malformed", f"{url} has no list of repos")
    following = body.get("cursor")
    found = tuple(found for item in repos if (found := _listed(item)) is not None)
    cursor = following if isinstance(following, str) and following else None
    return Page(found, cursor, len(repos) - len(found))


def repo_url(pds: str, did: str) -> str:
    """Return where a PDS serves the CAR of a repo."""
    return f"{pds}/xrpc/com.atproto.sync.getRepo?did={quote(did, safe=':')}"


async def latest_rev(http: HttpClient, pds: str, did: str) -> str:
    """Ask a PDS for the rev of a repo. Raises RepoUnavailable."""
    url = f"{pds}/xrpc/com.atproto.sync.getLatestCommit?did={quote(did, safe=':')}"
    try:
        body = await http.get_json(url, max_bytes=MAX_ANSWER, total_seconds=30.0)
    except HttpFailure as error:
        raise classify(error) from error
    rev = body.get("rev") if isinstance(body, dict) else None
    if not isinstance(rev, str) or not is_tid(rev):
        raise RepoUnavailable("transient", "malformed", f"{url} has no rev")
    return rev


def classify(error: HttpFailure) -> RepoUnavailable:
    """Tell what a failed request means for a repo."""
    kind, code = _meaning(error)
    return RepoUnavailable(kind, code, str(error), error.retry_after, error.limit)


def _meaning(error: HttpFailure) -> tuple[Kind, str]:
    if error.kind == "status":
        if error.code in _PERMANENT_CODES:
            return "permanent", error.code
        if error.status == 429 or (error.status == 503 and error.retry_after is not None):
            return "rate_limited", "rate_limited"
        if error.status in _RETRYABLE_STATUS or error.code == "RepoNotSynchronized":
            return "transient", "server_error"
        return "transient", "refused"
    if error.kind in {"too_big", "forbidden"}:
        return "invalid", error.kind
    return "transient", error.kind


def _listed(item: object) -> ListedRepo | None:
    if not isinstance(item, dict):
        return None
    did, rev, active, status = (item.get(key) for key in ("did", "rev", "active", "status"))
    if not isinstance(did, str) or not is_did(did):
        return None
    return ListedRepo(
        did,
        rev if isinstance(rev, str) else "",
        active if isinstance(active, bool) else True,
        status if isinstance(status, str) else None,
    )
