"""Frames of a relay into the streams, in one process: each way of verification, side by side.

The floor of full verification is what the same frames take in C alone: the signature by
libsecp256k1, and decoding, hashes and operations in `compiled.prove`.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.atproto import compiled
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.frame import CommitMessage, decode_frame
from rsky_pipeline.atproto.identity import DidDocument, parse_did_document
from rsky_pipeline.configuration.endpoints import HostKey
from rsky_pipeline.configuration.settings import Verify
from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.ingester.commits.convert import RepoConverter
from rsky_pipeline.ingester.commits.relays import RelayDedup
from rsky_pipeline.ingester.commits.resync import Resyncs
from rsky_pipeline.ingester.commits.signatures import SignatureVerifier
from rsky_pipeline.ingester.commits.states import REPO_KEYS, RepoStates, reader
from rsky_pipeline.ingester.frames import FrameCounters, RawDeadLetters
from rsky_pipeline.ingester.pipeline import Admission, FrameIntake, SharedState
from rsky_pipeline.ingester.report import FeedReport
from rsky_pipeline.ingester.sequence import GapWatch, SeqGate
from rsky_pipeline.ingester.writer import BatchRule, Writer
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.names import FIREHOSE_LIVE
from tests.benchmarks.report import Report
from tests.data_frames import corpus_documents, corpus_frames
from tests.stores import running_valkey

MODES: tuple[Verify, ...] = ("none", "signature", "full")
ROUNDS = 100
_AT_ONCE = 100  # frames that a busy socket gives at once
_RELAY = HostKey("relay.test")


class Documents:
    """A directory that knows the accounts of the frames."""

    def __init__(self, documents: dict[str, DidDocument]) -> None:
        self._documents = documents

    async def resolve(self, did: str, force: bool = False) -> DidDocument:
        """Return an account's document."""
        await trio.lowlevel.checkpoint()
        return self._documents[did]

    def forget(self, did: str) -> None:
        """Nothing is cached."""

    def known(self, did: str, force: bool = False) -> DidDocument | None:
        """Return an account's document."""
        return self._documents.get(did)


def bench_ingest(report: Report) -> None:
    """Measure every mode on real frames where there are any, else on simulated ones."""
    origin, frames, documents = _frames()
    spent = {}
    signature, decoding = _floor(report, frames, documents)
    with running_valkey() as url:
        for mode in MODES:
            wall, processor, main = trio.run(_ingest, url, mode, frames, documents)
            count = len(frames) * ROUNDS
            spent[mode] = processor / count * 1e6
            report.rate(f"{origin} frames to streams, verify = {mode}", count, wall)
            report.figure("  processor time of the process, a frame", spent[mode], "us")
            report.figure("  of it in the main thread", main / count * 1e6, "us")
            report.ratio("of a signature's time in libsecp256k1", spent[mode], signature)
    report.ratio("full verification, of none", spent["full"], spent["none"])
    report.ratio("full verification, of its floor", spent["full"], signature + decoding)


def _floor(report: Report, frames: list[bytes], documents: Documents) -> tuple[float, float]:
    """Measure a signature, and decoding with hashes and operations, each in us a commit.

    Frames of P-256 count as those without a key: their signatures are checked elsewhere.
    """
    messages = [message for message in map(decode_frame, frames) if type(message) is CommitMessage]
    key, digest = PrivateKey.from_seed("k256", b"floor"), bytes(range(32))
    held, signed = key.public.secp256k1, compiled.sign(key.secret, digest)
    if held is None or signed is None:
        raise SystemExit("the compiled readers could not be built: see docs/dependencies.md")
    signature = _best(lambda: compiled.verify(held, digest, signed), 500)
    given = [(message, message.ops, None) for message in messages]
    decoding = _best(lambda: compiled.prove(given, 2, 1 << 24), 20) / len(given)
    report.figure("libsecp256k1, a signature", signature, "us")
    report.figure("decoding, hashes and operations of a commit in C", decoding, "us")
    keys = [documents.known(message.did) for message in messages]
    proven = [
        (message, message.ops, found.signing_key.secp256k1 if found and found.signing_key else None)
        for message, found in zip(messages, keys, strict=True)
    ]
    for threads in (1, 2):
        wall = _in_threads(proven, threads)
        report.rate(f"commits proven in C, threads = {threads}", threads * 10 * len(proven), wall)
    return signature, decoding


