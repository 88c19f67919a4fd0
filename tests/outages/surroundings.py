"""A pipeline on stores, disks, relay, labeler and directory that can each be taken away."""

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import redis

from rsky_pipeline.configuration.load import load
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.sources import PREFIX
from rsky_pipeline.configuration.topology import start_order
from rsky_pipeline.demo.processes import PipelineProcess, Simulation, pipeline_environment
from rsky_pipeline.embedded import postgres, valkey
from rsky_pipeline.embedded.locations import resolve_directories, store_urls
from rsky_pipeline.embedded.program import StoreProgram
from rsky_pipeline.supervisor.spawn import descendants
from tests.forwarding import Forward, forwarding
from tests.small_disk import SmallDisk, small_disk
from tests.stores import (
    FAST_POSTGRES,
    redis_client,
    scratch_directory,
    scratch_settings,
    wait_until_it_answers,
)

ALL, EACH = "one supervisor", "a supervisor for each role"
_ADVICE = re.compile(r"`rsky-pipeline ([^`]+)`")
_NETWORK = ("--rate=40", "--accounts=400", "--history=5", "--calm")
_FAST = {**FAST_POSTGRES, "shared_buffers": "32MB", "max_wal_size": "64MB"}


class Server:
    """A store of our own, which ends, freezes and comes back as it is asked to."""

    def __init__(self, program: StoreProgram) -> None:
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = self.program.start()
        wait_until_it_answers(self.program, self._process)

    def stop(self) -> None:
        """End it in order, or at once where it does not end."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        self.thaw()
        process.send_signal(self.program.stop_signal)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(15)

    def freeze(self) -> None:
        """Stop all of its processes where they are."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            for pid in (process.pid, *descendants(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)


class SlowClock:
    """Lets the programs that get its environment see another time than this machine has."""

    def __init__(self, folder: Path) -> None:
        self._file, library = folder / "clock", folder / "slow_clock.so"
        self.set_back(0)
        source = Path(__file__).with_name("slow_clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        self.environ = {"LD_PRELOAD": str(library), "SLOW_CLOCK": str(self._file)}

    def set_back(self, seconds: int) -> None:
        """Show a time that is so much earlier than the machine's, at once."""
        with self._file.open("r+b" if self._file.exists() else "w+b", buffering=0) as file:
            file.write(struct.pack("q", seconds))


@dataclass(slots=True)
class World:
    """Everything that an outage may be of."""

    shape: str
    folder: Path
    simulation: Simulation
    relay: Forward
    labeler: Forward
    directory: Forward
    redis: Server
    database: Server
    redis_disk: SmallDisk
    database_disk: SmallDisk
    data_disk: SmallDisk
    clock: SlowClock | None  # of our processes, where it may be wrong
    environ: dict[str, str]
    settings: Settings
    processes: list[PipelineProcess] = field(default_factory=list)
    extra: list[PipelineProcess] = field(default_factory=list)  # a second ingester

    def start(self) -> None:
        """Start the supervisors, producers first."""
        roles: Sequence[str] = ("all",) if self.shape == ALL else start_order()
        for role in roles:
            log = self.folder / f"{role}.log"
            self.processes.append(PipelineProcess(["run", "--role", role], self.environ, log))

    def command(self, *words: str, seconds: float = 180) -> subprocess.CompletedProcess[str]:
        """Run a command of the program."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "rsky_pipeline", *words], env=self.environ,
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip

    def follow(self, remedy: str, which: str) -> str:
        """Run the command of a remedy that begins with these words; return it as it was run."""
        found = [line for line in _ADVICE.findall(remedy) if line.startswith(which)]
        assert found, f"the remedy names no `{which}`: {remedy}"
        done = self.command(*found[0].split())
        assert done.returncode == 0, f"{found[0]}: {done.stdout}{done.stderr}"
        return f"rsky-pipeline {found[0]}"

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        """Run a statement as the database's superuser, whatever is forbidden by default."""
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(
            self.database.program.url, autocommit=True, options=options
        ) as connection:
            found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def call(self, *words: str) -> object:
        """Send a command to Redis."""
        with contextlib.closing(redis_client(self.redis.program.url)) as client:
            found: object = client.execute_command(*words)  # type: ignore[no-untyped-call]
            return found

    def until(self, condition: Callable[[], object], seconds: float = 90.0) -> None:
        """Return when a condition holds."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(redis.exceptions.RedisError, psycopg.Error):
                if condition():
                    return
            assert time.monotonic() < deadline, f"still not true after {seconds:.0f} s"
            time.sleep(0.5)

    def end(self) -> None:
        """End everything that was started here."""
        for process in (*self.extra, *reversed(self.processes)):
            process.end()


@contextlib.contextmanager
def world(shape: str, *, with_clock: bool = False) -> Iterator[World]:
    """Yield a pipeline that follows a network, in one of the two shapes; needs root."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch_directory())
        clock = SlowClock(folder) if with_clock else None
        disks = [
            stack.enter_context(small_disk(size=size, inodes=20_000))
            for size in ("512m", "768m", "96m")
        ]
        simulation = Simulation(folder, _NETWORK)
        stack.callback(simulation.process.end)
        ways = [
            stack.enter_context(forwarding(simulation.urls[name]))
            for name in ("relay", "labeler", "plc")
        ]
        queue = Server(valkey.prepare(scratch_settings(disks[0].folder)))
        stack.callback(queue.stop)
        tables = Server(postgres.prepare(scratch_settings(disks[1].folder), _FAST))
        stack.callback(tables.stop)
        environ = pipeline_environment(folder, simulation)
        changes = {
            "RELAY_HOSTS": ways[0].url.replace("http:", "ws:"),
            "LABELER_HOSTS": ways[1].url.replace("http:", "ws:"),
            "PLC_URL": ways[2].url, "REDIS_URL": queue.program.url,
            "DATABASE_URL": tables.program.url, "DATA_DIR": str(disks[2].folder),
            "LOG_FORMAT": "json", **free_ports(),
        }  # fmt: skip
        environ |= {f"{PREFIX}{name}": value for name, value in changes.items()}
        settings = store_urls(resolve_directories(load(None, environ, {}).settings))
        relay, labeler, directory = ways
        environ |= clock.environ if clock else {}
        running = World(
            shape, folder, simulation, relay, labeler, directory, queue, tables, disks[0], disks[1],
            disks[2], clock, environ, settings,
        )  # fmt: skip
        stack.callback(running.end)
        done = running.command("db", "init")
        assert done.returncode == 0, done.stderr
        running.start()
        yield running


def free_ports() -> dict[str, str]:
    """Return settings of metrics ports that are free, those of three supervisors in a row."""
    with contextlib.ExitStack() as taken:
        found = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [each.getsockname()[1] for each in found]
        while True:
            first = taken.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            with contextlib.suppress(OSError), contextlib.ExitStack() as row:
                for number in (1, 2):
                    row.enter_context(socket.create_server(("127.0.0.1", first + number)))
                break
    names = ("INGESTER", "INDEXER", "BACKFILLER", "SUPERVISOR")
    return {f"{name}_METRICS_PORT": str(port)
            for name, port in zip(names, (*ports, first), strict=True)}  # fmt: skip
