"""The server of the control socket: permissions and commands.

One request per connection, only from local processes of our own uid or root. `ControlServer` reads
requests and sends answers; `ControlCommands` executes them on the workers of this supervisor.
"""

import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from rsky_pipeline.configuration.topology import start_order, stop_order
from rsky_pipeline.runtime.lock import cannot_write
from rsky_pipeline.runtime.logging import set_level
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.errors import StartFailedError
from rsky_pipeline.supervisor.protocol import (
    MAX_REQUEST_BYTES,
    REQUEST_TIMEOUT_SECONDS,
    BadRequestError,
    ControlRequest,
    encode,
    parse_request,
)
from rsky_pipeline.supervisor.role_settings import RoleSettings
from rsky_pipeline.supervisor.sequence import (
    StepLog,
    StopRequest,
    Urgency,
    restart_role,
    start_role,
    stop_in_order,
)

Result = TypeVar("Result")
Send = Callable[[str], Awaitable[None]]
# Answers a request: calls `send` for each step, returns the closing object.
Handler = Callable[[ControlRequest, Send], Awaitable[dict[str, Any]]]
BACKLOG = 16
MAX_CONNECTIONS = 32

log = logging.getLogger(__name__)


class ControlCommands:
    """Executes requests on the workers of one supervisor."""

    def __init__(
        self,
        workers: Mapping[str, Sequence[ChildDriver]],
        request: StopRequest,
        steps: StepLog,
        document: Callable[[], Mapping[str, Any]],
        settings: RoleSettings,
    ) -> None:
        self._workers = workers
        self._request = request
        self._steps = steps
        self._document = document
        self._settings = settings
        self._busy: set[str] = set()
        self.forced = False

    async def handle(self, request: ControlRequest, send: Send) -> dict[str, Any]:
        """Execute a request; returns the closing object. Raises BadRequestError to refuse it."""
        foreign = [role for role in request.roles if role not in self._workers]
        if foreign:
            raise BadRequestError(f"this supervisor does not run {', '.join(foreign)}")
        match request.command:
            case "status":
                return {"ok": True, "status": self._document()}
            case "stop":
                forced = await self._stop(request, send)
                return {"ok": True, "forced": forced}
            case "reload":
                return self._reload(request)
            case "log_level":
                self.set_log_level(request.level, request.roles, supervisor=request.supervisor)
                return {"ok": True}
            case "start":
                await self._start(request.roles or tuple(self._workers), send)
                return {"ok": True}
            case _:
                await self._restart(request.roles or tuple(self._workers), send)
                return {"ok": True}

    def _reload(self, request: ControlRequest) -> dict[str, Any]:
        """Read the configuration again for roles, whose next workers get it."""
        changed = self._settings.read_again(request.roles or tuple(self._workers))
        different = self._settings.differ_from(request.digests)
        return {"ok": True, "changed": changed, "different": different}

    def set_log_level(self, level: str, roles: Sequence[str], *, supervisor: bool = False) -> None:
        """Change the log level of workers, present and future, and of this process."""
        for role in roles:
            self._settings.set_log_level(role, level)
            for worker in self._workers[role]:
                worker.set_log_level(level)
        if supervisor:
            set_level(level)

    def hang_up(self) -> None:
        """Apply the log level of the configuration, as systems expect of SIGHUP."""
        try:
            level = self._settings.log_level()
        except BadRequestError as error:
            log.error("log level not read again", extra={"error": str(error)})
            return
        self.set_log_level(level, tuple(self._workers), supervisor=True)

    def finish(self, forced: bool) -> None:
        """Finish the answers to requests that wait for the whole stop; `forced` if it killed."""
        self.forced = self.forced or forced
        self._steps.finish()

    async def _stop(self, request: ControlRequest, send: Send) -> bool:
        """Stop some roles or everything. When no role is left, the supervisor stops as well, unless
        it is asked to stay."""
        roles = request.roles or tuple(self._workers)
        rest = [role for role in self._workers if role not in roles]
        left = any(not worker.at_rest for role in rest for worker in self._workers[role])
        if left or request.stay:
            return await self._stop_roles(roles, request.timeout, send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._request.force_after, request.timeout)
            self._request.raise_to(Urgency.DRAIN)
            async for line in self._steps.follow():
                await send(line)
            nursery.cancel_scope.cancel()
        return self.forced

    async def _stop_roles(self, roles: Sequence[str], limit: float | None, send: Send) -> bool:
        urgency = StopRequest()
        chosen = {role: self._workers[role] for role in roles}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(urgency.force_after, limit)
            forced = await _narrate(partial(stop_in_order, chosen, urgency), send)
            nursery.cancel_scope.cancel()
        self.forced = self.forced or forced
        return forced

    async def _start(self, roles: Sequence[str], send: Send) -> None:
        """Start stopped roles, producers first."""

        async def work(steps: StepLog) -> str:
            try:
                for role in start_order(roles):
                    if late := await start_role(role, self._workers[role], steps):
                        return "; ".join(late)
            except StartFailedError as error:
                return str(error)
            return ""

        with self._alone(roles):
            failure = await _narrate(work, send)
        if failure:
            raise BadRequestError(failure)

    async def _restart(self, roles: Sequence[str], send: Send) -> None:
        async def work(steps: StepLog) -> bool:
            for role in stop_order(roles):
                if not await restart_role(self._workers[role], steps):
                    return False
            return True

        with self._alone(roles):
            if not await _narrate(work, send):
                raise BadRequestError("restart aborted")

    @contextmanager
    def _alone(self, roles: Sequence[str]) -> Iterator[None]:
        """Exclude other starts of these roles meanwhile. Raises BadRequestError."""
        taken = self._busy.intersection(roles)
        if taken:
            raise BadRequestError(f"a restart of {', '.join(sorted(taken))} is in progress")
        if self._request.urgency:
            raise BadRequestError("the pipeline is stopping")
        self._busy.update(roles)
        try:
            yield
        finally:
            self._busy.difference_update(roles)


