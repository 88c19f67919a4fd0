"""`make bench`: throughput of the parts, as figures and ratios of one run."""

import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import TypeVar

from rsky_pipeline.atproto import cbor, dagjson
from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.commit import parse_commit, verify_commit
from rsky_pipeline.atproto.crypto import PublicKey
from rsky_pipeline.atproto.frame import CommitMessage, decode_frame
from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.runtime.threads import ease_collector, take_turns_quickly
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import connect
from tests import stores
from tests.benchmarks.backfill import bench_backfill
from tests.benchmarks.ingest import bench_ingest
from tests.benchmarks.load import bench_load
from tests.benchmarks.pipeline import bench_pipeline
from tests.consumers import GroupReader

Result = TypeVar("Result")
FRAMES = 3_000
BATCH = 500
ENTRIES = 50_000
TARGET = 5_000
LOAD_TARGET = 15_000


def main() -> None:
    """Run every benchmark and print a line each."""
    ease_collector()  # both as in every worker
    take_turns_quickly()
    paces = [pace()]
    world = World(1, 200, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(10)
    frames, seconds = timed(lambda: [world.step() for _ in range(FRAMES)])
    report("simulator: events made, signed and encoded", FRAMES, seconds)
    _, decode = timed(lambda: [convert(frame) for frame in frames])
    report("frames to record JSON, block hashes checked", FRAMES, decode)
    keys = {account.did: account.key.public for account in world.accounts}
    _, signatures = timed(lambda: [check(keys, frame) for frame in frames])
    report("commit signatures checked", FRAMES, signatures)
    print(f"  a signature costs {signatures / decode:.2f} times a conversion")
    with stores.running_valkey() as url:
        bench_streams(url)
    with stores.running_valkey() as url:
        bench_ingest(url, report)
    paces.append(pace())
    for workers in (1, 2):
        count, elapsed = bench_backfill(workers)
        report(f"CAR bytes to firehose_backfill, workers: {workers}", count, elapsed)
    paces.append(pace())
    for verify in ("none", "signature", "full"):
        count, elapsed = bench_pipeline(verify)
        report(f"relay to rows, all roles, verify = {verify}", count, elapsed)
        print(f"  {count / elapsed / TARGET:.2f} times the {TARGET:,} events/s that are asked for")
    paces.append(pace())
    loaded = bench_load()
    report("CAR directory to rows, load", loaded.records, loaded.seconds)
    ratio = loaded.records / loaded.seconds / LOAD_TARGET
    print(f"  {ratio:.2f} times the {LOAD_TARGET:,} records/s that are asked for")
    shares = ", ".join(f"{one / max(paces):.2f}" for one in paces)
    print(f"the machine's pace before each group, as a share of its best: {shares}")


def pace() -> float:
    """Return how fast this machine is at the moment: other guests of its host change that."""
    samples = [timed(lambda: [sha256(b"%d" % number).digest() for number in range(50_000)])[1]
               for _ in range(9)]  # fmt: skip
    return 1.0 / sorted(samples)[4]


def bench_streams(url: str) -> None:
    """Append and consume entries of 1 KB in batches."""
    store = connect(url, name="bench")
    batch = [Entry("bench", b"event", b"x" * 1_000)] * BATCH

    def produce() -> None:
        for _ in range(ENTRIES // BATCH):
            append(store, batch)

    def consume() -> None:
        while page := reader.read_new(1_000, 0):
            reader.acknowledge([item.id for item in page])

    _, writing = timed(produce)
    report("entries appended to a stream", ENTRIES, writing)
    reader = GroupReader(store, "bench", "g", "c")
    reader.ensure()
    _, reading = timed(consume)
    report("entries read, acknowledged and deleted", ENTRIES, reading)
    print(f"  consuming costs {reading / writing:.2f} times appending")
    store.close()


def convert(frame: bytes) -> int:
    """Do with a frame what the ingester does, up to the JSON of its records."""
    message = decode_frame(frame)
    if not isinstance(message, CommitMessage):
        return 0
    blocks = read_car(message.blocks).blocks
    return sum(
        len(dagjson.to_json(cbor.decode(blocks[op.cid])))
        for op in message.ops
        if op.cid is not None
    )


def check(keys: Mapping[str, PublicKey], frame: bytes) -> bool:
    """Check a commit's signature."""
    message = decode_frame(frame)
    if not isinstance(message, CommitMessage):
        return False
    commit = parse_commit(read_car(message.blocks).blocks[message.commit])
    return verify_commit(commit, keys[message.did])


def timed(action: Callable[[], Result]) -> tuple[Result, float]:
    """Run something and return its result and the seconds that it took."""
    begin = time.perf_counter()
    result = action()
    return result, time.perf_counter() - begin


def report(what: str, count: int, seconds: float) -> None:
    """Print a rate."""
    print(f"{what:<48} {count / seconds:>10,.0f} /s", flush=True)


if __name__ == "__main__":
    main()
