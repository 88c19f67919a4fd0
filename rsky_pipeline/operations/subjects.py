"""Accounts and records as people name them: a DID, a handle, an at-uri, a link of bsky.app.

`read_subject` is pure; `resolve` asks for the DIDs of handles as the indexer does, with the same
guards against private hosts. Blocking, and not for use within a trio loop.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urlsplit

import trio

from rsky_pipeline.atproto.syntax import is_account_did, is_handle, is_nsid, is_rkey
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.handles import Handles, HandleUnavailableError
from rsky_pipeline.network.http import HttpClient

AT_ONCE = 10  # handles that are looked up side by side
_ALLOWED_DIDS = "allowed are did:plc with 24 letters (a-z, 2-7), and did:web"
_OF_LINKS = {
    "post": "app.bsky.feed.post", "feed": "app.bsky.feed.generator", "lists": "app.bsky.graph.list",
}  # fmt: skip
_STARTER_PACK = "app.bsky.graph.starterpack"


class UnknownHandleError(ValueError):
    """A handle that belongs to no account."""


@dataclass(frozen=True, slots=True)
class NamedSubject:
    """An account, or a record of it; `account` is a DID or, before `resolve`, a handle."""

    account: str
    collection: str = ""
    rkey: str = ""

    @property
    def text(self) -> str:
        """The at-uri of a record, else the account."""
        if not self.collection:
            return self.account
        return f"at://{self.account}/{self.collection}/{self.rkey}"


def read_subject(text: str) -> NamedSubject:
    """Read what somebody typed or pasted. Raises ValueError, worded for the operator."""
    text = text.strip()
    shown = repr(text[:100])
    if text.startswith(("https://", "http://")):
        parts = [unquote(part) for part in urlsplit(text).path.split("/") if part]
        match parts:
            case ["profile", account, kind, rkey, *_] if kind in _OF_LINKS:
                found = NamedSubject(account, _OF_LINKS[kind], rkey)
            case ["profile", account, *_]:
                found = NamedSubject(account)
            case ["starter-pack" | "start", account, rkey, *_]:
                found = NamedSubject(account, _STARTER_PACK, rkey)
            case _:
                raise ValueError(f"{shown} is no link to a profile, post, feed or list: give a DID")
    elif text.startswith("at://"):
        account, *path = text[5:].rstrip("/").split("/")
        if path and len(path) != 2:
            raise ValueError(f"{shown} is neither at://DID nor at://DID/COLLECTION/RKEY")
        found = NamedSubject(account, *path)
    else:
        found = NamedSubject(text)
    if found.collection and not (is_nsid(found.collection) and is_rkey(found.rkey)):
        raise ValueError(f"{shown} names no record: at://DID/COLLECTION/RKEY")
    account = found.account.removeprefix("@")
    if account.startswith("did:"):
        if not is_account_did(account):
            raise ValueError(f"{account[:100]!r} is not a DID of an account: {_ALLOWED_DIDS}")
    elif is_handle(account):
        account = account.lower()
    else:
        raise ValueError(f"{shown} is no DID, handle, at-uri or bsky.app link")
    return replace(found, account=account)


@dataclass(frozen=True, slots=True)
class ResolvedHandles:
    """The DIDs of handles, and the error of each that has none.

    UnknownHandleError, or HandleUnavailableError where neither DNS nor the host answers.
    """

    dids: dict[str, str] = field(default_factory=dict)
    problems: dict[str, Exception] = field(default_factory=dict)


def resolve(settings: Settings, subjects: Iterable[NamedSubject]) -> ResolvedHandles:
    """Look up the DID of each handle among these accounts."""
    wanted = dict.fromkeys(each.account for each in subjects if not each.account.startswith("did:"))
    found = ResolvedHandles()

    async def look_up(handles: Handles, handle: str, limit: trio.CapacityLimiter) -> None:
        async with limit:
            try:
                did = await handles.resolve(handle)
            except HandleUnavailableError as error:
                text = f"{handle} cannot be resolved now: {error}"
                found.problems[handle] = HandleUnavailableError(text)
                return
        if did is None:
            text = f"{handle} is the handle of no account"
            found.problems[handle] = UnknownHandleError(text)
        else:
            found.dids[handle] = did

    async def look_up_all() -> None:
        private, resolver = settings.allow_private_hosts, settings.handle_resolver_url
        async with HttpClient(allow_private=private, proxy=settings.proxy) as http:
            handles = Handles(http, resolver_url=resolver, allow_private=private)
            limit = trio.CapacityLimiter(AT_ONCE)
            async with trio.open_nursery() as nursery:
                for handle in wanted:
                    nursery.start_soon(look_up, handles, handle, limit)

    if wanted:
        trio.run(look_up_all)
    return found
