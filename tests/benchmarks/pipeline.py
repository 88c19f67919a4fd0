"""The whole pipeline, from the relay's socket to committed rows."""

import time

from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.demo.figures import NOT_LISTED
from rsky_pipeline.streams.append import read_cursor
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import FIREHOSE_LIVE, cursor_key
from tests.benchmarks.processes import cpu_seconds, memory_bytes
from tests.benchmarks.report import Report
from tests.pipelines import Running, pipeline_on

EVENTS = 100_000
ACCOUNTS = 1_000
PAUSE = 0.1
TARGET = 8_000  # events a second on two cores, with full verification
SETTLE_SECONDS = 300  # handles are looked up, and repos that became active again are fetched
# As on a day when all repos are known: none is fetched for having been unknown. Nor is one for a
# change of status or #sync, of which the simulator makes many more than the real network does.
STEADY = {
    "RSKY_PIPELINE_ENUMERATE_REPOS": "false",
    "RSKY_PIPELINE_DISCOVER_REPOS_PER_MINUTE": "0",
}


def bench_pipeline(report: Report) -> None:
    """Let a relay send all it has and wait until all of it is rows, with each verification."""
    for verify in ("none", "signature", "full"):
        _follow(report, verify)


def _follow(report: Report, verify: str) -> None:
    """Measure from the first event to the last acknowledgement.

    The simulator has made the events before, and sends them as fast as they are taken.
    """
    options = (
        "--rate=0", f"--prepare={EVENTS}", f"--events={EVENTS}", "--history=0",
        f"--accounts={ACCOUNTS}", "--buffer-events=0", "--hold", "--calm",
    )  # fmt: skip
    with pipeline_on(*options, **STEADY, RSKY_PIPELINE_VERIFY=verify) as running:
        running.wait_for(lambda: {"ingester-1", "indexer-1"} <= running.pids().keys())
        root = [running.process.pid]
        begin, before = time.perf_counter(), cpu_seconds(root)
        running.simulation.control.release()
        wait_until_acknowledged(running)
        seconds, used = time.perf_counter() - begin, cpu_seconds(root)
        used.subtract(before)
        report.rate(f"relay to rows, all roles, verify = {verify}", EVENTS, seconds)
        report.ratio(f"of the {TARGET:,} events/s that are asked for", EVENTS / seconds, TARGET)
        for part, value in used.most_common():
            if value > 0:
                report.figure(f"  processor time, {part}", value / EVENTS * 1e6, "us")
        report.figure("  processor time of all processes", used.total() / EVENTS * 1e6, "us")
        memory = memory_bytes(root)
        for part in ("supervisor", "ingester", "indexer", "backfiller"):
            report.figure(f"  memory (PSS), {part}", memory[part] / 1e6, "MB")
        running.wait_for(lambda: is_settled(running), SETTLE_SECONDS)
        if differences := running.differences():
            raise AssertionError(f"the rows differ: {differences}")


def is_settled(running: Running) -> bool:
    """Tell whether nothing is on its way, such as accounts that are purged once they are gone."""
    waiting = running.observer.waiting(running.simulation.control.progress())
    return not set(waiting) - {NOT_LISTED}


def wait_until_acknowledged(running: Running) -> None:
    """Return when the ingester has read everything and the indexer has acknowledged it."""
    store = connect(running.settings.redis_url or "", name="bench")
    key = cursor_key(FIREHOSE_LIVE, parse_endpoint(running.simulation.relay).key)
    while True:
        last = running.simulation.control.progress()
        live = inspect(store, FIREHOSE_LIVE)
        waiting = sum(group.lag + group.pending for group in live.groups)
        is_read = last.published >= EVENTS and int(read_cursor(store, key) or 0) >= last.seq
        if is_read and live.groups and not waiting:
            break
        time.sleep(PAUSE)
    store.close()
