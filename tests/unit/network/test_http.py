"""What a stranger's host may not make us do."""

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

import pytest
import trio
import trio.testing

from rsky_pipeline.network.http import HttpClient, HttpError
from rsky_pipeline.network.pool import IDLE_SECONDS, ClientResponse, ConnectionPool
from rsky_pipeline.network.repositories import classify
from rsky_pipeline.runtime.boundary import Boundary


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        match self.path:
            case "/loop":
                self._send(302, b"", Location="/loop")
            case "/once":
                self._send(302, b"", Location="/ok")
            case "/ok":
                self._send(200, b'{"a": 1}')
            case path if path.startswith("/to/"):
                self._send(302, b"", Location=unquote(path.removeprefix("/to/")))
            case "/trickle":
                self._send_for_ever(10, 0.05)
            case "/endless":
                self._send_for_ever(10_000, 0.0)
            case "/silent":
                self.send_response(200)
                self.end_headers()
                self.wfile.flush()
                threading.Event().wait(3)
            case "/gzip":
                self._send(200, b"zzz", Content_Encoding="gzip")
            case "/packed":
                self._send(
                    200,
                    gzip.compress(b'\xef\xbb\xbf{"a": 1}'),
                    Content_Encoding="gzip",
                    Content_Type="text/html; charset=latin1",
                )
            case "/plain":
                self._send(203, b'{"a": 1}', Content_Encoding="utf-8")
            case "/bomb":
                self._send(200, gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")
            case "/empty-blocks":
                self._send(200, _stored_nothing(60_000), Content_Encoding="deflate")
            case "/chunked":
                self.wfile.write(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                    b'5;x=y\r\n{"a":\r\n3\r\n 1}\r\n0\r\nTrailer: z\r\n\r\n'
                )
            case "/until-closed":
                self.wfile.write(b'HTTP/1.0 200 OK\r\n\r\n{"a": 1}')
            case "/continue":
                with suppress(OSError):
                    while True:
                        self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
            case "/slow-continue":
                with suppress(OSError):
                    while True:
                        self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                        time.sleep(0.1)
            case "/switch":
                self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
            case "/slow-head":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
                with suppress(OSError):
                    while True:
                        self.wfile.write(b"x")
                        time.sleep(0.1)
            case "/slow-redirects":
                time.sleep(0.3)
                self._send(302, b"", Location="/slow-redirects")
            case "/limited":
                self._send(429, b"<html>", Retry_After="7")
            case _:
                self._send(400, b'{"error": "RepoNotFound"}')

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_for_ever(self, size: int, pause: float) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b"x" * size)
                time.sleep(pause)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _stored_nothing(blocks: int) -> bytes:
    """Return a body of many bytes that decompresses to nothing."""
    return b"\x78\x9c" + b"\x00\x00\x00\xff\xff" * blocks


@pytest.fixture
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


async def failure(url: str, *, allow_private: bool = True, trusted: bool = False) -> HttpError:
    silence = 0.5 if "/s" in url else 5  # a busy machine is silent at times
    async with HttpClient(allow_private=allow_private, silence_seconds=silence) as client:
        with pytest.raises(HttpError) as error:
            await client.get_bytes(url, max_bytes=100_000, total_seconds=5, trusted=trusted)
    return error.value


async def test_an_answer_comes_through_a_redirect(server: str) -> None:
    async with HttpClient(allow_private=True) as client:
        assert await client.get_json(f"{server}/once") == {"a": 1}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/loop", "forbidden"),
        ("/endless", "too_big"),
        ("/silent", "timeout"),
        ("/gzip", "malformed"),
        ("/bomb", "too_big"),
        ("/empty-blocks", "too_big"),
        ("/continue", "unreachable"),
        ("/switch", "unreachable"),
        ("/slow-continue", "timeout"),
        ("/slow-head", "timeout"),
        ("/slow-redirects", "timeout"),
        ("/limited", "status"),
    ],
)
async def test_bad_answers(server: str, path: str, kind: str) -> None:
    assert (await failure(server + path)).kind == kind


