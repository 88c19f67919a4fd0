"""The official network in processes of its own, one for each service, until a block ends."""

import contextlib
import json
import os
import selectors
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg

from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.demo.simulator.accounts import did_document
from tests.official.installation import Installation

START_SECONDS = 120.0
STOP_SECONDS = 20.0
ADMIN = "official-admin"
MAX_IMPORT = 100_000_000
_ROTATION_KEYS = ("11" * 32, "22" * 32)  # of the two PDSes


class OfficialServiceError(Exception):
    """A service did not start, or ended; the message has the end of its log."""


class XrpcError(Exception):
    """An error answer."""

    def __init__(self, method: str, status: int, body: Any) -> None:
        super().__init__(f"{method} {status}: {body}")
        self.status = status
        self.name = body.get("error") if isinstance(body, dict) else None


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class Process:
    """A Node process; its log is in the folder."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path
    ready: dict[str, Any] = field(default_factory=dict)

    def end(self) -> None:
        """End it by SIGTERM, then by SIGKILL."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def failure(self, what: str) -> OfficialServiceError:
        """Return the exception for a failure."""
        tail = self.log.read_text(errors="replace")[-3_000:]
        return OfficialServiceError(f"{self.name} {what}; the end of {self.log}:\n{tail}")


@dataclass(slots=True)
class Pds:
    """A PDS: where it is, and its files."""

    port: int
    folder: Path
    domain: str
    rotation_key: str
    process: Process | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://localhost:{self.port}"

    @property
    def relay(self) -> str:
        """Its event stream."""
        return f"ws://localhost:{self.port}"

    def last_seq(self) -> int:
        """Return the number of its newest event."""
        [(number,)] = self._rows("sequencer.sqlite", "SELECT coalesce(max(seq), 0) FROM repo_seq")
        return int(number)

    def handles(self) -> dict[str, str]:
        """Return the accounts by handle, inactive ones too."""
        rows = self._rows("account.sqlite", "SELECT handle, did FROM actor WHERE handle <> ''")
        return dict(rows)

    def _rows(self, file: str, query: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.folder / file, timeout=10)) as connection:
            return connection.execute(query).fetchall()


@dataclass(slots=True)
class WebDocument:
    """The document of a did:web account, which its own host serves."""

    did: str = ""
    keys: dict[str, str] = field(default_factory=dict)  # multibase, by name
    pds: str = ""
    handle: str = ""

    def change(
        self, *, keys: Mapping[str, str] | None = None, pds: str = "", handle: str = "",
        rotation: str = "",
    ) -> None:  # fmt: skip
        """Change parts; keys are did:key or a secret in hex. Rotation keys are of the PLC."""
        for name, key in (keys or {}).items():
            public = PrivateKey("k256", bytes.fromhex(key)).multibase if ":" not in key else key
            self.keys[name] = public.removeprefix("did:key:")
        self.pds, self.handle = pds or self.pds, handle or self.handle

    def serve(self, path: str) -> Any:
        """Return the answer at a path; None if there is none."""
        if path != "/.well-known/did.json":
            return None
        services = {"atproto_pds": ("AtprotoPersonalDataServer", self.pds)}
        return did_document(self.did, self.handle, self.keys, services)


