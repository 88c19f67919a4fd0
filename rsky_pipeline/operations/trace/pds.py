"""Asking the account's own host."""

from urllib.parse import quote

import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.directory import Directory, IdentityNotFound, IdentityUnavailable
from rsky_pipeline.network.http import HttpClient, HttpFailure
from rsky_pipeline.operations.trace.places import AtPds, Subject

_SECONDS = 15.0
_NO_RECORD = {"RecordNotFound", "InvalidRequest", "NotFound"}  # older hosts have no own name


def ask_pds(settings: Settings, subject: Subject) -> AtPds:
    """Ask the PDS that the DID document names. Not for use within a trio loop."""
    return trio.run(_ask, settings, subject)


async def _ask(settings: Settings, subject: Subject) -> AtPds:
    async with HttpClient(allow_private=settings.allow_private_hosts) as http:
        directory = Directory(
            http, settings.plc_url, allow_private=settings.allow_private_hosts, max_cached=10
        )
        try:
            document = await directory.resolve(subject.did)
        except IdentityNotFound as error:
            return AtPds(state="IdentityNotFound", problem=str(error))
        except IdentityUnavailable as error:
            return AtPds(problem=str(error))
        if document.pds is None:
            return AtPds(handle=document.handle, state="NoPds", problem="its DID names no PDS")
        try:
            rev, state = await _latest(http, document.pds, subject)
            present, cid = None, None
            if subject.collection and state is None:
                present, cid = await _record(http, document.pds, subject)
        except HttpFailure as error:
            return AtPds(document.pds, document.handle, problem=str(error))
        return AtPds(document.pds, document.handle, rev, state, present, cid)


async def _latest(http: HttpClient, pds: str, subject: Subject) -> tuple[str | None, str | None]:
    """Return rev and why there is none. Raises HttpFailure where nobody knows."""
    url = f"{pds}/xrpc/com.atproto.sync.getLatestCommit?did={quote(subject.did, safe=':')}"
    try:
        body = await http.get_json(url, total_seconds=_SECONDS)
    except HttpFailure as error:
        if error.kind == "status" and error.code.startswith("Repo"):
            return None, error.code
        raise
    rev = body.get("rev") if isinstance(body, dict) else None
    return (rev if isinstance(rev, str) else None), None


async def _record(http: HttpClient, pds: str, subject: Subject) -> tuple[bool, str | None]:
    query = "&".join(
        f"{name}={quote(value, safe=':')}"
        for name, value in (
            ("repo", subject.did), ("collection", subject.collection), ("rkey", subject.rkey),
        )
    )  # fmt: skip
    try:
        body = await http.get_json(
            f"{pds}/xrpc/com.atproto.repo.getRecord?{query}", total_seconds=_SECONDS
        )
    except HttpFailure as error:
        if error.kind == "status" and error.code in _NO_RECORD:
            return False, None
        raise
    cid = body.get("cid") if isinstance(body, dict) else None
    return True, cid if isinstance(cid, str) else None