@pytest.mark.parametrize("path", ["/packed", "/plain", "/chunked", "/until-closed"])
async def test_bodies_of_other_servers(server: str, path: str) -> None:
    async with HttpClient(allow_private=True) as client:
        assert await client.get_json(f"{server}{path}") == {"a": 1}
        assert await client.get_json(f"{server}/ok") == {"a": 1}


@pytest.mark.parametrize("kept", [1, 3])
async def test_a_connection_that_its_server_closes_while_idle_is_not_the_hosts_trouble(
    kept: int,
) -> None:
    """It closes when it sees the next request; a new connection is answered again."""
    connections = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        for number in range(2):
            if not await stream.receive_some(65_536) or number:
                return  # which closes it
            await stream.send_all(b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}')

    async with trio.open_nursery() as nursery, HttpClient(allow_private=True) as client:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        async with trio.open_nursery() as requests:
            for _ in range(kept):
                requests.start_soon(client.get_json, url)
        assert await client.get_json(url) == {"a": 1}
        assert connections == kept + 1
        nursery.cancel_scope.cancel()


class Counting:
    """A server that counts its connections, and answers each request a moment later."""

    def __init__(self) -> None:
        self.connections = self.open = self.most = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open += 1
        self.most = max(self.most, self.open)
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some(65_536):
                await trio.sleep(0.01)
                await stream.send_all(b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}')
        self.open -= 1

    async def listen(self, nursery: trio.Nursery) -> str:
        listeners = await nursery.start(partial(trio.serve_tcp, self.serve, 0, host="127.0.0.1"))
        return f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"


async def test_many_requests_share_few_connections() -> None:
    server = Counting()
    async with (
        trio.open_nursery() as nursery,
        HttpClient(allow_private=True, max_connections=2) as client,
    ):
        url = await server.listen(nursery)
        async with trio.open_nursery() as requests:
            for _ in range(20):
                requests.start_soon(client.get_json, url)
        assert server.connections == 2
        nursery.cancel_scope.cancel()


async def test_few_connections_are_kept_and_only_for_a_while(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr("rsky_pipeline.network.pool.MAX_IDLE_CONNECTIONS", 3)
    servers = [Counting() for _ in range(5)]
    async with trio.open_nursery() as nursery, HttpClient(allow_private=True) as client:
        urls = [await server.listen(nursery) for server in servers]
        for url in urls:
            await client.get_json(url)
        await trio.testing.wait_all_tasks_blocked()
        assert [server.open for server in servers] == [0, 0, 1, 1, 1]
        await client.get_json(urls[4])
        await trio.sleep(IDLE_SECONDS + 1)
        await client.get_json(urls[0])  # any request closes those that were idle for too long
        await trio.testing.wait_all_tasks_blocked()
        assert [server.open for server in servers] == [1, 0, 0, 0, 0]
        assert [server.connections for server in servers] == [2, 1, 1, 1, 1]
        nursery.cancel_scope.cancel()


async def test_requests_that_are_cancelled_or_fail_give_their_turn_back() -> None:
    server = Counting()
    async with (
        trio.open_nursery() as nursery,
        HttpClient(allow_private=True, max_connections=1) as client,
    ):
        url = await server.listen(nursery)
        for _ in range(3):
            with trio.move_on_after(0.001):
                await client.get_json(url)
            with pytest.raises(HttpError):
                await client.get_json("http://127.0.0.1:1/", total_seconds=1)
            with pytest.raises(HttpError):
                await client.get_json(url, max_bytes=1)
        assert await client.get_json(url) == {"a": 1}
        nursery.cancel_scope.cancel()


async def test_a_server_that_answers_nothing_is_the_hosts_trouble() -> None:
    connections = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await stream.receive_some(65_536)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        assert (await failure(f"http://127.0.0.1:{port}/")).kind == "unreachable"
        nursery.cancel_scope.cancel()
    assert connections == 1


async def test_a_refusal_keeps_its_code_and_pause(server: str) -> None:
    refused = await failure(f"{server}/missing")
    assert (refused.status, refused.code) == (400, "RepoNotFound")
    assert classify(refused).kind == "permanent"
    limited = await failure(f"{server}/limited")
    assert limited.retry_after == 7
    assert classify(limited).kind == "rate_limited"


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest",
        "https://metadata.internal/",
        "https://printer.local/",
        "https://intranet/",
        "http://example.com/",
        "ftp://example.com/",
    ],
)
async def test_strangers_cannot_send_us_to_private_places(url: str) -> None:
    assert (await failure(url, allow_private=False)).kind == "forbidden"


