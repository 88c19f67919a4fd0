"""The worker processes of a load. Each runs one task at a time; a crash loses only that task.

One thread per process sends tasks and reads outcomes. When a process dies, the files of its task
are retried one by one; a file that crashes a process alone is reported as failed.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.operations.load.outcome import CarFile, FileOutcome
from rsky_pipeline.operations.load.worker import LoadOptions
from rsky_pipeline.runtime.channel import encode_settings

PROGRAM = (sys.executable, "-P", "-m", "rsky_pipeline", "load-worker")

Task = Sequence[CarFile]


class LoadStoppedError(Exception):
    """The load cannot continue; the message is the reason."""


@dataclass(slots=True)
class _LoadProcess:
    popen: "subprocess.Popen[str]"

    def end(self) -> None:
        """Close its pipes, so that it ends at the end of its input, and reap it."""
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # it died with something unread
                    pipe.close()
        self.popen.wait()


class LoadPool:
    """Runs tasks in `jobs` processes and yields outcomes as they come."""

    def __init__(
        self,
        settings: Settings,
        options: LoadOptions,
        jobs: int,
        on_crash: Callable[[FileOutcome], None],
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._settings = settings
        self._options = options
        self._jobs = jobs
        self._on_crash = on_crash
        self._program = program
        self._tasks: Iterator[Task] = iter(())
        self._turn = threading.Lock()
        self._results: queue.Queue[FileOutcome | BaseException | None] = queue.Queue()
        self._stopping = threading.Event()

    def run(self, tasks: Iterator[Task]) -> Iterator[FileOutcome]:
        """Yield the outcome of every file. Raises LoadStoppedError, and errors of `tasks`."""
        self._tasks = tasks
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._jobs)]
        for thread in threads:
            thread.start()
        running = len(threads)
        try:
            while running:
                found = self._results.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    running -= 1
                else:
                    yield found
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()

    def _next(self) -> Task | None:
        with self._turn:
            return None if self._stopping.is_set() else next(self._tasks, None)

    def _work(self) -> None:
        process: _LoadProcess | None = None
        try:
            while (task := self._next()) is not None:
                process = self._do(process, task)
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            self._stopping.set()
            self._results.put(error)
        finally:
            if process is not None:
                process.end()
            self._results.put(None)

    def _do(self, process: _LoadProcess | None, task: Task) -> _LoadProcess | None:
        """Do a task; return the process if it lives on."""
        process = process or self._start()
        if self._ask(process, task):
            return process
        self._check(process)
        if len(task) > 1:
            for file in task:
                alone = self._do(None, [file])
                if alone is not None:
                    alone.end()
            return None
        outcome = FileOutcome(**asdict(task[0]))
        outcome.fail("crashes_worker", f"the process ended with code {process.popen.returncode}")
        self._on_crash(outcome)
        self._results.put(outcome)
        return None

    def _ask(self, process: _LoadProcess, task: Task) -> bool:
        """Hand over a task and pass on its outcomes; return False if the process died."""
        assert process.popen.stdin is not None
        assert process.popen.stdout is not None
        outcomes: list[FileOutcome] = []
        try:
            process.popen.stdin.write(json.dumps([asdict(file) for file in task]) + "\n")
            process.popen.stdin.flush()
            for line in process.popen.stdout:
                answer: dict[str, Any] = json.loads(line)
                if "fatal" in answer:
                    raise LoadStoppedError(answer["fatal"])
                if "done" in answer:
                    for outcome in outcomes:
                        self._results.put(outcome)
                    return True
                outcomes.append(FileOutcome(**answer))
        except BrokenPipeError:
            pass
        process.end()
        return False

    def _check(self, process: _LoadProcess) -> None:
        if self._stopping.is_set():
            raise LoadStoppedError("stopped")
        if process.popen.returncode > 0:  # an error of its own, which another one would meet too
            raise LoadStoppedError(f"a process ended with code {process.popen.returncode}")

    def _start(self) -> _LoadProcess:
        read, write = os.pipe()
        try:
            os.write(write, encode_settings(self._settings))
            popen = subprocess.Popen(
                [*self._program, "--settings-fd", str(read),
                 "--options", json.dumps(asdict(self._options))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=(read,),
                process_group=0,  # Ctrl-C reaches the load alone, which lets tasks end
            )  # fmt: skip
        finally:
            os.close(read)
            os.close(write)
        return _LoadProcess(popen)
