"""The harness as a process: signals, liveness, exit codes. The roles are written in the tests."""

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from rsky_pipeline.runtime.channel import decode_event
from tests.integration.supervisor.pipeline import until

HARNESS = """
import sys, time, trio
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime import errors
from rsky_pipeline.runtime.channel import WorkerPipes
from rsky_pipeline.runtime.worker import run_worker

async def main(context):
{role}

settings = Settings(indexer_metrics_port=0, stop_timeout_seconds=1, log_format="text")
descriptors = [int(text) for text in sys.argv[1:]]
pipes = WorkerPipes(*descriptors)
sys.exit(run_worker(main, settings=settings, role="indexer", instance=3, pipes=pipes))
"""
WAITS = """
    context.ready()
    await context.stopping.wait()
    print("drains", flush=True)
    await context.escalated.wait()
    print("hurries", flush=True)
"""


class Worker:
    """A harness process, its output and its pipes."""

    def __init__(self, directory: Path, role: str) -> None:
        script = directory / "role.py"
        script.write_text(HARNESS.format(role=textwrap.indent(textwrap.dedent(role), "    ")))
        self.log = directory / "log.txt"
        self.events, events_write = os.pipe()
        liveness_read, self.liveness = os.pipe()
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(script), str(events_write), str(liveness_read)],
                stdout=output,
                stderr=output,
                pass_fds=(events_write, liveness_read),
            )
        os.close(events_write)
        os.close(liveness_read)

    def until_logged(self, text: str) -> None:
        until(lambda: text in self.log.read_text() or self.process.poll() is not None, text)
        assert text in self.log.read_text()

    def kinds(self) -> list[str]:
        """Return the kinds of all events until the worker closed its pipe, without `status`."""
        received = b""
        while select.select([self.events], [], [], 20)[0] and (
            chunk := os.read(self.events, 65536)
        ):
            received += chunk
        events = [decode_event(line) for line in received.splitlines()]
        return [one["event"] for one in events if one and one["event"] != "status"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.events)
        if self.liveness >= 0:
            os.close(self.liveness)


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], Worker]:
    class Started(Worker):
        def __init__(self, role: str) -> None:
            super().__init__(tmp_path, role)
            request.addfinalizer(self.close)

    return Started


def test_signals_drain_then_escalate(start: Callable[[str], Worker]) -> None:
    worker = start(WAITS)
    worker.until_logged("INFO    ready")
    worker.process.send_signal(signal.SIGTERM)
    worker.until_logged("drains")
    worker.process.send_signal(signal.SIGINT)
    worker.until_logged("hurries")
    assert worker.process.wait(10) == 0
    assert worker.kinds() == ["started", "ready", "exit"]


def test_quit_prints_stacks_and_hurries(start: Callable[[str], Worker]) -> None:
    worker = start(WAITS)
    worker.until_logged("INFO    ready")
    worker.process.send_signal(signal.SIGQUIT)
    assert worker.process.wait(10) == 0
    log = worker.log.read_text()
    assert "most recent call first" in log
    assert "hurries" in log


def test_quit_shows_where_a_stuck_loop_is(start: Callable[[str], Worker]) -> None:
    worker = start(
        "context.ready(); await trio.sleep(0.2); print('stuck', flush=True); time.sleep(60)"
    )
    worker.until_logged("stuck")
    worker.process.send_signal(signal.SIGQUIT)
    worker.until_logged("role.py")


def test_the_death_of_the_supervisor_drains(start: Callable[[str], Worker]) -> None:
    worker = start("context.ready(); await context.stopping.wait(); print('drained')")
    worker.until_logged("INFO    ready")
    os.close(worker.liveness)
    worker.liveness = -1
    assert worker.process.wait(10) == 0
    log = worker.log.read_text()
    assert "the supervisor is gone" in log
    assert "drained" in log


def test_without_a_supervisor_a_long_drain_is_hurried(start: Callable[[str], Worker]) -> None:
    worker = start(WAITS)
    worker.until_logged("INFO    ready")
    os.close(worker.liveness)
    worker.liveness = -1
    worker.until_logged("hurries")
    assert worker.process.wait(10) == 0


@pytest.mark.slow
def test_without_a_supervisor_a_stuck_worker_ends_itself(start: Callable[[str], Worker]) -> None:
    worker = start("context.ready(); await context.stopping.wait(); time.sleep(60)")
    worker.until_logged("INFO    ready")
    os.close(worker.liveness)
    worker.liveness = -1
    assert worker.process.wait(20) == 5


@pytest.mark.parametrize(
    ("role", "code", "words"),
    [
        ("raise errors.UnavailableError('no redis')", 69, "no redis"),
        ("raise errors.SettingError('bad host')", 78, "bad host"),
        ("raise errors.PermissionDeniedError('no rights')", 77, "no rights"),
        ("raise ValueError('a defect')", 1, "Traceback"),
        ("context.ready()", 1, "the role ended without a stop signal"),
    ],
)
def test_exit_codes_tell_what_to_do(
    start: Callable[[str], Worker], role: str, code: int, words: str
) -> None:
    worker = start(role)
    assert worker.process.wait(20) == code
    assert words in worker.log.read_text()
    assert worker.kinds()[-1] == "exit"


def test_metrics_are_there_when_ready_is_said(start: Callable[[str], Worker]) -> None:
    worker = start("context.ready(); await context.stopping.wait()")
    worker.until_logged("INFO    ready")
    log = worker.log.read_text()
    assert log.index("Metrics initialized") < log.index("INFO    ready")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(10) == 0
