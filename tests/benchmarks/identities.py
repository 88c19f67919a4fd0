"""A first look at accounts: 10,000 of them that no role knows, at a directory on loopback."""

import hashlib
import os
import socket
import subprocess
import sys
import time
from base64 import b32encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import trio

from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.demo.simulator.accounts import did_document
from rsky_pipeline.network.directory import Directory
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.runtime.threads import ease_collector, take_turns_quickly
from rsky_pipeline.streams.identities import SharedIdentities
from tests import stores
from tests.benchmarks.processes import cpu_seconds
from tests.benchmarks.report import Report

ACCOUNTS = 10_000
AT_ONCE = 64  # as the ingester
ROLES = ("ingester", "backfiller", "indexer")  # in the order in which they meet an account
ROOT = Path(__file__).resolve().parents[2]


def bench_identities(report: Report) -> None:
    """Measure a look at accounts by each role, beside one bare connection."""
    with _program("serve") as directory, stores.running_valkey() as redis:
        url = f"http://127.0.0.1:{_answer(directory)}"
        floor = _run("floor", url, redis)
        report.figure("a document over one bare connection", floor, "us of processor time")
        alone = _run("alone", url, redis)
        report.figure("a look at an account, nothing shared", alone, "us of processor time")
        asked, before = _asked(url), cpu_seconds([os.getpid()])["Valkey"]
        total: float = 0.0
        for role in ROLES:
            total += (used := _run(role, url, redis))
            report.figure(f"a first look at an account by the {role}", used, "us of processor time")
            report.ratio("of the bare connection", used, floor)
        valkey = (cpu_seconds([os.getpid()])["Valkey"] - before) / ACCOUNTS * 1e6
        report.figure("a first look: Valkey", valkey, "us of processor time")
        report.figure("a first look: all roles", total + valkey, "us of processor time")
        report.figure("requests for an account", (_asked(url) - asked) / ACCOUNTS, "requests")


def _run(role: str, url: str, redis: str) -> float:
    """Look at all accounts in a process of its own; return its processor time for each in us."""
    with _program(role, url, redis) as process:
        return float(_answer(process)) / ACCOUNTS * 1e6


@contextmanager
def _program(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "tests.benchmarks.identities", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def _answer(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _asked(url: str) -> int:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        connection.sendall(b"GET /count HTTP/1.1\r\n\r\n")
        return int(connection.recv(1_000).rpartition(b"\n")[2])


def _dids(seed: str) -> list[str]:
    numbers = (hashlib.sha256(f"{seed} {number}".encode()).digest() for number in range(ACCOUNTS))
    return ["did:plc:" + b32encode(number)[:24].decode().lower() for number in numbers]


async def _fan_out(work: Callable[[str], Awaitable[object]], dids: list[str]) -> None:
    left = iter(dids)

    async def some() -> None:
        for did in left:
            await work(did)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(some)


async def _bare(url: str, dids: list[str]) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
    async with stream:
        for did in dids:
            await stream.send_all(b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % did.encode())
            answer = await stream.receive_some(65_536)
            assert orjson.loads(answer[answer.index(b"\r\n\r\n") :])["id"] == did


async def _look(url: str, redis: str, dids: list[str], *, shares: bool) -> None:
    shared = SharedIdentities(redis, "bench", lambda _: None)
    async with HttpClient(allow_private=False) as http, trio.open_nursery() as nursery:
        nursery.start_soon(shared.run)
        directory = Directory(http, url, shared=shared if shares else None)
        await _fan_out(directory.resolve, dids)
        await shared.send()
        nursery.cancel_scope.cancel()
    shared.close()


async def _serve() -> None:
    """Answer as a directory does, with little work."""
    multibase = PrivateKey.from_seed("k256", b"bench").multibase
    services = {"atproto_pds": ("AtprotoPersonalDataServer", "https://pds.example.com")}
    asked = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal asked
        received = b""
        while data := await stream.receive_some(65_536):
            received += data
            if not received.endswith(b"\r\n\r\n"):
                continue
            did = received.split(b" ", 2)[1][1:].decode()
            received = b""
            if did == "count":
                await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n%d" % asked)
                return
            asked += 1
            handle = f"{did[-20:]}.example.com"
            body = orjson.dumps(did_document(did, handle, {"atproto": multibase}, services))
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nDate: Mon, 30 Nov 2026 12:00:00 GMT\r\nVary: Origin\r\n"
                b"Content-Type: application/did+ld+json; charset=utf-8\r\n"
                b"Content-Length: %d\r\nConnection: keep-alive\r\n\r\n%b" % (len(body), body)
            )

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        print(listeners[0].socket.getsockname()[1], flush=True)


def _main(role: str, url: str = "", redis: str = "") -> None:
    if role == "serve":
        trio.run(_serve)
        return
    ease_collector()
    take_turns_quickly()
    dids = _dids("shared" if role in ROLES else role)
    before = time.process_time()
    if role == "floor":
        trio.run(_bare, url, dids)
    else:

        async def look() -> None:
            await _look(url, redis, dids, shares=role in ROLES)

        trio.run(look)
    print(time.process_time() - before, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
