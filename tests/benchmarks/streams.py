"""Appending to a stream and consuming it, each beside its floor.

The floor is the least that the same client and the same server can do with the same entries: XADD
in pipelines, XREADGROUP and XACK. Beyond it, an append moves cursors and fields in the same step,
and a consumer removes finished entries.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.event import EVENT_FIELD
from tests import stores
from tests.benchmarks.processes import processor_seconds
from tests.benchmarks.report import Report
from tests.benchmarks.traffic import Traffic
from tests.consumers import GroupReader

ENTRIES = 40_000
ROUNDS = 3
BATCH = 500
PAGE = 1_000
_PARTS = ("client", "server")


def bench_streams(report: Report) -> None:
    """Measure four pieces of work in turn, several times, by processor time."""
    payloads = list(Traffic(10_000).events(0, ENTRIES, historical=False))
    size = sum(map(len, payloads)) / ENTRIES
    report.figure("size of an entry", size, "bytes")
    seconds, used = defaultdict[str, float](float), defaultdict[tuple[str, str], float](float)
    with stores.running_valkey() as url:
        store = connect(url, name="bench")
        client: Any = stores.redis_client(url)
        server = int(client.info("server")["process_id"])
        client.response_callbacks.clear()  # as those of `Store` are
        work: dict[str, Callable[[], None]] = {
            "append": lambda: _append(store, payloads),
            "consume": lambda: _consume(store),
            "XADD": lambda: _bare_append(client, payloads),
            "XREADGROUP and XACK": lambda: _bare_consume(client),
        }
        for _ in range(ROUNDS):
            for name, action in work.items():
                before = time.perf_counter(), time.thread_time(), processor_seconds(server)
                action()
                seconds[name] += time.perf_counter() - before[0]
                used[name, "client"] += time.thread_time() - before[1]
                used[name, "server"] += processor_seconds(server) - before[2]
        client.close()
        store.close()
    count = ENTRIES * ROUNDS
    for name, its_floor in (("append", "XADD"), ("consume", "XREADGROUP and XACK")):
        report.rate(f"{name}: entries", count, seconds[name])
        for part in _PARTS:
            cost, floor = used[name, part] / count * 1e6, used[its_floor, part] / count * 1e6
            report.figure(f"  {name}: processor time of the {part}", cost, "us")
            report.figure(f"  floor: bare {its_floor}", floor, "us")
            report.ratio(f"{name}, {part}, of its floor", cost, floor)


def _append(store: Store, payloads: Sequence[bytes]) -> None:
    for start in range(0, ENTRIES, BATCH):
        part = payloads[start : start + BATCH]
        append(store, [Entry("ours", EVENT_FIELD, payload) for payload in part])


def _consume(store: Store) -> None:
    reader, count = GroupReader(store, "ours", "g", "c"), 0
    reader.ensure()
    while page := reader.read_new(PAGE, 0):
        count += len(page)
        reader.acknowledge([item.id for item in page])
    assert count == ENTRIES


def _bare_append(client: Any, payloads: Sequence[bytes]) -> None:
    for start in range(0, ENTRIES, BATCH):
        pipeline = client.pipeline(transaction=False)
        for payload in payloads[start : start + BATCH]:
            pipeline.execute_command("XADD", "bare", "*", EVENT_FIELD, payload)
        pipeline.execute()


def _bare_consume(client: Any) -> None:
    """Read and acknowledge; the stream goes at once in the end, so that each round begins alike."""
    client.execute_command("XGROUP", "CREATE", "bare", "g", "0")
    count = 0
    while found := client.execute_command(
        "XREADGROUP", "GROUP", "g", "c", "COUNT", PAGE, "STREAMS", "bare", ">"
    ):
        ids = [entry[0] for entry in found[b"bare"]]
        client.execute_command("XACK", "bare", "g", *ids)
        count += len(ids)
    assert count == ENTRIES
    client.execute_command("UNLINK", "bare")
