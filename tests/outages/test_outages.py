"""Every outage is made, named by everybody, ended by the remedy that its finding names, and green.

`make outages` writes docs/outages.json, from which `make docs` makes docs/outages.md. Thresholds
are those of the product, times are seconds of this machine. It needs root, for small disks.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from rsky_pipeline.demo.processes import PipelineProcess
from rsky_pipeline.development.documents import ROOT
from rsky_pipeline.embedded.locations import run_directory
from rsky_pipeline.supervisor import client
from tests.outages.surroundings import ALL, EACH, World, world
from tests.outages.watching import PROCESS, Look, Verifier, holding, look

_SCRATCH = re.compile(r"/(?:tmp|dev/shm)/rsky-\w+-\w+")  # folders of this test
RESULTS = Path(os.environ.get("OUTAGES") or ROOT / ".pytest_cache" / "outages.json")
NAMED_SECONDS = 120.0  # until everybody has named an outage
GREEN_SECONDS = 180.0
WARM_SECONDS = 150.0  # in which the habits of the relay become known
CHANNELS = ("status", "healthz", "metrics", "verify")
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

Remedy = Callable[[World, str], str]  # given the finding's remedy; returns what was done


@dataclass(frozen=True, slots=True)
class Outage:
    """One outage: how it is made, the findings that name it, and what ends it."""

    name: str
    make: Callable[[World], object]
    kinds: tuple[str, ...]
    remedy: Remedy
    warns: bool = False  # a warning names it: the work goes on


def restart_store(which: str) -> Remedy:
    def start(running: World, _: str) -> str:
        server = running.redis if which == "redis" else running.database
        server.start()
        return f"start {'Redis' if which == 'redis' else 'PostgreSQL'}"

    return start


def doing(text: str, action: Callable[[World], object]) -> Remedy:
    """Return a remedy that is outside of this program."""

    def do(running: World, _: str) -> str:
        action(running)
        return text

    return do


def advised(which: str) -> Remedy:
    """Return the remedy that runs the command which the finding names."""
    return lambda running, remedy: f"`{running.follow(remedy, which)}`"


def fill(disk: str) -> Callable[[World], None]:
    return lambda running: getattr(running, disk).use_up_bytes()


def empty(disk: str) -> Callable[[World], None]:
    return lambda running: getattr(running, disk).make_room()


def configure(name: str, value: str) -> Callable[[World], object]:
    return lambda running: running.call("CONFIG", "SET", name, value)


def nearly_full(running: World) -> None:
    """Limit the memory of Redis to a little more than it uses."""
    memory = running.call("INFO", "memory")
    assert isinstance(memory, dict)
    running.call("CONFIG", "SET", "maxmemory", str(int(memory["used_memory"] * 1.05)))


def read_only(running: World) -> None:
    running.sql("ALTER DATABASE bsky SET default_transaction_read_only = on")
    end_sessions(running)


def writable(running: World) -> None:
    running.sql("ALTER DATABASE bsky SET default_transaction_read_only = off")
    end_sessions(running)


def end_sessions(running: World) -> None:
    running.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )


def future_cursor(stream: str, way: str) -> Callable[[World], None]:
    def make(running: World) -> None:
        host = getattr(running, way).url.removeprefix("http://")
        words = ("cursor", "set", host, "900000000", "--stream", stream, "--force")
        # A busy ingester may move it at the same moment; then the command says to try again.
        running.until(lambda: running.command(*words).returncode == 0)

    return make


def crash(running: World) -> None:
    """Kill the indexer as often as it comes up, until its supervisor calls that a crash loop."""

    def loops() -> bool:
        for each in client.find(run_directory(running.settings)):
            for process in each.status["processes"]:
                if process["role"] == "indexer":
                    if process["crash_looping"]:
                        return True
                    if process["pid"]:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(process["pid"], signal.SIGKILL)
        return False

    running.until(loops, 120)


def another_ingester(running: World) -> None:
    """Start an ingester with directories of its own, on the same Redis."""
    folder = running.folder / "second"
    environ = running.environ | {
        "RSKY_PIPELINE_DATA_DIR": str(folder), "RSKY_PIPELINE_RUN_DIR": str(folder / "run"),
        "RSKY_PIPELINE_INGESTER_METRICS_PORT": "0",
    }  # fmt: skip
    log = running.folder / "second.log"
    running.extra.append(PipelineProcess(["worker", "ingester"], environ, log))


def end_other(running: World) -> None:
    while running.extra:
        running.extra.pop().end()


def mismatch(running: World) -> None:
    """Have Redis note another database, as after a wrong database_url, and end the sessions."""
    running.call("HSET", "rsky_pipeline:installation", running.settings.indexer_group, "another")
    end_sessions(running)


def right_pair(running: World, remedy: str) -> str:
    """Tie both again as the finding says, and start what has ended for good."""
    done = [f"`{running.follow(remedy, 'db pair')}`"]
    done += [f"`{running.follow(remedy, 'restart')}`", "`rsky-pipeline restart backfiller`"]
    running.command("restart", "backfiller")
    return ", ".join(done)


def turn_clock(running: World, seconds: int) -> None:
    assert running.clock is not None
    running.clock.set_back(seconds)


def stop_indexer(running: World) -> None:
    done = running.command("stop", "--role", "indexer")
    assert done.returncode == 0, done.stderr


OUTAGES = (
    Outage("Redis is away", lambda w: w.redis.stop(), ("redis",), restart_store("redis")),
    Outage("Redis is frozen (SIGSTOP)", lambda w: w.redis.freeze(), ("redis",),
           doing("let it go on", lambda w: w.redis.thaw())),
    Outage("the disk of Redis is full", fill("redis_disk"), ("redis_cannot_save",),
           doing("make room on the disk", empty("redis_disk"))),
    Outage("the memory of Redis is nearly full", nearly_full, ("redis_memory", "redis_full"),
           doing("raise maxmemory", configure("maxmemory", "0"))),
    Outage("Redis may evict (allkeys-lru)", configure("maxmemory-policy", "allkeys-lru"),
           ("eviction",), doing("CONFIG SET maxmemory-policy noeviction",
                                configure("maxmemory-policy", "noeviction"))),
    Outage("Redis is a replica", lambda w: w.call("REPLICAOF", "127.0.0.1", "1"),
           ("redis_read_only",), doing("make it the primary again",
                                       lambda w: w.call("REPLICAOF", "NO", "ONE"))),
    Outage("PostgreSQL is away", lambda w: w.database.stop(), ("database",),
           restart_store("database")),
    Outage("PostgreSQL is frozen (SIGSTOP)", lambda w: w.database.freeze(),
           ("database", "database_conflicts"), doing("let it go on", lambda w: w.database.thaw())),
    Outage("the disk of PostgreSQL is full", fill("database_disk"), ("database_disk",),
           doing("make room on the disk", empty("database_disk"))),
    Outage("PostgreSQL is read-only", read_only, ("database_read_only",),
           doing("default_transaction_read_only = off", writable)),
    Outage("Redis and PostgreSQL are of different installations", mismatch,
           ("database", PROCESS, "pairing"), right_pair),
    Outage("the relay is away", lambda w: w.relay.close(), ("no_relay",),
           doing("the relay comes back", lambda w: w.relay.open())),
    Outage("the relay is frozen, with its socket open", lambda w: w.relay.stall(), ("no_relay",),
           doing("the relay goes on", lambda w: w.relay.go_on())),
    Outage("the relay sends no events, and answers pings",
           lambda w: w.simulation.control.fall_silent(90), ("relay_stalled",),
           doing("nothing: after 60 s of silence another connection is made", lambda _: None),
           warns=True),
    Outage("the stored cursor does not fit the relay (FutureCursor)",
           future_cursor("firehose_live", "relay"), ("cursor_refused",), advised("cursor reset")),
    Outage("the labeler is away", lambda w: w.labeler.close(), ("labeler_stalled",),
           doing("the labeler comes back", lambda w: w.labeler.open()), warns=True),
    Outage("the stored cursor does not fit the labeler (FutureCursor)",
           future_cursor("label_live", "labeler"), ("cursor_refused",), advised("cursor reset")),
    Outage("the did:plc directory is away", lambda w: w.directory.close(), ("directory",),
           doing("the directory comes back", lambda w: w.directory.open())),
    Outage("the disk of data_dir is full", fill("data_disk"), ("data_disk",),
           doing("make room on the disk", empty("data_disk"))),
    Outage("a second ingester runs on the same Redis", another_ingester, ("second_ingester",),
           doing("stop one of them", end_other)),
    Outage("the indexer ends again and again", crash, (PROCESS,), advised("restart")),
    Outage("the indexer was stopped", stop_indexer, (PROCESS,), advised("start")),
)  # fmt: skip


SLOW_CLOCK = Outage(
    "the clock of the machine is an hour slow", lambda w: turn_clock(w, 3600), ("clock",),
    doing("correct the clock", lambda w: turn_clock(w, 0)),
)  # fmt: skip


@pytest.fixture(scope="module", params=[ALL, EACH])
def running(request: pytest.FixtureRequest) -> Iterator[World]:
    """A pipeline that is well, and knows its relay; it is used by all outages of a shape."""
    with world(request.param) as found:
        began = time.monotonic()
        with Verifier(found) as verifier:
            until_green(found, verifier, ())
        if not os.environ.get("OUTAGES_COLD"):
            time.sleep(max(0.0, WARM_SECONDS - (time.monotonic() - began)))
        yield found


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda outage: outage.name.replace(" ", "-"))
def test_an_outage_is_named_by_everybody_and_ends_by_its_remedy(
    running: World, outage: Outage
) -> None:
    named_and_ended(running, outage)


@pytest.mark.parametrize("shape", [ALL, EACH])
def test_a_slow_clock_is_named_by_everybody_and_nothing_is_judged_by_it(shape: str) -> None:
    with world(shape, with_clock=True) as running:
        named_and_ended(running, SLOW_CLOCK)
        letters = running.command("dlq", "list", "--json")
        assert letters.returncode == 0, letters.stderr
        assert "future_rev" not in letters.stdout


def named_and_ended(running: World, outage: Outage) -> None:
    """Make an outage, see it named by everybody, follow the remedy; store its row."""
    with Verifier(running) as verifier:
        until_green(running, verifier, outage.kinds)
        began = time.monotonic()
        outage.make(running)
        row, remedy = observe(running, verifier, outage, began)
        done = outage.remedy(running, remedy)
        ended = time.monotonic()
        until_green(running, verifier, outage.kinds)
        row |= {"done": done, "green": round(time.monotonic() - ended, 1)}
    store(running.shape, outage.name, row)
    assert [name for name in CHANNELS if row[name] is None] == []


def observe(
    running: World, verifier: Verifier, outage: Outage, began: float
) -> tuple[dict[str, object], str]:
    """Look each second until everybody names the outage; return the row, and the remedy shown."""
    seconds: dict[str, float | None] = dict.fromkeys(CHANNELS)
    since: dict[str, float] = {}
    shown: Mapping[str, str] = {}
    while time.monotonic() - began < NAMED_SECONDS:
        found = look(running)
        now = time.monotonic() - began
        # A run of verify that began before the outage may end after it.
        checks = verifier.kinds() if verifier.began >= began else {}
        said = {"status": found.status, "healthz": found.healthz, "metrics": found.metrics,
                "verify": checks}  # fmt: skip
        for channel, kinds in said.items():
            named = [kinds[kind] for kind in outage.kinds if kind in kinds]
            if seconds[channel] is None and ("fail" in named or (outage.warns and named)):
                seconds[channel] = round(now, 1)
        since = {name: since.get(name, now) for name, kinds in found.conditions.items()
                 if kinds & set(outage.kinds)}  # fmt: skip
        for report in (found.reports[kind] for kind in outage.kinds if kind in found.reports):
            if not shown or (shown["verdict"], report["verdict"]) == ("warn", "fail"):
                shown = report
        shown_as = ("fail", "warn") if outage.warns else ("fail",)
        if None not in seconds.values() and since and shown.get("verdict") in shown_as:
            break
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began - now)))
    fires = {name: at + holding(name) for name, at in since.items()}
    first = min(fires, key=lambda name: fires[name], default="")
    row: dict[str, object] = {
        **seconds, "alert": first, "alert_seconds": round(fires[first]) if first else None,
        "finding": shown.get("kind", PROCESS), "verdict": shown.get("verdict", "fail"),
        "title": shown.get("title", ""), "figure": shown.get("figure", ""),
        "remedy": shown.get("remedy", ""),
    }  # fmt: skip
    return row, f"{shown.get('figure', '')}; {shown.get('remedy', '')}"


def until_green(running: World, verifier: Verifier, kinds: tuple[str, ...]) -> None:
    """Return when `status`, health ports, metrics and a new `verify` find nothing wrong."""
    began = time.monotonic()
    deadline = began + GREEN_SECONDS
    while True:
        found = look(running)
        report = verifier.latest
        fresh = verifier.began >= began and report is not None
        if is_green(found, kinds) and fresh and report is not None and report.ok:
            return
        if time.monotonic() > deadline:
            failed = [(c.check, c.figure) for c in report.of("fail")] if report else []
            raise AssertionError(f"not green after {GREEN_SECONDS:.0f} s: {found} {failed}")
        time.sleep(1.0)


def is_green(found: Look, kinds: tuple[str, ...]) -> bool:
    said = (found.status, found.healthz, found.metrics)
    fails = any("fail" in each.values() for each in said)
    named = any(kind in each for each in said for kind in kinds)
    return found.healthy and set(found.codes) == {200} and not fails and not named


def store(shape: str, name: str, row: dict[str, object]) -> None:
    """Put a row into the file of results, in which earlier ones stay."""
    RESULTS.parent.mkdir(exist_ok=True)
    try:
        results = json.loads(RESULTS.read_text())
    except (OSError, ValueError):
        results = {}
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    ).stdout.strip()  # fmt: skip
    results |= {"date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit}
    rows = results.setdefault("outages", {}).setdefault(name, {})
    rows[shape] = row
    text = _SCRATCH.sub("/srv", json.dumps(results, indent=1))
    RESULTS.write_text(f"{text}\n")
