"""systemd hears what it should, on a real datagram socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rsky_pipeline.runtime.notify import Notifier, from_environment, strip


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.settimeout(2)
        yield bound


def heard(listener: socket.socket) -> bytes:
    return listener.recv(4096)


def test_states_arrive_one_datagram_each(listener: socket.socket) -> None:
    notifier = Notifier(listener.getsockname())
    notifier.ready("up\nand running")
    notifier.status("busy")
    notifier.watchdog()
    notifier.extend(1.5)
    notifier.stopping("draining")
    assert heard(listener) == b"READY=1\nSTATUS=up and running"
    assert heard(listener) == b"STATUS=busy"
    assert heard(listener) == b"WATCHDOG=1"
    assert heard(listener) == b"EXTEND_TIMEOUT_USEC=1500000"
    assert heard(listener) == b"STOPPING=1\nSTATUS=draining"
    assert notifier.failures == 0


def test_abstract_sockets_work() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(f"\0rsky-test-{os.getpid()}")
        bound.settimeout(2)
        assert Notifier(f"@rsky-test-{os.getpid()}").send(READY=1)
        assert heard(bound) == b"READY=1"


def test_nobody_listening_is_counted_not_raised(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    assert not notifier.send(READY=1)
    assert notifier.failures == 1
    assert not Notifier(None).send(READY=1)


def test_a_full_socket_does_not_block(listener: socket.socket) -> None:
    notifier = Notifier(listener.getsockname())
    sent = sum(notifier.send(STATUS="x" * 1000) for _ in range(5000))
    assert 0 < sent < 5000
    assert notifier.failures == 5000 - sent


def test_only_an_address_of_a_socket_is_taken() -> None:
    assert from_environment({"NOTIFY_SOCKET": "/x"}).address == "/x"
    assert from_environment({"NOTIFY_SOCKET": "relative"}).address is None
    assert from_environment({}).address is None


def test_children_do_not_inherit_the_conversation() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "LISTEN_FDS": "3", "PATH": "/bin"}
    strip(environment)
    assert environment == {"PATH": "/bin"}
