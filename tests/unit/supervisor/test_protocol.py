"""Requests are checked before anything is done; sockets are named by the roles."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.supervisor.control import is_allowed
from rsky_pipeline.supervisor.protocol import (
    BadRequestError,
    ControlRequest,
    encode,
    parse_request,
    socket_name,
    socket_path,
    sockets,
)


def parse(**message: object) -> ControlRequest:
    return parse_request(encode({"version": 1, **message}))


def test_a_good_request_is_understood() -> None:
    assert parse(command="status") == ControlRequest("status")
    request = parse(command="stop", roles=["indexer"], timeout=2.5)
    assert request == ControlRequest("stop", ("indexer",), 2.5)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"command": "explode"}, "unknown command 'explode'"),
        ({"command": None}, "unknown command"),
        ({"command": "stop", "roles": ["relay"]}, "roles must be"),
        ({"command": "stop", "roles": "indexer"}, "roles must be"),
        ({"command": "stop", "roles": [["indexer"]]}, "roles must be"),
        ({"command": "stop", "timeout": -1}, "timeout must be"),
        ({"command": "stop", "timeout": True}, "timeout must be"),
        ({"command": "stop", "timeout": float("nan")}, "timeout must be"),
        ({"command": "status", "version": 2}, "version 2 is not understood"),
    ],
)
def test_a_bad_request_is_explained(message: dict[str, object], complaint: str) -> None:
    with pytest.raises(BadRequestError, match=complaint):
        parse(**message)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_anything_else_is_refused_politely(line: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse_request(line)


def test_deep_nesting_is_refused_politely() -> None:
    with pytest.raises(BadRequestError):
        parse_request(b"[" * 60_000)


def test_names_tell_the_roles() -> None:
    assert socket_name(("indexer", "ingester", "backfiller")) == "control-all.sock"
    assert socket_name(("indexer",)) == "control-indexer.sock"
    assert socket_name(("indexer", "backfiller")) == "control-backfiller+indexer.sock"


def test_long_run_directories_have_their_sockets_in_tmp(tmp_path: Path) -> None:
    short = Path("/run/rsky-pipeline")
    assert socket_path(short, ("indexer",)) == short / "control-indexer.sock"
    deep = tmp_path / ("x" * 80)
    path = socket_path(deep, ("indexer",))
    assert path.parent.parent == Path("/tmp")
    assert len(str(path)) < 100
    assert path != socket_path(deep / "y", ("indexer",))
    assert sockets(deep) == []


def test_only_our_account_and_root_give_orders() -> None:
    assert is_allowed(1000, own=1000)
    assert is_allowed(0, own=1000)
    assert not is_allowed(1001, own=1000)
    assert not is_allowed(1000, own=0)
