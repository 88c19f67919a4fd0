"""Listing repos of a relay or PDS, and fetching one. https://atproto.com/specs/sync"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from rsky_pipeline.atproto.syntax import is_did
from rsky_pipeline.network.hosts import Endpoint
from rsky_pipeline.network.http import HttpClient, HttpFailure

PAGE_SIZE = 1_000
MAX_PAGE = 4 * 1024 * 1024

# Answers after which asking again is pointless until something changes at the account.
_PERMANENT_CODES = frozenset(
    {"RepoNotFound", "NotFound", "RepoDeactivated", "RepoSuspended", "RepoTakendown",
     "RepoDeleted", "RepoInactive"}
)  # fmt: skip
_RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})

Kind = Literal["permanent", "transient", "rate_limited", "invalid"]


class RepoUnavailable(Exception):
    """A repo could not be fetched. `code` is a short reason, safe as a metric label."""

    def __init__(
        self, kind: Kind, code: str, message: str, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.code = code
        self.retry_after = retry_after


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


@asynccontextmanager
async def get_repo(
    http: HttpClient, pds: str, did: str, *, max_bytes: int, total_seconds: float
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Open the CAR of a repo at its PDS, as chunks of bytes. Raises RepoUnavailable."""
    url = f"{pds}/xrpc/com.atproto.sync.getRepo?did={quote(did, safe=':')}"
    try:
        async with http.get(url, max_bytes=max_bytes, total_seconds=total_seconds) as answer:
            yield answer.chunks
    except HttpFailure as error:
        raise classify(error) from error


def classify(error: HttpFailure) -> RepoUnavailable:
    """Tell what a failed request means for a repo."""
    text = str(error)
    if error.kind == "status":
        if error.code in _PERMANENT_CODES:
            return RepoUnavailable("permanent", error.code, text)
        if error.status == 429 or (error.status == 503 and error.retry_after):
            return RepoUnavailable("rate_limited", "rate_limited", text, error.retry_after)
        if error.status in _RETRYABLE_STATUS or error.code == "RepoNotSynchronized":
            return RepoUnavailable("transient", "server_error", text, error.retry_after)
        return RepoUnavailable("transient", "refused", text)
    if error.kind in {"too_big", "forbidden"}:
        return RepoUnavailable("invalid", error.kind, text)
    return RepoUnavailable("transient", error.kind, text)


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
