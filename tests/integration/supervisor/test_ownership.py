"""One supervisor a role, no worker beside its survivor, nobody else at the control socket."""

import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rsky_pipeline.runtime import lock as locks
from rsky_pipeline.supervisor import client
from rsky_pipeline.supervisor.errors import NotRunningError
from rsky_pipeline.supervisor.ownership import Survivor, await_survivors
from tests.integration.supervisor.pipeline import Pipeline, until


def test_workers_drain_when_their_supervisor_is_killed(pipeline: Pipeline) -> None:
    pipeline.behave(indexer={"drain_seconds": 0.5})
    running = pipeline.up("ingester", "backfiller", "indexer", "embedded")
    stores = [pipeline.child(name)["pid"] for name in ("valkey", "postgres")]
    running.signal(signal.SIGKILL)
    running.ended()
    gone = {"ingester-1 drained", "backfiller-1 drained", "indexer-1 drained"}
    until(lambda: gone <= set(pipeline.trace()), "every worker drained")
    until(lambda: not any(map(exists, stores)), "the stores ended after the workers")
    postgres_log = (pipeline.data / "postgres.log").read_text()
    assert "database system is shut down" in postgres_log  # in order, not killed


def test_a_new_supervisor_waits_for_survivors(pipeline: Pipeline) -> None:
    pipeline.behave(indexer={"drain_until": "may-end"})
    first = pipeline.up()
    first.signal(signal.SIGKILL)
    first.ended()
    pipeline.behave()
    second = pipeline.start()
    second.until_logged("waiting for a survivor .* child=indexer-1")
    (pipeline.data / "may-end").touch()
    second.until_logged("INFO +running")
    trace = pipeline.trace()
    assert trace.index("indexer-1 drained") < trace.index("ingester-1 began", 3)
    assert trace.count("indexer-1 began") == 2


async def test_a_survivor_that_does_not_end_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "indexer-1.lock"
    lock = locks.acquire(path)
    assert lock is not None
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    with subprocess.Popen(command, pass_fds=(lock.descriptor,)) as process:  # noqa: ASYNC220
        lock.let_go()
        began = time.monotonic()
        assert await await_survivors([Survivor("indexer-1", path, grace=0.5)]) == ["indexer-1"]
        assert time.monotonic() - began >= 0.5
    assert process.returncode == -signal.SIGKILL
    assert await await_survivors([Survivor("indexer-1", path, grace=0.5)]) == []


FORKS = """
import os, signal, sys
read, write = os.pipe()
if os.fork() == 0:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(write, b"!")
    signal.pause()
os.read(read, 1)
print(flush=True)
signal.pause()
"""