def open_socket(path: Path) -> trio.SocketListener:
    """Listen on a socket that only our account can open.

    The socket gets its permissions before its name: it is bound under another one, with a umask,
    and renamed. A file of an earlier supervisor is replaced; the caller holds the role locks.
    Raises PermissionDeniedError and UnavailableError.
    """
    temporary = path.with_name(f".{os.getpid()}.new")
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    inherited = os.umask(0o177)
    try:
        temporary.unlink(missing_ok=True)
        os_level = socket.socket(fileno=os.dup(listener.fileno()))
        with os_level:
            os_level.bind(str(temporary))
        listener.listen(BACKLOG)
        temporary.rename(path)
    except OSError as error:
        listener.close()
        raise cannot_write(f"the control socket {path}", error) from error
    finally:
        os.umask(inherited)
    return trio.SocketListener(listener)


def close_socket(path: Path) -> None:
    """Remove the name of our socket."""
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    except OSError:
        log.debug("control socket already removed", extra={"path": str(path)})


def peer_uid(connection: trio.SocketStream) -> int:
    """Return the account at the other end, as the kernel reports it."""
    size = struct.calcsize("3i")
    packed = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    uid: int = struct.unpack("3i", packed)[1]
    return uid


def is_allowed(uid: int, own: int) -> bool:
    """Return whether an account may send commands: ours, or root."""
    return uid in (own, 0)


class ControlServer:
    """Answers requests on one socket, a few at a time."""

    def __init__(self, path: Path, handler: Handler) -> None:
        """Listen at once; raises the errors of `open_socket`."""
        self._path = path
        self._handler = handler
        self._listener = open_socket(path)
        self._open = 0
        self._idle = trio.Event()

    async def run(self) -> None:
        """Answer until cancelled, then remove the socket."""
        try:
            await trio.serve_listeners(self._accept, [self._listener])
        finally:
            close_socket(self._path)

    async def until_idle(self) -> None:
        """Wait until all answers in progress are sent."""
        while self._open:
            await self._idle.wait()

    async def _accept(self, connection: trio.SocketStream) -> None:
        async with connection:
            if self._open >= MAX_CONNECTIONS:
                return
            self._open += 1
            try:
                await _answer(connection, self._handler)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                log.debug("control client disconnected")
            finally:
                self._open -= 1
                self._idle.set()
                self._idle = trio.Event()


async def _answer(connection: trio.SocketStream, handler: Handler) -> None:
    uid = peer_uid(connection)
    if not is_allowed(uid, os.geteuid()):
        log.warning("control request of another account refused", extra={"uid": uid})
        await connection.send_all(encode({"ok": False, "error": "not permitted"}))
        return

    async def step(line: str) -> None:
        await connection.send_all(encode({"step": line}))

    try:
        answer = await handler(parse_request(await _read_line(connection)), step)
    except BadRequestError as error:
        answer = {"ok": False, "error": str(error)}
    await connection.send_all(encode(answer))


async def _read_line(connection: trio.SocketStream) -> bytes:
    """Return the request line. Raises BadRequestError when it is too long or too slow."""
    received = b""
    with trio.move_on_after(REQUEST_TIMEOUT_SECONDS):
        while b"\n" not in received:
            chunk = await connection.receive_some(4096)
            if not chunk:
                raise BadRequestError("the request does not end with a line break")
            received += chunk
            if len(received) > MAX_REQUEST_BYTES:
                raise BadRequestError(f"the request is longer than {MAX_REQUEST_BYTES} bytes")
        return received.partition(b"\n")[0]
    raise BadRequestError(f"no complete request within {REQUEST_TIMEOUT_SECONDS:.0f} s")


async def _narrate(work: Callable[[StepLog], Awaitable[Result]], send: Send) -> Result:
    """Run `work` and send its steps as they are added; returns its result."""
    steps = StepLog()

    async def forward() -> None:
        # From the start: work that need not wait ends before this task begins.
        async for line in steps.follow(from_start=True):
            await send(line)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forward)
        result = await work(steps)
        steps.finish()
    return result
