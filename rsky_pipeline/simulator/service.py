"""The simulated relay, PDS and PLC directory, on one port."""

from functools import partial
from typing import Any

import trio

from rsky_pipeline.simulator.clock import Clock
from rsky_pipeline.simulator.eventlog import EventLog
from rsky_pipeline.simulator.http import (
    Request,
    Response,
    Upgrade,
    json_response,
    serve_connection,
    xrpc_error,
)
from rsky_pipeline.simulator.subscription import StreamRules, Subscribers, subscribe
from rsky_pipeline.simulator.truth import truth
from rsky_pipeline.simulator.world import Account, World

TICKS_A_SECOND = 50


class Network:
    """A world behind servers; `publish` lets it live."""

    def __init__(self, seed: int, accounts: int, history: int) -> None:
        self.world = World(seed, accounts, Clock())
        self.world.add_history(history)
        self.log = EventLog()
        self.subscribers = Subscribers()
        self.rules = StreamRules(buffer_events=0)
        self.stopped = False
        self.url = ""

    async def serve(
        self, port: int, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on loopback until cancelled; starts with the URL that clients use."""
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started(self.url)
        handler = self._answer
        await trio.serve_listeners(partial(serve_connection, handler=handler), listeners)

    async def publish(self, rate: float, events: int | None) -> None:
        """Make events at a rate a second until enough or told to stop."""
        begin = trio.current_time()
        made = 0
        while not self.stopped and (events is None or made < events):
            due = int((trio.current_time() - begin) * rate) + 1
            due = due if events is None else min(due, events)
            while made < due and not self.stopped:
                frame = self.world.step()
                self.log.append(self.world.seq, frame)
                made += 1
                if made % 200 == 0:
                    break
            self.log.publish()
            await trio.sleep(1 / TICKS_A_SECOND if made >= due else 0)

    async def _answer(self, request: Request) -> Response | Upgrade:
        path = request.path.removeprefix("/xrpc/")
        did = request.query.get("did", "")
        match path:
            case "com.atproto.sync.subscribeRepos":
                return subscribe(request, self.log, self.rules, self.subscribers)
            case "com.atproto.sync.listRepos":
                return self._list(request)
            case "com.atproto.sync.getRepo":
                return self._hosted(did, self._repo)
            case "com.atproto.sync.getRepoStatus":
                return self._hosted(did, self._status, inactive=True)
            case "com.atproto.identity.resolveHandle":
                return self._handle(request.query.get("handle", ""))
            case "/simulator/status":
                return json_response({"seq": self.log.newest_seq, "stopped": self.stopped})
            case "/simulator/stop":
                self.stopped = True
                return json_response({"seq": self.log.newest_seq, "stopped": True})
            case "/simulator/truth":
                return json_response(truth(self.world))
        account = self.world.by_did.get(request.path.removeprefix("/"))
        if account is not None:
            return json_response(self.world.document(account, self.url))
        return xrpc_error(404, "NotFound", f"there is no {request.path}")

    def _hosted(self, did: str, answer: Any, *, inactive: bool = False) -> Response:
        account = self.world.by_did.get(did)
        if account is None:
            return xrpc_error(400, "RepoNotFound", did)
        if not account.active and not inactive:
            return xrpc_error(400, "RepoDeactivated", did)
        response: Response = answer(account)
        return response

    def _repo(self, account: Account) -> Response:
        return Response(200, self.world.car(account), "application/vnd.ipld.car")

    def _status(self, account: Account) -> Response:
        return json_response({"did": account.did, "active": account.active, "rev": account.rev})

    def _handle(self, handle: str) -> Response:
        found = next((item for item in self.world.accounts if item.handle == handle), None)
        if found is None:
            return xrpc_error(400, "HandleNotFound", handle)
        return json_response({"did": found.did})

    def _list(self, request: Request) -> Response:
        start = int(request.query.get("cursor", "0"))
        end = start + min(int(request.query.get("limit", "500")), 1000)
        page = self.world.accounts[start:end]
        repos = [
            {"did": item.did, "head": "", "rev": item.rev, "active": item.active} for item in page
        ]
        more = {"cursor": str(end)} if end < len(self.world.accounts) else {}
        return json_response({"repos": repos, **more})
