"""Makes a part of the network's code raise RuntimeError over one account, as a defect would."""

from collections.abc import Callable
from typing import Any

import pytest
import trio._highlevel_open_tcp_stream
import trio.socket

from rsky_pipeline.configuration import endpoints
from rsky_pipeline.network import directory, pool

BAD_HOST = "bad.test"
BAD_PLC = "did:plc:badbadbadbadbadbadbadbad"
BAD_WEB = f"did:web:{BAD_HOST}"
PARTS = {"pool": BAD_PLC, "document": BAD_PLC, "getaddrinfo": BAD_WEB, "hosts": BAD_WEB}


def break_part(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Let a part raise where it meets one of the bad names; everything else works as before."""

    def patch(owner: Any, name: str) -> None:
        monkeypatch.setattr(owner, name, _breaking(getattr(owner, name)))

    match part:
        case "pool":
            patch(pool.ConnectionPool, "send")
        case "document":
            patch(directory, "parse_did_document")
        case "getaddrinfo":
            patch(trio.socket, "getaddrinfo")
            patch(trio._highlevel_open_tcp_stream, "getaddrinfo")
        case "hosts":
            patch(endpoints, "normal_host")
            patch(pool, "normal_host")


def _breaking(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if any(bad in str(arg) for arg in args for bad in (BAD_HOST, BAD_PLC)):
            raise RuntimeError("a defect")
        return function(*args, **options)

    return call
