"""A stand-in for the bsync service: scans of three logs, as the real one answered in recordings."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.data import test_data

KEY = "a-key"
LOGS = {"ScanMuteOperations": "mute", "ScanNotifOperations": "notif",
        "ScanOperations": "operation"}  # fmt: skip


@dataclass
class Bsync:
    """The logs, which tests change while somebody reads them."""

    logs: dict[str, dict[int, dict[str, Any]]] = field(
        default_factory=lambda: {log: {} for log in LOGS.values()}
    )
    key: str = KEY
    wait_seconds: float = 0.3  # of a scan without operations
    status: int = 200
    old: bool = False  # it has no such methods
    url: str = ""
    asked: list[tuple[str, str, int]] = field(default_factory=list)  # log, cursor, limit
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, log: str, served: dict[str, Any], number: int | None = None) -> int:
        """Add an operation; `number` is for one that becomes visible late."""
        with self.changed:
            known = self.logs[log]
            number = max(known, default=0) + 1 if number is None else number
            known[number] = {"id": str(number), **served}
            self.changed.notify_all()
            return number

    def load(self, folder: str) -> None:
        """Add the operations of a recording."""
        for log in self.logs:
            scan = json.loads((test_data(f"bsync/{folder}") / f"{log}.json").read_text())
            for each in scan["operations"]:
                self.add(log, each, int(each["id"]))

    def answer(self, log: str, cursor: str, limit: int) -> dict[str, Any]:
        """Answer a scan, after a wait where there is nothing."""
        after, limit = int(cursor or 0), limit or 1000
        with self.changed:
            self.asked.append((log, cursor, limit))
            if not any(number > after for number in self.logs[log]):
                self.changed.wait(self.wait_seconds)
            found = sorted(number for number in self.logs[log] if number > after)[:limit]
            if not found:
                return {"cursor": cursor} if cursor else {}
            served = [self.logs[log][number] for number in found]
            return {"operations": served, "cursor": str(found[-1])}


@contextmanager
def running_bsync() -> Iterator[Bsync]:
    """Serve a stand-in on loopback."""
    bsync = Bsync()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            log = LOGS.get(self.path.removeprefix("/bsync.Service/"))
            if log is None or bsync.old:
                self._send(404, b"")
            elif self.headers["authorization"] != f"Bearer {bsync.key}":
                refusal = {"code": "unauthenticated", "message": "invalid api key"}
                self._send(401, json.dumps(refusal).encode())
            elif bsync.status != 200:
                self._send(bsync.status, b'{"code":"internal","message":"no"}')
            else:
                wanted = json.loads(body)
                answer = bsync.answer(log, wanted.get("cursor", ""), wanted.get("limit", 0))
                self._send(200, json.dumps(answer).encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a reader that hangs up

    server = Server(("127.0.0.1", 0), Handler)
    bsync.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield bsync
    finally:
        server.shutdown()
        server.server_close()
