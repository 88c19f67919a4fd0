"""A PDS and PLC directory on loopback, in a thread, that answer as a test tells them to."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.commit import parse_commit

Reply = tuple[int, dict[str, str], bytes]


class FakeHosts:
    """Serves DID documents and repos; `replies` overrides getRepo for a DID, a call each."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}
        self.repos: dict[str, bytes] = {}
        self.replies: dict[str, list[Callable[[], Reply]]] = {}
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = outer._answer(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, did: str, document: dict[str, Any], car: bytes) -> None:
        """Host an account here."""
        service = {
            "id": "#atproto_pds",
            "type": "AtprotoPersonalDataServer",
            "serviceEndpoint": self.url,
        }
        self.documents[did] = document | {"service": [service]}
        self.repos[did] = car

    def _answer(self, path: str) -> Reply:
        self.requests.append(path)
        parts = urlsplit(path)
        if parts.path.startswith("/did:"):
            document = self.documents.get(parts.path[1:])
            if document is None:
                return 404, {}, b"{}"
            return 200, {}, json.dumps(document).encode()
        did = parse_qs(parts.query).get("did", [""])[0]
        if parts.path.endswith(".getLatestCommit") and did in self.repos:
            car = read_car(self.repos[did])
            commit = parse_commit(car.blocks[car.roots[0]])
            return 200, {}, json.dumps({"cid": str(car.roots[0]), "rev": commit.rev}).encode()
        if self.replies.get(did):
            return self.replies[did].pop(0)()
        if did in self.repos:
            return 200, {"Content-Type": "application/vnd.ipld.car"}, self.repos[did]
        return refusal(400, "RepoNotFound")


def refusal(status: int, code: str, **headers: str) -> Reply:
    """Return an XRPC error."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, names, json.dumps({"error": code}).encode()