class Network:
    """PLC directory, two PDSes, Ozone, and what else a test starts."""

    def __init__(self, installation: Installation, folder: Path) -> None:
        self.installation = installation
        self.folder = folder
        self.http = httpx.Client(timeout=60)
        self.plc = f"http://localhost:{free_port()}"
        self.pdses = [
            Pds(free_port(), folder / f"pds{number}", f".{domain}", key)
            for number, (domain, key) in enumerate(
                zip(("test", "second"), _ROTATION_KEYS, strict=True)
            )
        ]
        self.processes: list[Process] = []
        self.resolver = ""
        self.ozone = f"http://localhost:{free_port()}"
        self.labeler = ""
        self.labeler_key = "33" * 32  # the first one, which may change the document
        self.database_url = ""
        self.web: dict[str, WebDocument] = {}  # by DID
        self.servers: list[ThreadingHTTPServer] = []

    def start(self, database_url: str) -> None:
        """Start PLC directory, PDSes and Ozone, whose tables are in this database."""
        self.database_url = database_url
        self.service("plc", port=urlsplit(self.plc).port)
        for pds in self.pdses:
            self.start_pds(pds)
        self.labeler = self.start_ozone(self.labeler_key).ready["did"]

    def start_pds(self, pds: Pds, environ: Mapping[str, str] | None = None, **changes: Any) -> None:
        """Start a PDS on its files, with other settings."""
        pds.folder.mkdir(exist_ok=True)
        pds.process = self.service("pds", environ, environment={
            "devMode": True, "port": pds.port, "hostname": "localhost",
            "dataDirectory": str(pds.folder), "blobstoreDiskLocation": str(pds.folder / "blobs"),
            "adminPassword": ADMIN, "jwtSecret": "official-jwt-secret", "didPlcUrl": self.plc,
            "plcRotationKeyK256PrivateKeyHex": pds.rotation_key,
            "serviceHandleDomains": [pds.domain], "inviteRequired": False,
            "bskyAppViewUrl": "https://appview.invalid", "bskyAppViewDid": "did:example:none",
            "modServiceUrl": "https://mod.invalid", "modServiceDid": "did:example:none",
            "disableSsrfProtection": True, "enableDidDocWithSession": True,
            "maxImportSize": MAX_IMPORT, **changes,
        })  # fmt: skip

    def start_ozone(self, key: str, labeler: str = "") -> Process:
        """Start the labeler with this key, as a new account unless it is named."""
        return self.service("ozone", labeler=labeler, environment={
            "devMode": True, "version": "test", "port": urlsplit(self.ozone).port,
            "publicUrl": self.ozone, "didPlcUrl": self.plc, "signingKeyHex": key,
            "dbPostgresUrl": self.database_url, "dbPostgresSchema": "ozone", "adminPassword": ADMIN,
            "adminDids": [], "moderatorDids": [], "triageDids": [],
            "appviewUrl": "https://appview.invalid", "appviewDid": "did:example:none",
        })  # fmt: skip

    def restart_ozone(self, key: str) -> None:
        """Start the labeler again, with another key."""
        self.end(next(each for each in self.processes if each.name == "ozone"))
        self.start_ozone(key, self.labeler)

    def restart_pds(
        self, pds: Pds, environ: Mapping[str, str] | None = None, **changes: Any
    ) -> None:
        """Stop a PDS, and start it with other settings."""
        assert pds.process is not None
        self.end(pds.process)
        self.start_pds(pds, environ, **changes)

    def service(
        self, kind: str, environ: Mapping[str, str] | None = None,
        seconds: float = START_SECONDS, **options: Any,
    ) -> Process:  # fmt: skip
        """Start a service of service.mjs, and return when it is ready."""
        words = [kind, json.dumps(options)]
        process = self.spawn(kind, "service.mjs", words, environ or {}, talks=True)
        assert process.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.process.stdout, selectors.EVENT_READ)
            line = process.process.stdout.readline() if selector.select(seconds) else b""
        if not line:
            raise process.failure("did not start")
        process.ready = json.loads(line)
        return process

    def spawn(
        self, name: str, script: str, words: Sequence[str], environ: Mapping[str, str],
        *, talks: bool = False, options: Sequence[str] = (),
    ) -> Process:  # fmt: skip
        """Start a script of the installation's folder."""
        number = len(self.processes)
        log = self.folder / f"{number:02}-{name}.log"
        settings = {
            "HANDLE_RESOLVER": self.resolver, "LOG_ENABLED": "true", "LOG_LEVEL": "warn",
            "TMPDIR": str(self.folder), "NODE_OPTIONS": "--disable-warning=DEP0169",
        }  # fmt: skip
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [self.installation.node, "--import", "./loopback.mjs", *options, script, *words],
                cwd=self.installation.folder, env={**os.environ, **settings, **environ},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE if talks else stream,
                stderr=stream, start_new_session=True,
            )  # fmt: skip
        found = Process(name, process, log)
        self.processes.append(found)
        return found

    def change_document(self, did: str, signer: str, **changes: Any) -> None:
        """Change a DID document; in the directory `signer` is the secret of a rotation key."""
        if did in self.web:
            self.web[did].change(**changes)
            return
        self.end(self.service("identity", plcUrl=self.plc, did=did, signer=signer, **changes))

    def serve(self, answer: Callable[[str], Any]) -> int:
        """Serve JSON documents by their path, None as an error; return the port."""

        class Answers(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                found = answer(self.path)
                body = json.dumps(found or {"error": "NotFound"}).encode()
                self.send_response(200 if found else 400)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        server.daemon_threads = True
        self.servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return int(server.server_address[1])

    def new_web_did(self) -> str:
        """Return a did:web whose host serves the document that `change_document` makes."""
        document = WebDocument()
        document.did = f"did:web:localhost%3A{self.serve(document.serve)}"
        self.web[document.did] = document
        return document.did

    def end(self, process: Process) -> None:
        """End one process."""
        process.end()
        self.processes.remove(process)

    def call(
        self, url: str, method: str, *, headers: Mapping[str, str] | None = None,
        json: Any = None, content: bytes | None = None, get: bool = False, **query: Any,
    ) -> Any:  # fmt: skip
        """Call an XRPC method and return the answer; raises XrpcError."""
        answer = self.http.request(
            "GET" if get else "POST", f"{url}/xrpc/{method}", params=query,
            headers=dict(headers or {}), json=json, content=content,
        )  # fmt: skip
        body = answer.json() if "json" in answer.headers.get("content-type", "") else answer.text
        if answer.is_error:
            raise XrpcError(method, answer.status_code, body)
        return body

    def last_label(self) -> int:
        """Return the number of the newest label."""
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute("SELECT coalesce(max(id), 0) FROM ozone.label").fetchone()
        assert row is not None
        return int(row[0])

    def handles(self) -> dict[str, str]:
        """Return how all handles of the PDSes resolve."""
        return {handle: did for pds in self.pdses for handle, did in pds.handles().items()}


@contextlib.contextmanager
def official_network(
    installation: Installation, folder: Path, database_url: str
) -> Iterator[Network]:
    """Run the network until the block ends."""
    network = Network(installation, folder)

    def resolve(path: str) -> Any:
        """Answer com.atproto.identity.resolveHandle.

        Handles of inactive accounts resolve as well: their PDS refuses them, and each indexer would
        have another row by when it asked.
        """
        [handle] = parse_qs(urlsplit(path).query).get("handle", [""])
        did = network.handles().get(handle)
        return {"did": did} if did else None

    try:
        network.resolver = f"http://127.0.0.1:{network.serve(resolve)}"
        network.start(database_url)
        yield network
    finally:
        for process in reversed(network.processes):
            process.process.terminate()
        for process in network.processes:
            process.end()
        for server in network.servers:
            server.shutdown()
            server.server_close()
        network.http.close()


def wait_until(condition: Callable[[], bool], what: Callable[[], str], seconds: float) -> None:
    """Return when a condition holds; raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {seconds:.0f} s: {what()}")
        time.sleep(0.05)
