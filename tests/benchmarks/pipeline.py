"""The whole pipeline, from the relay's socket to committed rows."""

import time

from rsky_pipeline.streams.append import read_cursor
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import FIREHOSE_LIVE, cursor_key
from tests.pipelines import Running, pipeline_on

EVENTS = 120_000
PAUSE = 0.1


def bench_pipeline(verify: str) -> tuple[int, float]:
    """Let a relay send all it has and wait until all of it is rows.

    Returns how many events, and the seconds from the ingester's readiness to the last
    acknowledgement; the indexer's start is within them. The simulator has made the events before.
    """
    options = (
        "--rate=0", f"--prepare={EVENTS}", f"--events={EVENTS}", "--history=0",
        "--buffer-events=0",
    )  # fmt: skip
    changes = {"RSKY_PIPELINE_VERIFY": verify, "RSKY_PIPELINE_ENUMERATE_REPOS": "false"}
    with pipeline_on(*options, **changes) as running:
        running.wait_for(lambda: "ingester-1" in running.pids())
        begin = time.perf_counter()
        wait_until_acknowledged(running)
        seconds = time.perf_counter() - begin
        if differences := running.differences():
            raise AssertionError(f"the rows differ: {differences}")
        return running.simulation.control.progress().published, seconds


def wait_until_acknowledged(running: Running) -> None:
    """Return when the ingester has read everything and the indexer has acknowledged it."""
    store = connect(running.settings.redis_url or "", name="bench")
    key = cursor_key(FIREHOSE_LIVE, running.simulation.relay)
    while True:
        last = running.simulation.control.progress()
        live = inspect(store, FIREHOSE_LIVE)
        waiting = sum(group.lag + group.pending for group in live.groups)
        is_read = last.published >= EVENTS and int(read_cursor(store, key) or 0) >= last.seq
        if is_read and live.groups and not waiting:
            break
        time.sleep(PAUSE)
    store.close()
