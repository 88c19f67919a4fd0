"""The serving end of the control socket: one request a connection, local and same-uid only."""

import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from rsky_pipeline.runtime.errors import PermissionProblem
from rsky_pipeline.supervisor.protocol import (
    MAX_REQUEST_BYTES,
    REQUEST_TIMEOUT_SECONDS,
    BadRequest,
    Request,
    encode,
    parse_request,
)

# Answers a request: calls the function it is given for each step, returns the closing object.
Handler = Callable[[Request, Callable[[str], Awaitable[None]]], Awaitable[dict[str, Any]]]
BACKLOG = 16
MAX_CONNECTIONS = 32

log = logging.getLogger(__name__)


def open_socket(path: Path) -> trio.SocketListener:
    """Listen on a socket that only our account can open.

    The socket gets its permissions before its name: it is bound under another one, with a umask,
    and renamed. A file of an earlier supervisor is replaced; the caller holds the role locks.
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
        raise PermissionProblem(
            f"cannot make the control socket {path}: {error.strerror}; choose another run_dir"
        ) from error
    finally:
        os.umask(inherited)
    return trio.SocketListener(listener)


def close_socket(path: Path) -> None:
    """Remove the name of our socket."""
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    except OSError:
        log.debug("the control socket is gone already", extra={"path": str(path)})


def peer_uid(connection: trio.SocketStream) -> int:
    """Return the account at the other end, as the kernel knows it."""
    size = struct.calcsize("3i")
    packed = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    uid: int = struct.unpack("3i", packed)[1]
    return uid


def is_allowed(uid: int, own: int) -> bool:
    """Tell whether an account may give orders: ours, or root."""
    return uid in (own, 0)


class ControlServer:
    """Answers requests on one socket, a few at a time."""

    def __init__(self, path: Path, handler: Handler) -> None:
        """Listen at once. Raises PermissionProblem when the socket cannot be made."""
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
        """Wait until no client waits for the end of its answer."""
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
                log.debug("a control client went away")
            finally:
                self._open -= 1
                self._idle.set()
                self._idle = trio.Event()


async def _answer(connection: trio.SocketStream, handler: Handler) -> None:
    uid = peer_uid(connection)
    if not is_allowed(uid, os.geteuid()):
        log.warning("refused a control request of another account", extra={"uid": uid})
        await connection.send_all(encode({"ok": False, "error": "not permitted"}))
        return

    async def step(line: str) -> None:
        await connection.send_all(encode({"step": line}))

    try:
        answer = await handler(parse_request(await _read_line(connection)), step)
    except BadRequest as error:
        answer = {"ok": False, "error": str(error)}
    await connection.send_all(encode(answer))


async def _read_line(connection: trio.SocketStream) -> bytes:
    """Return the request line. Raises BadRequest when it is too long or too slow."""
    received = b""
    with trio.move_on_after(REQUEST_TIMEOUT_SECONDS):
        while b"\n" not in received:
            chunk = await connection.receive_some(4096)
            if not chunk:
                raise BadRequest("the request does not end with a line break")
            received += chunk
            if len(received) > MAX_REQUEST_BYTES:
                raise BadRequest(f"the request is longer than {MAX_REQUEST_BYTES} bytes")
        return received.partition(b"\n")[0]
    raise BadRequest(f"no complete request within {REQUEST_TIMEOUT_SECONDS:.0f} s")
