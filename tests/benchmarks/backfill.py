"""From the bytes of CARs to `firehose_backfill`, by one worker and by two."""

import multiprocessing
import re
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.atproto.car import CarReader, write_car
from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.mst import Tree
from rsky_pipeline.backfiller.store import Output
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.repos.blocks import Blocks, Budget
from rsky_pipeline.repos.entries import closing_entry, create_entries
from rsky_pipeline.repos.repo import list_paths, open_repo
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.runtime.threads import ease_collector
from rsky_pipeline.streams.connection import connect
from tests.benchmarks.processes import processor_seconds
from tests.benchmarks.report import Report
from tests.stores import running_valkey

DID = "did:plc:" + "a" * 24
TIME = "2026-01-01T00:00:00.000Z"
RECORDS = 2_000  # of each repo
REPOS = 12  # for each worker
_PART = 65_536


def bench_backfill(report: Report) -> None:
    """Report records a second, and the processor time of the workers and of Valkey for each."""
    car = make_car(RECORDS)
    for workers in (1, 2):
        _bring_in_all(report, car, workers)


def _bring_in_all(report: Report, car: bytes, workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    with running_valkey() as url:
        store = connect(url, name="bench")
        found = re.search(rb"process_id:(\d+)", store.call("INFO", "server"))
        assert found is not None
        server = int(found[1])
        ready, go, used = context.Barrier(workers + 1), context.Event(), context.SimpleQueue()
        processes = [
            context.Process(target=run_worker, args=(url, car, ready, go, used))
            for _ in range(workers)
        ]
        for process in processes:
            process.start()
        ready.wait()
        began, before = time.perf_counter(), processor_seconds(server)
        go.set()
        cost = sum(used.get() for _ in processes)
        elapsed, by_server = time.perf_counter() - began, processor_seconds(server) - before
        for process in processes:
            process.join()
        queued = int(store.call("XLEN", "firehose_backfill"))
        store.close()
    assert queued == workers * REPOS * (RECORDS + 1)
    report.rate(f"CAR bytes to firehose_backfill, workers: {workers}", queued, elapsed)
    report.figure("  processor time, backfiller", cost / queued * 1e6, "us")
    report.figure("  processor time, Valkey", by_server / queued * 1e6, "us")


def make_car(count: int) -> bytes:
    """Return a repo of likes, the most frequent record, each of about 230 bytes."""
    records = {
        f"app.bsky.feed.like/3k{number:011d}": encode(
            {
                "$type": "app.bsky.feed.like",
                "subject": {
                    "uri": f"at://did:plc:{'b' * 24}/app.bsky.feed.post/3k{number:011d}",
                    "cid": str(Cid.of(b"%d" % number)),
                },
                "createdAt": TIME,
            }
        )
        for number in range(count)
    }
    tree = Tree.build({path: Cid.of(block) for path, block in records.items()})
    key = PrivateKey.from_seed("k256", b"bench")
    commit = sign_commit(DID, "3jzfcijpj2z2a", tree.root, key)
    blocks = [(Cid.of(commit), commit), *tree.blocks()]
    return write_car(
        [Cid.of(commit)], [*blocks, *((Cid.of(block), block) for block in records.values())]
    )


def run_worker(url: str, car: bytes, ready: Any, go: Any, used: Any) -> None:
    """Bring in the same repo again and again, from its bytes on; put the seconds that it took."""
    ease_collector()
    ready.wait()
    go.wait()
    before = time.process_time()
    trio.run(bring_in, url, car)
    used.put(time.process_time() - before)


async def bring_in(url: str, car: bytes) -> None:
    link = Link(partial(connect, url, name="bench"), purpose="append")
    output = Output(link, 0, BackfillerMetrics(CollectorRegistry()))

    async def one(folder: Path) -> None:
        with closing(Blocks(Budget(2**28), Budget(2**28), folder)) as blocks:
            reader = CarReader()
            for start in range(0, len(car), _PART):
                blocks.add(reader.feed(car[start : start + _PART]))
            repo = open_repo(reader.finish(), blocks, DID, "", len(car))
            for chunk in create_entries(repo, list_paths(repo), ("app.bsky.",), TIME):
                if chunk.is_last:
                    chunk.entries.append(closing_entry(repo, TIME))
                await output.append(chunk.entries)

    with TemporaryDirectory() as folder:
        async with trio.open_nursery() as nursery:
            for _ in range(REPOS):
                nursery.start_soon(one, Path(folder))
    link.close()