def _best(call: Callable[[], object], times: int) -> float:
    """Return the processor time of a call in us, the best of some rounds of many."""
    best = float("inf")
    for _ in range(10):
        begin = time.thread_time()
        for _ in range(times):
            call()
        best = min(best, (time.thread_time() - begin) / times * 1e6)
    return best


def _in_threads(given: Sequence[tuple[CommitMessage, Sequence[object], bytes | None]],
                threads: int) -> float:  # fmt: skip
    """Return the seconds in which each of some threads proves commits ten times, 64 at once."""

    def work() -> None:
        for _ in range(10):
            for start in range(0, len(given), 64):
                compiled.prove(given[start : start + 64], 2, 1 << 24)

    with ThreadPoolExecutor(threads) as pool:
        begin = time.perf_counter()
        for done in [pool.submit(work) for _ in range(threads)]:
            done.result()
        return time.perf_counter() - begin


async def _ingest(
    url: str, mode: Verify, frames: list[bytes], documents: Documents
) -> tuple[float, float, float]:
    """Take all frames in each round, as if for the first time, until they are written.

    An ingester begins once and takes frames for weeks, so that neither its beginning counts nor
    the first round, which looks up the keys and makes the metrics.
    """
    store = connect(url, name="bench")
    store.call("FLUSHDB")
    states, output = (Link(lambda: connect(url, name="bench"), purpose="bench") for _ in "12")
    shared = SharedState(RepoStates(reader(states)), RelayDedup([_RELAY]), Resyncs(60))
    metrics, counters = IngesterMetrics(CollectorRegistry()), FrameCounters()
    writer = Writer(
        output, {}, BatchRule(), metrics, written=shared.states.written, dropped=shared.dropped
    )
    letters = RawDeadLetters("raw")
    feed = FeedReport("firehose_live", HostKey(_RELAY), metrics, letters)
    cursor = writer.cursor(f"firehose_live:cursor:{_RELAY}", feed.observe)
    collections = ("app.bsky.", "chat.bsky.")
    converter = RepoConverter(
        _RELAY, f"https://{_RELAY}", collections, counters, letters, verify=mode
    )
    verifier = SignatureVerifier(documents)
    await cursor.load()
    wall = processor = main = 0.0
    written = set[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, trio.Event())
        for number in range(ROUNDS + 1):
            admission = Admission(_RELAY, converter, shared)
            async with trio.open_nursery() as connection:
                gaps = GapWatch(_RELAY, None, None)
                intake = FrameIntake(
                    converter, cursor, SeqGate(-1), connection, verifier, admission, gaps
                )
                before = time.perf_counter(), time.process_time(), time.thread_time()
                for start in range(0, len(frames), _AT_ONCE):
                    await intake.take(frames[start : start + _AT_ONCE])
            await writer.flush()
            if number:
                wall += time.perf_counter() - before[0]
                processor += time.process_time() - before[1]
                main += time.thread_time() - before[2]
            written.add(store.call("XLEN", FIREHOSE_LIVE))
            _forget(store, shared)
        writer.close()
    assert not counters.errors, counters.errors
    assert mode == "none" or set(counters.verdicts) == {"valid"}
    assert len(written) == 1
    assert counters.events == (ROUNDS + 1) * written.pop()
    for connected in (store, states, output):
        connected.close()
    return wall, processor, main


def _forget(store: Store, shared: SharedState) -> None:
    """Forget all repos, so that their commits are news once more; the cursor stays."""
    shared.dropped()
    store.call("UNLINK", FIREHOSE_LIVE, *store.call("KEYS", REPO_KEYS))


def _frames() -> tuple[str, list[bytes], Documents]:
    folder = os.environ.get("RSKY_TEST_DATA")
    corpus = Path(folder or "") / "fixtures/jetstream/corpus"
    if folder and corpus.exists():
        found = corpus_documents(corpus)
        documents = {did: parse_did_document(item, did) for did, item in found.items()}
        return "real", corpus_frames(corpus), Documents(documents)
    world = World(1, 200, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(10)
    frames = [world.step() for _ in range(600)]
    accounts = {
        did: DidDocument(did, None, None, account.key.public)
        for did, account in world.by_did.items()
    }
    return "simulated", frames, Documents(accounts)
