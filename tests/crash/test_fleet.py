"""5,000 repos on 20 hosts, most of which misbehave, and a worker that is killed at any moment."""

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from rsky_pipeline.database.connection import Database
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.dead_letters import list_dead_letters
from rsky_pipeline.streams.names import REPO_BACKFILL, REPO_STREAMS
from rsky_pipeline.streams.repo_job import REPO_FIELD, RepoJob, decode_repo_job, encode_repo_job
from rsky_pipeline.streams.waiting import count_waiting
from tests.crash.fleet import COMPLETE, GONE, REV, Behaviour, Fleet

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

HOSTS: list[tuple[Behaviour, int]] = [
    ("hanging", 30), ("broken", 60), ("resetting", 60), ("looping", 60), ("endless", 20),
    ("lying", 60), ("forging", 60), ("cut", 60), ("gap", 60), ("varint", 60), ("bomb", 60),
    ("gone", 100), ("slow", 60), ("limited", 300), ("down_for_a_while", 300), ("redirecting", 150),
    ("healthy", 875), ("healthy", 875), ("healthy", 875), ("healthy", 875),
]  # fmt: skip
HOST_TROUBLE = {"server_error", "unreachable", "timeout", "host_parked"}
REASONS: dict[str, set[str]] = {
    "hanging": HOST_TROUBLE,
    "broken": HOST_TROUBLE,
    "resetting": HOST_TROUBLE,
    "looping": {"misled", "host_parked"},
    "endless": {"too_big"},
    "lying": {"wrong_did"},
    "forging": {"bad_signature"},
    "cut": {"truncated"},
    "gap": {"incomplete"},
    "varint": {"invalid_car"},
    "bomb": {"malformed", "host_parked"},
    "gone": set(GONE),
}
OF_HOST = frozenset({"hanging", "broken", "resetting", "looping", "bomb"})  # fmt: skip
CONCURRENCY, RATE, MEMORY_MB = 4, 100, 16
KILLS = 4


def settings(fleet: Fleet, redis_url: str, database_url: str, folder: Path) -> dict[str, str]:
    """Return the environment of a worker."""
    values = {
        "redis_url": redis_url, "database_url": database_url, "data_dir": folder,
        "run_dir": folder / "run", "plc_url": fleet.plc_url, "allow_private_hosts": "true",
        "backfiller_metrics_port": 0, "backfiller_concurrency": 20,
        "backfiller_host_concurrency": CONCURRENCY, "backfiller_host_rate": RATE,
        "backfiller_directory_rate": 5_000, "backfiller_memory_mb": MEMORY_MB,
        "backfiller_max_repo_mb": 1, "backfiller_http_timeout_seconds": 2,
        "backfiller_max_attempts": 8, "backfiller_host_patience_hours": 0,
        "backfiller_retry_initial_ms": 200,
        "backfiller_retry_max_ms": 2_000, "claim_idle_seconds": 2, "max_deliveries": 12,
        "log_level": "warning",
    }  # fmt: skip
    return {f"RSKY_PIPELINE_{name.upper()}": str(value) for name, value in values.items()}


class Lives:
    """A worker that is started again whenever it was killed."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        self._environ = environ
        self._log = log
        self.process = self._start()
        self.peaks: list[int] = []

    def kill(self) -> None:
        self.peaks.append(self.peak())
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = self._start()

    def peak(self) -> int:
        """Return the most memory that this life has used, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def end(self) -> None:
        self.peaks.append(self.peak())
        self.process.terminate()
        self.process.wait(30)

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "rsky_pipeline", "worker", "backfiller"]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, env=self._environ, stdout=log, stderr=log)


def queue(store: Store, fleet: Fleet) -> None:
    """Queue all accounts host by host, the worst hosts first."""
    jobs = [
        Entry(REPO_BACKFILL, REPO_FIELD, encode_repo_job(RepoJob(did, "", "", None, True)))
        for did in fleet.accounts
    ]
    for start in range(0, len(jobs), 500):
        append(store, jobs[start : start + 500])


def unsettled(store: Store) -> int:
    lengths: list[int] = [store.call("XLEN", name) for name in REPO_STREAMS]
    return sum(lengths) + count_waiting(store)


