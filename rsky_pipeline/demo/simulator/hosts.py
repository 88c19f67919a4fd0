"""The answers of the simulated relay, PDS, PLC directory and labeler over HTTP."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.cbor import decode
from rsky_pipeline.atproto.commit import parse_commit
from rsky_pipeline.atproto.dagjson import to_json
from rsky_pipeline.atproto.mst import walk
from rsky_pipeline.demo.simulator.accounts import RepoStatus
from rsky_pipeline.demo.simulator.http import (
    Request,
    SimulatedResponse,
    Upgrade,
    json_response,
    xrpc_error,
)
from rsky_pipeline.demo.simulator.subscription import EventLog, StreamRules, Subscribers, subscribe


@dataclass(frozen=True, slots=True)
class Urls:
    """Where the hosts are, as http URLs without a path."""

    relay: str
    pds: str
    plc: str
    labeler: str


class Source(Protocol):
    """The accounts behind the hosts."""

    @property
    def handles(self) -> Mapping[str, str]:
        """The handles that resolve, with their DIDs."""

    def document(self, did: str, pds: str, labeler: str) -> dict[str, Any] | None:
        """Return a DID document that names these endpoints, or None."""

    def status(self, did: str) -> RepoStatus | None:
        """Return the status of a repo at its host; None if the host does not have it."""

    def statuses(self) -> Sequence[RepoStatus]:
        """Return all repos, new ones last."""

    def car(self, did: str) -> bytes:
        """Return the whole repo of an account that has one and is active."""


CAR = "application/vnd.ipld.car"
MAX_PAGE = 1_000
_REFUSALS = {
    "takendown": "RepoTakendown",
    "suspended": "RepoSuspended",
}
_SYNC = "/xrpc/com.atproto.sync."


@dataclass(slots=True)
class Stream:
    """An event stream, how it treats subscribers, and who they are."""

    log: EventLog
    rules: StreamRules
    subscribers: Subscribers = field(default_factory=Subscribers)

    def answer(self, request: Request) -> SimulatedResponse | Upgrade:
        """Answer a subscription."""
        return subscribe(request, self.log, self.rules, self.subscribers)


@dataclass(slots=True)
class SimulatedHosts:
    """The four hosts of a network; `downloads` counts repos that were served."""

    source: Source
    urls: Urls
    events: Stream
    labels: Stream
    downloads: int = 0

    async def relay(self, request: Request) -> SimulatedResponse | Upgrade:
        """Answer as a relay: it streams and lists, and redirects getRepo to the PDS."""
        match request.path.removeprefix(_SYNC):
            case "subscribeRepos":
                return self.events.answer(request)
            case "listRepos":
                return self._list(request, relay=True)
            case "getRepo":
                where = f"{self.urls.pds}{_SYNC}getRepo?did={quote(_did(request))}"
                return SimulatedResponse(302, b"", headers={"location": where})
        return self._repo_answers(request)

    async def pds(self, request: Request) -> SimulatedResponse | Upgrade:
        """Answer as the PDS of all accounts, which also proves their handles and has a stream.

        It describes itself, which the relay does not: so clients tell one from the other.
        """
        if request.path == "/xrpc/com.atproto.server.describeServer":
            server = f"did:web:{urlsplit(self.urls.pds).netloc.replace(':', '%3A')}"
            return json_response({"did": server, "availableUserDomains": [".test"]})
        if request.path == "/.well-known/atproto-did":
            name = request.headers.get("host", "").partition(":")[0].lower()
            did = self.source.handles.get(name)
            if did is None:
                return SimulatedResponse(404, b"no such handle", "text/plain")
            return SimulatedResponse(200, did.encode(), "text/plain")
        if request.path == "/xrpc/com.atproto.identity.resolveHandle":
            did = self.source.handles.get(request.query.get("handle", "").lower())
            if did is None:
                return xrpc_error(400, "HandleNotFound", "Unable to resolve handle")
            return json_response({"did": did})
        match request.path.removeprefix(_SYNC):
            case "subscribeRepos":
                return self.events.answer(request)
            case "listRepos":
                return self._list(request, relay=False)
            case "getRepo":
                repo = self._available(_did(request))
                if isinstance(repo, SimulatedResponse):
                    return repo
                self.downloads += 1
                return SimulatedResponse(200, self.source.car(repo.did), CAR)
        if request.path == "/xrpc/com.atproto.repo.getRecord":
            return self._record(request)
        return self._repo_answers(request)

    async def plc(self, request: Request) -> SimulatedResponse | Upgrade:
        """Answer as a PLC directory."""
        did = request.path.removeprefix("/")
        document = self.source.document(did, self.urls.pds, self.urls.labeler)
        if document is None:
            return json_response({"message": f"DID not registered: {did}"}, 404)
        return json_response(document)

    async def labeler(self, request: Request) -> SimulatedResponse | Upgrade:
        """Answer as a labeler."""
        if request.path == "/xrpc/com.atproto.label.subscribeLabels":
            return self.labels.answer(request)
        return _nothing(request)

    def _repo_answers(self, request: Request) -> SimulatedResponse:
        match request.path.removeprefix(_SYNC):
            case "getLatestCommit":
                repo = self._available(_did(request))
                if isinstance(repo, SimulatedResponse):
                    return repo
                return json_response({"cid": repo.head, "rev": repo.rev})
            case "getRepoStatus":
                status = self.source.status(_did(request))
                if status is None:
                    return _not_found(_did(request))
                answer = {"did": status.did, "active": status.active}
                rev = {"rev": status.rev} if status.active and status.rev else {}
                return json_response(answer | _reason(status) | rev)
        return _nothing(request)

    def _record(self, request: Request) -> SimulatedResponse:
        did = request.query.get("repo", "")
        repo = self._available(did)
        if isinstance(repo, SimulatedResponse):
            return repo
        path = f"{request.query.get('collection')}/{request.query.get('rkey')}"
        car = read_car(self.source.car(did))
        root = parse_commit(car.blocks[car.roots[0]]).data
        cid = next((cid for found, cid in walk(car.blocks, root) if found == path), None)
        if cid is None:
            return xrpc_error(400, "RecordNotFound", f"Could not locate record: {path}")
        body = {"uri": f"at://{did}/{path}", "cid": str(cid), "value": decode(car.blocks[cid])}
        return SimulatedResponse(200, to_json(body), "application/json")

    def _available(self, did: str) -> RepoStatus | SimulatedResponse:
        status = self.source.status(did)
        if status is None or (status.active and not status.rev):
            return _not_found(did)
        if not status.active:
            name = _REFUSALS.get(status.status or "", "RepoDeactivated")
            return xrpc_error(400, name, f"Repo is not available: {did}")
        return status

    def _list(self, request: Request, *, relay: bool) -> SimulatedResponse:
        try:
            start = _position(request.query.get("cursor"))
            limit = int(request.query.get("limit", "500"))
        except ValueError:
            return xrpc_error(400, "InvalidRequest", "cursor or limit is malformed")
        if not 1 <= limit <= MAX_PAGE:
            return xrpc_error(400, "InvalidRequest", f"limit must be 1 to {MAX_PAGE}")
        every = self.source.statuses()
        page = every[start : start + limit]
        # A relay leaves inactive accounts out after it has cut the page: pages may be short.
        shown = [item for item in page if item.rev and (item.active or not relay)]
        repos = [
            {"did": item.did, "head": item.head, "rev": item.rev, "active": item.active,
             **_reason(item)}
            for item in shown
        ]  # fmt: skip
        more = {"cursor": _cursor(start + limit)} if start + limit < len(every) else {}
        return json_response({"repos": repos, **more})


def _did(request: Request) -> str:
    return request.query.get("did", "")


def _reason(status: RepoStatus) -> dict[str, str]:
    return {"status": status.status} if status.status else {}


def _not_found(did: str) -> SimulatedResponse:
    return xrpc_error(400, "RepoNotFound", f"Could not find repo for DID: {did}")


def _nothing(request: Request) -> SimulatedResponse:
    return xrpc_error(404, "MethodNotImplemented", f"there is no {request.path}")


def _cursor(position: int) -> str:
    """Return an opaque cursor, with the letters that have to be escaped in a URL."""
    return b64encode(json.dumps([position, "+/?"]).encode()).decode()


def _position(cursor: str | None) -> int:
    if cursor is None:
        return 0
    value = json.loads(b64decode(cursor, validate=True))
    if not isinstance(value, list) or not value or type(value[0]) is not int or value[0] < 0:
        raise ValueError("not a cursor of this host")
    return value[0]