async def test_what_a_killed_store_left_behind_is_killed(tmp_path: Path) -> None:
    """After the death of its first process a PostgreSQL may hang in one of its others."""
    path = tmp_path / "postgres.lock"
    lock = locks.acquire(path)
    assert lock is not None
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(  # noqa: ASYNC220
        command, pass_fds=(lock.descriptor,), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        lock.let_go()
        parent, child = locks.holders(path)
        assert parent == process.pid
        process.kill()
    survivor = Survivor("postgres", path, grace=0.3, stop_signal=signal.SIGINT)
    assert locks.holders(path) == [child]
    assert await await_survivors([survivor]) == ["postgres"]
    assert locks.holders(path) == []


async def test_a_store_is_stopped_by_its_first_process_alone(tmp_path: Path) -> None:
    """It has no guard yet, and a signal to stop means another thing to its other processes."""
    path = tmp_path / "postgres.lock"
    lock = locks.acquire(path)
    assert lock is not None
    command = [sys.executable, "-c", FORKS.replace("signal.SIG_IGN", "lambda *_: os._exit(9)")]
    with subprocess.Popen(  # noqa: ASYNC220
        command, pass_fds=(lock.descriptor,), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        lock.let_go()
        survivor = Survivor("postgres", path, grace=3.0, stop_signal=signal.SIGINT)
        assert await await_survivors([survivor]) == ["postgres"]  # the child, by SIGKILL
        assert process.wait() == -signal.SIGINT


def test_a_role_has_one_supervisor(pipeline: Pipeline) -> None:
    first = pipeline.up("ingester", "indexer")
    second = pipeline.start("indexer", "backfiller")
    assert second.ended() == 75
    pid = first.process.pid
    assert f"refused: another supervisor (pid {pid}) already runs the indexer" in second.log
    assert first.process.poll() is None


def test_embedded_stores_have_one_supervisor(pipeline: Pipeline) -> None:
    pipeline.up("ingester", "embedded")
    second = pipeline.start("indexer", "embedded")
    assert second.ended() == 75
    assert second.logged("runs the embedded stores in .* need redis_url and database_url")


def test_a_killed_supervisors_socket_is_no_obstacle(pipeline: Pipeline) -> None:
    first = pipeline.up("indexer")
    first.signal(signal.SIGKILL)
    first.ended()
    assert list(pipeline.run_dir.glob("control-*"))
    with pytest.raises(NotRunningError):
        client.find(pipeline.run_dir)
    assert pipeline.command("status").exit_code == 3
    pipeline.up("indexer")
    assert pipeline.child("indexer-1")["state"] == "ready"


def test_a_run_directory_that_cannot_be_made_is_one_clear_line(pipeline: Pipeline) -> None:
    pipeline.run_dir.write_text("a file is in the way")
    running = pipeline.start("indexer")
    assert running.ended() == 77
    assert running.log.count("\n") == 1
    assert running.logged("cannot create the directory .*/run: .* choose another")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_directory_that_cannot_be_written_is_one_clear_line(pipeline: Pipeline) -> None:
    pipeline.run_dir.mkdir()
    pipeline.run_dir.chmod(0o500)
    running = pipeline.start("indexer")
    assert running.ended() == 77
    assert running.logged("cannot write the lock file .* choose another run_dir")


def test_the_control_socket_is_for_its_account_alone(pipeline: Pipeline) -> None:
    pipeline.up("indexer")
    path = pipeline.run_dir / "control-indexer.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    assert pipeline.run_dir.stat().st_mode & 0o077 == 0
    assert [entry.name for entry in pipeline.run_dir.iterdir() if ".new" in entry.name] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another account")
def test_another_account_is_refused_by_the_kernels_word(pipeline: Pipeline) -> None:
    running = pipeline.up("indexer")
    path = pipeline.run_dir / "control-indexer.sock"
    path.chmod(0o666)
    for directory in (pipeline.data, pipeline.run_dir):
        directory.chmod(0o755)
    nobody = pwd.getpwnam("nobody")
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "print(s.recv(1000).decode())"
    )
    # The system's own interpreter: the one of the tests may be out of another account's reach.
    result = subprocess.run(
        ["/usr/bin/python3", "-c", code, str(path)],
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if result.returncode != 0:
        pytest.skip(f"no interpreter for another account: {result.stderr.strip()[-200:]}")
    assert "not permitted" in result.stdout
    assert running.logged("control request of another account refused uid=")
    assert running.process.poll() is None


def test_nonsense_on_the_control_socket_is_answered_and_survived(pipeline: Pipeline) -> None:
    pipeline.up("indexer")
    path = str(pipeline.run_dir / "control-indexer.sock")
    assert b"not JSON" in exchange(path, b"hello\n")
    assert b"longer than 64000 bytes" in exchange(path, b"x" * 70_000)
    assert b"line break" in exchange(path, b"{}", half_close=True)
    assert b"version" in exchange(path, b"{}\n")
    assert b"does not run ingester" in exchange(
        path, b'{"version":1,"command":"stop","roles":["ingester"]}\n'
    )
    silent = socket.socket(socket.AF_UNIX)
    silent.connect(path)  # says nothing; must not hold up others
    assert pipeline.child("indexer-1")["state"] == "ready"
    silent.close()


def test_systemd_hears_ready_and_stopping_from_the_supervisor_alone(pipeline: Pipeline) -> None:
    address = str(pipeline.data / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(0.2)
        running = pipeline.up("indexer", NOTIFY_SOCKET=address, WATCHDOG_USEC="10000000")
        pipeline.command("stop")
        assert running.ended() == 0
        messages = []
        while True:
            try:
                messages.append(systemd.recv(4096).decode())
            except TimeoutError:
                break
    assert sum("READY=1" in message for message in messages) == 1
    assert sum("STOPPING=1" in message for message in messages) == 1
    assert any("WATCHDOG=1" in message for message in messages)
    assert any("EXTEND_TIMEOUT_USEC=" in message for message in messages)
    assert any("indexer-1 ready" in message for message in messages)


def exchange(path: str, request: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes to a socket and return everything that comes back."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(path)
        try:
            connection.sendall(request)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


def exists(pid: int) -> bool:
    """Tell whether a process runs."""
    return Path(f"/proc/{pid}").exists()