def emitted(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Return all events by account, in the order in which they were queued."""
    events: dict[str, list[dict[str, Any]]] = {}
    for _, body in store.call("XRANGE", "firehose_backfill", "-", "+"):
        event = json.loads(body[1])
        events.setdefault(event["did"], []).append(event)
    return events


@asynccontextmanager
async def served(fleet: Fleet) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(fleet.serve)
        yield
        nursery.cancel_scope.cancel()


def check_events(store: Store, fleet: Fleet) -> None:
    events = emitted(store)
    for did, (account, host) in fleet.accounts.items():
        found = events.pop(did, [])
        if host.behaviour not in COMPLETE:
            assert found == [], f"{host.behaviour}: {did} was queued"
            continue
        paths = set(account.records())
        assert {f"{e['collection']}/{e['rkey']}" for e in found if e["type"] == "create"} == paths
        assert (found[-1]["type"], found[-1]["rev"], found[-1]["complete"]) == ("repo", REV, True)
    assert events == {}


def check_outcomes(store: Store, fleet: Fleet, database_url: str) -> None:
    with Database.connect(database_url, name="test") as database:
        rows = database.query("SELECT did, status, reason, rev FROM rsky_pipeline.backfill_repo")
    outcomes = {did: (status, reason, rev) for did, status, reason, rev in rows}
    assert outcomes.keys() == fleet.accounts.keys()
    failed = set()
    for did, (account, host) in fleet.accounts.items():
        status, reason, rev = outcomes[did]
        if host.behaviour in COMPLETE:
            assert (status, reason, rev) == ("done", None, REV), host.behaviour
        elif host.behaviour == "gone":
            assert (status, reason) == ("unavailable", GONE[account.number % len(GONE)])
        elif host.behaviour in OF_HOST:  # left to the next listing, since nobody had a repo of it
            assert status == "unavailable", host.behaviour
            assert reason in REASONS[host.behaviour], host.behaviour
        else:
            assert status == "failed", host.behaviour
            assert reason in REASONS[host.behaviour], host.behaviour
            failed.add(did)
    letters = list_dead_letters(store, REPO_BACKFILL, count=10_000)
    buried = Counter(decode_repo_job(letter.fields[REPO_FIELD]).did for letter in letters)
    assert buried.keys() == failed
    assert all(letter.error for letter in letters)


def check_hosts(fleet: Fleet) -> None:
    for host in fleet.hosts:
        assert host.times, f"{host.behaviour} was never asked"
        if host.behaviour != "hanging":  # it does not notice that a client has left
            assert host.most_in_flight <= CONCURRENCY, host.behaviour
        # In any second no more than the rate and what may be saved up, for each life of a worker.
        allowed = RATE + 2 * CONCURRENCY
        lives = 1 + KILLS
        for first, time in enumerate(host.times):
            count = sum(1 for other in host.times[first : first + lives * allowed + 1]
                        if other < time + 1.0)  # fmt: skip
            assert count <= allowed + CONCURRENCY * KILLS, host.behaviour
        if host.behaviour == "limited":
            assert host.refused <= len(host.times) // 10


async def test_5000_repos_on_20_hosts_survive_a_worker_that_is_killed(
    clean_redis: str, schema_database: str, tmp_path: Path
) -> None:
    fleet = Fleet(HOSTS)
    assert (len(fleet.hosts), len(fleet.accounts)) == (20, 5_000)
    store = connect(clean_redis, name="test")
    queue(store, fleet)
    choose = random.Random()
    async with served(fleet):
        environ = settings(fleet, clean_redis, schema_database, tmp_path)
        lives = Lives(environ, tmp_path / "worker.log")
        try:
            with trio.fail_after(500):
                for _ in range(KILLS):
                    await trio.sleep(choose.uniform(2.0, 6.0))
                    lives.kill()
                    fleet.client_was_killed()
                while unsettled(store):
                    await trio.sleep(0.2)
        finally:
            lives.end()
    check_events(store, fleet)
    check_outcomes(store, fleet, schema_database)
    check_hosts(fleet)
    # A worker without any repo takes about 90 MB.
    assert max(lives.peaks) < (120 + 4 * MEMORY_MB) * 1024 * 1024, lives.peaks
    store.close()
