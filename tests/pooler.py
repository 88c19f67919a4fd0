"""A PostgreSQL pooler in transaction mode, as unhelpful as one may be.

Each transaction of a client runs in the next server session in turn, so never in the one of the
transaction before. Nothing is carried over: no parameter of a client's start, no setting, no
statement. For what real poolers do, see tests/real.
"""

import contextlib
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from psycopg.conninfo import conninfo_to_dict

_NOT_ENCRYPTED = {80877103, 80877104}  # requests for TLS and for GSSAPI
_PROTOCOL = 196608
_FOREIGN_KEY = struct.pack("!cIiI", b"K", 12, 424_242, 7)


class Pooler:
    """Listens on a port of the loopback address; sessions are opened when it is entered.

    `announces_backend`: clients are sent the process id of a real backend, as some poolers do.
    `opens_late`: the sessions are opened for the first client.
    """

    def __init__(
        self,
        url: str,
        sessions: int = 3,
        *,
        announces_backend: bool = False,
        opens_late: bool = False,
    ) -> None:
        self._server = conninfo_to_dict(url)
        self._sessions = sessions
        self._announces_backend = announces_backend
        self._opens_late = opens_late
        self._model: _Backend | None = None
        self._idle: deque[_Backend] = deque()
        self._returned = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        host, port = self._listener.getsockname()
        user, database = self._server["user"], self._server["dbname"]
        self.url = f"postgresql://{user}@{host}:{port}/{database}"

    def __enter__(self) -> "Pooler":
        if not self._opens_late:
            self._open_all()
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for item in self._sockets:
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
            item.close()
        for thread in self._threads:
            thread.join(5)

    def _run(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                self._run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), client:  # closed at the end
            if not _take_startup(client):
                return
            model = self._open_all()
            client.sendall(
                struct.pack("!cII", b"R", 8, 0)
                + model.parameters
                + (model.key if self._announces_backend else _FOREIGN_KEY)
                + struct.pack("!cIc", b"Z", 5, b"I")
            )
            requests = _Messages()
            while data := client.recv(65_536):
                ended = self._transaction(client, requests, data)
                if ended:
                    return

    def _transaction(self, client: socket.socket, requests: "_Messages", data: bytes) -> bool:
        """Hand on one transaction, which begins with `data`; return whether the client left."""
        waiting = 0
        backend: _Backend | None = None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(client, selectors.EVENT_READ)
                while True:
                    for kind, _ in requests.feed(data):
                        if kind == b"X":
                            return True
                        waiting += kind in (b"Q", b"S")
                    if backend is None:
                        backend = self._take()
                        selector.register(backend.socket, selectors.EVENT_READ)
                    if data:
                        backend.socket.sendall(data)
                        data = b""
                    for key, _ in selector.select():
                        if key.fileobj is client:
                            data = client.recv(65_536)
                            if not data:
                                return True
                            continue
                        reply = backend.socket.recv(65_536)
                        client.sendall(reply)
                        for kind, body in backend.replies.feed(reply):
                            if kind != b"Z":
                                continue
                            waiting -= 1
                            if body == b"I" and waiting <= 0 and not data:
                                self._give_back(backend)
                                backend = None
                                return False
        finally:
            if backend is not None:  # the client left within a transaction
                backend.socket.close()
                self._give_back(self._open())

    def _open_all(self) -> "_Backend":
        """Open all sessions, once; return the first."""
        with self._returned:
            if self._model is None:
                self._idle.extend(self._open() for _ in range(self._sessions))
                self._model = self._idle[0]
            return self._model

    def _take(self) -> "_Backend":
        with self._returned:
            self._returned.wait_for(lambda: self._idle)
            return self._idle.popleft()

    def _give_back(self, backend: "_Backend") -> None:
        with self._returned:
            self._idle.append(backend)
            self._returned.notify()

    def _open(self) -> "_Backend":
        server = self._server
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{server['host']}/.s.PGSQL.{server.get('port', 5432)}")
        self._sockets.append(connection)
        names = {"user": server["user"], "database": server["dbname"], "client_encoding": "UTF8"}
        body = b"".join(f"{name}\0{value}\0".encode() for name, value in names.items()) + b"\0"
        connection.sendall(struct.pack("!II", len(body) + 8, _PROTOCOL) + body)
        backend, parameters = _Backend(connection), b""
        while True:
            for kind, content in backend.replies.feed(connection.recv(65_536)):
                whole = struct.pack("!cI", kind, len(content) + 4) + content
                if kind == b"S":
                    parameters += whole
                elif kind == b"K":
                    backend.key = whole
                elif kind == b"E":
                    raise RuntimeError(content.decode())
                elif kind == b"Z":
                    backend.parameters = parameters
                    return backend


class _Messages:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._rest += data
        while len(self._rest) >= 5:
            end = 1 + int.from_bytes(self._rest[1:5], "big")
            if len(self._rest) < end:
                return
            kind, body, self._rest = self._rest[:1], self._rest[5:end], self._rest[end:]
            yield kind, body


@dataclass(eq=False)
class _Backend:
    socket: socket.socket
    replies: _Messages = field(default_factory=_Messages)
    parameters: bytes = b""
    key: bytes = b""


def _take_startup(client: socket.socket) -> bool:
    """Read a client's start; return whether it wants a session."""
    while True:
        length, code = struct.unpack("!II", client.recv(8, socket.MSG_WAITALL))
        if code in _NOT_ENCRYPTED:
            client.sendall(b"N")
            continue
        client.recv(length - 8, socket.MSG_WAITALL)
        return bool(code == _PROTOCOL)
