"""What systemd hears of a whole life of a supervisor, on the socket that it would listen on."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.supervisor.pipeline import Pipeline


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(path))
        bound.settimeout(0.2)
        yield bound


def heard(listener: socket.socket, what: bytes, seconds: float = 30) -> list[bytes]:
    """Return the datagrams up to the first that holds `what`."""
    found: list[bytes] = []
    deadline = time.monotonic() + seconds
    while not (found and what in found[-1]):
        assert time.monotonic() < deadline, f"no {what!r} among {found}"
        try:
            found.append(listener.recv(4096))
        except TimeoutError:
            continue
    return found


def test_systemd_hears_starting_ready_watchdog_and_stopping(pipeline: Pipeline) -> None:
    pipeline.behave(ingester={"ready_after": 1.5}, indexer={"drain_seconds": 2.5})
    with listening(pipeline.data / "notify") as listener:
        running = pipeline.start(NOTIFY_SOCKET=str(pipeline.data / "notify"))
        starting = b"\n".join(heard(listener, b"READY=1"))
        assert starting.count(b"READY=1") == 1
        assert b"EXTEND_TIMEOUT_USEC=30000000" in starting  # it is late, and says that it works
        assert b"WATCHDOG=1" in starting
        assert b"STOPPING=1" not in starting
        ready = heard(listener, b"WATCHDOG=1")
        assert not any(b"EXTEND_TIMEOUT" in message for message in ready)
        heard(listener, b"indexer-1 ready")
        running.signal(signal.SIGTERM)
        assert b"READY=1" not in b"".join(heard(listener, b"STOPPING=1"))
        # The drain takes longer than a moment: it keeps asking for time, and shows that it lives.
        draining = b"\n".join(
            heard(listener, b"EXTEND_TIMEOUT_USEC=30000000") + heard(listener, b"WATCHDOG=1")
        )
        assert b"READY=1" not in draining
        assert running.ended() == 0


def test_workers_do_not_answer_in_the_supervisors_place(pipeline: Pipeline) -> None:
    with listening(pipeline.data / "notify") as listener:
        running = pipeline.start("indexer", NOTIFY_SOCKET=str(pipeline.data / "notify"))
        heard(listener, b"READY=1")
        workers = [child["pid"] for child in pipeline.status()["processes"]]
        for pid in workers:
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
        running.signal(signal.SIGTERM)
        assert running.ended() == 0