async def test_a_name_that_leads_to_a_private_address_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def lookup(host: str, port: int, **_: object) -> object:
        return [(2, 1, 6, "", ("192.168.0.1", port)), (2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("trio.socket.getaddrinfo", lookup)
    refused = await failure("https://rebinding.example.com/", allow_private=False)
    assert refused.kind == "forbidden"
    assert "192.168.0.1" in str(refused)


@pytest.mark.parametrize(
    "target",
    ["https://10.0.0.1/", "https://localhost/", "http://example.com/", "file:///etc/passwd",
     "https://printer.local/"],
)  # fmt: skip
async def test_not_even_a_trusted_server_sends_us_to_private_places(
    server: str, target: str
) -> None:
    url = f"{server}/to/{quote(target, safe='')}"
    assert (await failure(url, allow_private=False, trusted=True)).kind == "forbidden"


async def test_a_body_that_trickles_is_given_up(server: str) -> None:
    async def read(client: HttpClient) -> None:
        url = f"{server}/trickle"
        async with client.get(url, max_bytes=100_000, total_seconds=20, min_rate=10_000) as answer:
            async for _ in answer.chunks:
                pass

    async with HttpClient(allow_private=True, silence_seconds=0.3) as client:
        with pytest.raises(HttpError) as error:
            await read(client)
    assert error.value.kind == "too_slow"


async def test_configured_endpoints_may_be_private(server: str) -> None:
    async with HttpClient(allow_private=False) as client:
        assert await client.get_json(f"{server}/ok", trusted=True) == {"a": 1}
    assert (await failure(f"{server}/ok", allow_private=False)).kind == "forbidden"


@pytest.mark.parametrize(
    "target",
    ["https://[::1", "http://x:99999/", "http://x:abc/", "http://a..b/", "http://./", "//x:99999/",
     f"http://{'a' * 64}.com/", "http://x:0/"],
)  # fmt: skip
@pytest.mark.parametrize("stay", [False, True])
async def test_a_redirect_that_is_no_url_is_malformed(server: str, target: str, stay: bool) -> None:
    async with HttpClient(allow_private=True) as client:
        with pytest.raises(HttpError) as error:
            async with client.get(
                f"{server}/to/{quote(target, safe='')}", max_bytes=9, total_seconds=5, stay=stay
            ):
                pass
    assert error.value.kind == "malformed"


@pytest.mark.parametrize(
    "url",
    ["https://", "https://[::1", "https://a.test:port/", "http:///x", "http://a..b/", "http://./",
     f"http://{'a' * 64}.com/", "http://x/\ud800", "http://\ud800/"],
)  # fmt: skip
async def test_what_is_no_url_cannot_be_reached(url: str) -> None:
    assert (await failure(url)).kind == "unreachable"


async def test_what_a_url_may_not_hold_is_escaped(server: str) -> None:
    assert (await failure(f"{server}/größe \r\nX: y")).status == 400


@pytest.mark.parametrize("step", ["send", "receive", "close"])
async def test_a_defect_is_the_failure_of_its_request_alone(
    server: str, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    counted = list[int]()
    boundary = Boundary(lambda: counted.append(1))
    async with HttpClient(allow_private=True, boundary=boundary) as client:
        with monkeypatch.context() as patched:
            patched.setattr(ConnectionPool if step == "send" else ClientResponse, step, broken)
            if step == "close":
                assert await client.get_json(f"{server}/ok") == {"a": 1}
            else:
                with pytest.raises(HttpError) as error:
                    await client.get_json(f"{server}/ok")
                assert error.value.kind == "internal_error"
        assert counted
        assert "a defect" in caplog.text
        assert await client.get_json(f"{server}/ok") == {"a": 1}
