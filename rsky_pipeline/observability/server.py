"""The HTTP port of a process: `/metrics` for Prometheus, `/healthz` as JSON.

Served from a thread of its own, so that a scrape works while the event loop is busy. The health
document comes from the loop's own reports: that this thread answers proves nothing about them.

The port may be open to others, and must not cost the work of the process its descriptors: at most
`MAX_CONNECTIONS` are open at once, a further one ends the oldest, and each ends `LIMIT_SECONDS`
after it began, however slowly it sends.
"""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from rsky_pipeline import __version__
from rsky_pipeline.observability.build import build, problem_of_readers

Health = Callable[[], tuple[int, Mapping[str, object]]]
MAX_CONNECTIONS = 20
LIMIT_SECONDS = 10.0  # for a whole connection

log = logging.getLogger(__name__)


class MetricsServer:
    """A running server; `port` is the real one where 0 was asked for."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self.port: int = server.server_address[1]
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(registry: CollectorRegistry, host: str, port: int, health: Health) -> MetricsServer:
    """Serve a registry and a health document. Raises OSError if the port cannot be had."""
    server = _server_class(host)((host, port), _handler(registry, health))
    started = MetricsServer(server)
    names = {metric.name for metric in registry.collect()}
    log.info("Metrics initialized", extra={"host": host, "port": started.port,
                                           "names": len(names)})  # fmt: skip
    if problem := problem_of_readers():
        log.warning(problem)
    return started


def process_registry() -> CollectorRegistry:
    """Return the registry of a process, which has the metrics of every process about itself."""
    registry = CollectorRegistry()
    add_process_metrics(registry)
    return registry


def add_process_metrics(registry: CollectorRegistry) -> None:
    """Declare the metrics of every process about itself."""
    info = Gauge(
        "rsky_build_info",
        "The running build; always 1",
        ["version", "commit", "built_at"],
        registry=registry,
    )
    running = build()
    info.labels(running.version, running.commit, running.built_at).set(1)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)


def _break_off(request: socket.socket) -> None:
    """End a connection; its thread, which waits for it, then closes it."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


def _server_class(host: str) -> type[ThreadingHTTPServer]:
    opened: dict[socket.socket, float] = {}  # when each began, oldest first
    room = threading.Condition()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 2 * MAX_CONNECTIONS
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def server_bind(self) -> None:
            # HTTPServer would ask DNS for our own name here, and wait for the answer.
            TCPServer.server_bind(self)
            self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

        def process_request(self, request: Any, client_address: Any) -> None:
            with room:
                if len(opened) >= MAX_CONNECTIONS:
                    # An honest request takes milliseconds; the oldest connection is not one.
                    _break_off(next(iter(opened)))
                    room.wait_for(lambda: len(opened) < MAX_CONNECTIONS, 1.0)
                full = len(opened) >= MAX_CONNECTIONS
                if not full:
                    opened[request] = time.monotonic()
            if full:
                self.shutdown_request(request)
            else:
                super().process_request(request, client_address)

        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            with room:
                opened.pop(request, None)
                room.notify_all()

        def service_actions(self) -> None:  # called between requests, ten times a second
            began_before = time.monotonic() - LIMIT_SECONDS
            with room:
                for request, began in opened.items():
                    if began > began_before:
                        break
                    _break_off(request)

        def handle_error(self, request: object, client_address: object) -> None:
            log.debug("a metrics client broke off")

    return Server


def _health_answer(health: Health) -> tuple[int, str, bytes]:
    try:
        status, document = health()
        body = json.dumps(document, indent=1, default=str)
    except Exception as error:  # whatever it is, the probe must get an answer
        log.exception("the health document cannot be made")
        status, body = 500, json.dumps({"state": "unknown", "trouble": type(error).__name__})
    return status, "application/json", body.encode() + b"\n"


def _handler(registry: CollectorRegistry, health: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = LIMIT_SECONDS
        server_version = f"rsky-pipeline/{__version__}"
        sys_version = ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                kind = "text/plain; version=0.0.4; charset=utf-8"
                self._answer(200, kind, generate_latest(registry))
            elif path == "/healthz":
                self._answer(*_health_answer(health))
            else:
                self._answer(404, "text/plain", b"there are /metrics and /healthz here\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            log.debug("metrics request", extra={"request": format % args})

    return Handler
