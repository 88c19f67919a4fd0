"""`make bench`: what the parts do in a second and cost, as figures and ratios of one run.

`BENCH=index,load` selects; `BENCH_ROWS=10000000` makes the large database larger.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from rsky_pipeline.atproto import cbor, dagjson
from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.commit import parse_commit, verify_commit
from rsky_pipeline.atproto.crypto import PublicKey
from rsky_pipeline.atproto.frame import CommitMessage, decode_frame
from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.runtime.threads import ease_collector, take_turns_quickly
from tests.benchmarks.backfill import bench_backfill
from tests.benchmarks.identities import bench_identities
from tests.benchmarks.index import bench_index
from tests.benchmarks.ingest import bench_ingest
from tests.benchmarks.load import bench_load
from tests.benchmarks.pipeline import bench_pipeline
from tests.benchmarks.report import Report
from tests.benchmarks.streams import bench_streams

Result = TypeVar("Result")
FRAMES = 3_000


def main() -> None:
    """Run the selected benchmarks, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    arguments = parser.parse_args()
    selected = [name for name in os.environ.get("BENCH", "").split(",") if name] or [*BENCHMARKS]
    if unknown := set(selected) - set(BENCHMARKS):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    ease_collector()  # both as in every worker
    take_turns_quickly()
    report, paces = Report(), []
    for report.group in selected:
        paces.append(pace())
        BENCHMARKS[report.group](report)
    report.group = "machine"
    for name, one in zip(selected, paces, strict=True):
        report.ratio(f"the machine's pace before {name}, of its best", one, max(paces))
    if arguments.json:
        report.write(arguments.json)


def pace() -> float:
    """Return how fast this machine is at the moment: other guests of its host change that."""
    samples = [timed(lambda: [sha256(b"%d" % number).digest() for number in range(50_000)])[1]
               for _ in range(9)]  # fmt: skip
    return 1.0 / sorted(samples)[4]


def frames(report: Report) -> None:
    """Convert simulated frames with the pure readers, and check their signatures."""
    world = World(1, 200, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(10)
    made, seconds = timed(lambda: [world.step() for _ in range(FRAMES)])
    report.rate("simulator: events made, signed and encoded", FRAMES, seconds)
    _, decode = timed(lambda: [convert(frame) for frame in made])
    report.rate("frames to record JSON, block hashes checked", FRAMES, decode)
    keys = {account.did: account.key.public for account in world.accounts}
    _, signatures = timed(lambda: [check(keys, frame) for frame in made])
    report.rate("commit signatures checked", FRAMES, signatures)
    report.ratio("a signature, of a conversion", signatures, decode)


BENCHMARKS: Mapping[str, Callable[[Report], None]] = {
    "frames": frames, "streams": bench_streams, "ingest": bench_ingest, "backfill": bench_backfill,
    "pipeline": bench_pipeline, "load": bench_load, "index": bench_index,
    "identities": bench_identities,
}  # fmt: skip


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


if __name__ == "__main__":
    main()
