"""Published vectors, judged by what judges the live stream: what is written, and why not."""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.car import Car, read_car, write_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey, PublicKey
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import CommitMessage, RepoOp, encode_frame
from rsky_pipeline.atproto.identity import parse_did_document
from rsky_pipeline.atproto.mst import Tree
from rsky_pipeline.ingester.commits.signatures import SignatureStatus, SignatureVerifier
from rsky_pipeline.ingester.commits.validation import (
    CommitProof,
    check_operations,
    read_contents,
)
from rsky_pipeline.ingester.frames import FrameCounters
from rsky_pipeline.observability.ingester import ERROR_REASONS
from rsky_pipeline.streams.names import FIREHOSE_LIVE
from rsky_pipeline.streams.repo_job import FetchReason
from tests.data import test_data
from tests.data_frames import corpus_documents, corpus_frames, unpack_zstd
from tests.unit.atproto.dagjson_values import from_json
from tests.unit.ingester.claims import Accounts, Written
from tests.unit.ingester.support import Converting
from tests.unit.ingester.test_malformed import mutations, vectors
from tests.unit.readers import readers

__all__ = ["readers"]  # everything is read with and without the compiled readers

DID, REV = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "3mptbypluud2a"
TIME = "2026-07-04T14:38:08.999Z"
KEY = PrivateKey.from_seed("k256", b"vectors")
FIRST = 31527015322  # the number of the first of the real frames
OTHER = PublicKey.parse("did:key:zQ3shbzd9YoCFQrzfdw2AGpxUHTjUhh69MXRh7hHBavx9wQon")


def message(
    ops: Sequence[RepoOp], before: Cid | None, after: Cid, blocks: Iterable[tuple[Cid, bytes]]
) -> CommitMessage:
    """Return the commit, really signed, that leads from one tree to another."""
    block = sign_commit(DID, REV, after, KEY)
    root = Cid.of(block)
    car = write_car([root], [(root, block), *blocks])
    return CommitMessage(1, DID, REV, None, root, car, tuple(ops), before, TIME, False, False)


def frame(commit: CommitMessage) -> bytes:
    ops = [
        {"action": op.action, "path": op.path, "cid": op.cid}
        | ({} if op.prev is None else {"prev": op.prev})
        for op in commit.ops
    ]
    body = {
        "seq": commit.seq, "repo": commit.did, "rev": commit.rev, "since": commit.since,
        "commit": commit.commit, "blocks": commit.blocks, "ops": ops, "prevData": commit.prev_data,
        "time": commit.time, "tooBig": False, "rebase": False, "blobs": [],
    }  # fmt: skip
    return encode_frame("#commit", body)


def refusal(commit: CommitMessage) -> str | None:
    """Return why the operations of a commit are not believed, None if they are."""
    contents = read_contents(commit)
    tree = check_operations(CommitProof(contents.commit, commit, contents.blocks))
    return tree.word if isinstance(tree, FetchReason) else None


def op(path: str, new: str | None, old: str | None) -> RepoOp:
    action = "create" if old is None else "delete" if new is None else "update"
    cids = [None if text is None else Cid.parse(text) for text in (new, old)]
    return RepoOp(action, path, *cids)  # type: ignore[arg-type]


def exhaustive_cars() -> dict[str, Car]:
    folder = test_data("fixtures/mst-test-suite/cars")
    return {path.name: read_car(path.read_bytes()) for path in folder.glob("*.car")}


def cases() -> Iterator[tuple[str, CommitMessage, list[RepoOp]]]:
    """Yield each published difference as a commit that brings the least possible nodes."""
    cars = exhaustive_cars()
    for line in unpack_zstd(
        test_data("fixtures/mst-test-suite/mst-diff-exhaustive.jsonl.zst")
    ).splitlines():
        case = json.loads(line)
        first, second = (cars[case["inputs"][n].rsplit("/", 1)[1]] for n in ("mst_a", "mst_b"))
        results = case["results"]
        ops = [op(o["rpath"], o["new_value"], o["old_value"]) for o in results["record_ops"]]
        nodes = {second.roots[0], *map(Cid.parse, results["inductive_proof_nodes"])}
        blocks = [(cid, second.blocks[cid]) for cid in nodes]
        yield case["_file"], message(ops, first.roots[0], second.roots[0], blocks), ops


def test_all_published_differences_are_believed_and_no_others() -> None:
    count = lies = 0
    for number, (name, commit, ops) in enumerate(cases()):
        count += 1
        assert refusal(commit) is None, name
        if number % 8 or not ops:
            continue
        # Without any one of its operations, or with one more, it leads to another tree.
        lie = number // 8 % len(ops)
        for wrong in ([*ops[:lie], *ops[lie + 1 :]], [*ops, op("k/zzz", str(commit.commit), None)]):
            untrue = CommitMessage(
                1, DID, REV, None, commit.commit, commit.blocks, tuple(wrong), commit.prev_data,
                TIME, False, False,
            )  # fmt: skip
            assert refusal(untrue) in {"inversion", "invalid_operation", "missing_node"}, name
            lies += 1
    assert count == 8_192
    assert lies > 1_500


def test_published_commit_proofs_are_believed_as_live_commits() -> None:
    path = test_data("fixtures/interop/firehose/commit-proof-fixtures.json")
    proofs = json.loads(path.read_text())
    assert len(proofs) == 6
    for case in proofs:
        leaf = Cid.parse(case["leafValue"])
        tree = Tree.build(dict.fromkeys(case["keys"], leaf))
        before = tree.root
        ops = [RepoOp("create", key, leaf, None) for key in case["adds"]]
        ops += [RepoOp("delete", key, None, leaf) for key in case["dels"]]
        carried = tree.apply(ops)
        assert (str(before), str(tree.root)) == (case["rootBeforeCommit"], case["rootAfterCommit"])
        blocks = [(cid, carried[cid]) for cid in map(Cid.parse, case["blocksInProof"])]
        true = message(ops, before, tree.root, blocks)
        assert refusal(true) is None
        other = Cid.of(b"other")
        assert refusal(message(ops, other, tree.root, blocks)) == "inversion"
        assert refusal(message(ops[1:], before, tree.root, blocks)) == "inversion"
        # As a frame it is believed too, but no vector brings the records that it creates.
        made = Converting("full", collections=("*",))
        made.convert(frame(true), SignatureStatus.VALID)
        assert dict(made.counters.errors).keys() <= {"missing_block", "invalid_path"}
        made = Converting("full", collections=("*",))
        made.convert(frame(message(ops, other, tree.root, blocks)), SignatureStatus.VALID)
        assert made.counters.errors["inversion"] == 1


def scenario(name: str) -> tuple[list[bytes], Accounts, list[bool]]:
    """Return the frames of a scenario, the directory of its accounts, and what to drop."""
    found = json.loads(test_data(f"fixtures/indigo/relay-scenarios/{name}.json").read_text())
    accounts = Accounts()
    for account in found["accounts"]:
        key = account["identity"]["keys"]["atproto"]
        accounts.keys[account["identity"]["did"]] = PublicKey.parse(
            key["publicKeyMultibase"], key["type"]
        )
    frames = [
        encode_frame(item["frame"]["header"]["t"], from_json(item["frame"]["body"]))
        for item in found["messages"]
    ]
    return frames, accounts, [item["drop"] for item in found["messages"]]


async def follow(frames: Sequence[bytes], accounts: Accounts) -> tuple[Written, Converting]:
    """Return what an ingester that checks everything writes of frames."""
    made, written = Converting("full"), Written()
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, -1, nursery, SignatureVerifier(accounts))
        for raw in frames:
            await intake.take([raw])
    return written, made


def events(written: Written) -> list[dict[str, Any]]:
    return [
        json.loads(entry.payload)
        for item in written.frames
        for entry in item.entries
        if entry.stream == FIREHOSE_LIVE
    ]


@pytest.mark.parametrize(
    ("name", "written_events", "resyncs"),
    [
        ("post_lifecycle", 8, {}),
        # Its first commit is far older; one of the others is a deletion that cannot be undone.
        ("post_lifecycle_legacy", 6, {"broken_chain": 1, "no_prev_data": 1}),
    ],
)
async def test_a_chain_of_commits_is_written_whole(
    name: str, written_events: int, resyncs: dict[str, int]
) -> None:
    frames, accounts, _ = scenario(name)
    written, made = await follow(frames, accounts)
    assert made.counters.verdicts == {"valid": 6}
    assert dict(made.counters.errors) == {}
    assert made.counters.resyncs == resyncs
    assert len(events(written)) == written_events
    # Where one is left out the break of the chain is noticed, and the repo fetched.
    written, made = await follow([*frames[:3], *frames[4:]], accounts)
    noticed = made.counters.resyncs.total() + made.counters.resyncs_spared
    assert noticed == sum(resyncs.values()) + 1


async def test_repeated_and_lower_numbers_are_dropped_and_no_others() -> None:
    frames, accounts, drop = scenario("seq_ordering")
    assert drop.count(True) == 2
    written, made = await follow(frames, accounts)
    kept = [raw for raw, dropped in zip(frames, drop, strict=True) if not dropped]
    expected, _ = await follow(kept, accounts)
    assert events(written) == events(expected)
    assert len(written.frames) == len(kept) == 2
    assert made.counters.duplicates == 2


async def test_a_commit_is_written_only_if_its_own_account_signed_it() -> None:
    frames, accounts, _ = scenario("legacy")
    written, made = await follow(frames, accounts)
    assert [event["type"] for event in events(written)] == ["identity", "account", "create"]
    assert made.counters.verdicts == {"valid": 1}
    accounts.keys = dict.fromkeys(accounts.keys, OTHER)
    accounts.cached.clear()
    written, made = await follow(frames, accounts)
    assert [event["type"] for event in events(written)] == ["identity", "account"]
    assert made.counters.verdicts == {"forged": 1}
    assert made.counters.resyncs == {"forged": 1}


@pytest.mark.parametrize(
    ("number", "ops"), [(4621317030, 1), (4621317332, 1), (4621332152, 42), (4623075231, 1)]
)
def test_commits_of_before_sync_1_1_are_looked_up_in_their_tree(number: int, ops: int) -> None:
    name = f"fixtures/indigo/partial-commits/firehose_commit_{number}.json"
    body = from_json(json.loads(test_data(name).read_text()))
    assert isinstance(body, dict)
    made = Converting("full")
    found = made.convert(encode_frame("#commit", body), SignatureStatus.VALID)
    assert [entry.stream for entry in found.entries] == [FIREHOSE_LIVE] * ops
    assert dict(made.counters.errors) == {}
    # The same commit with an operation that its tree does not hold is fetched instead.
    stranger = {"action": "create", "path": "app.bsky.feed.like/x", "cid": body["ops"][0]["cid"]}
    made = Converting("full")
    made.convert(
        encode_frame("#commit", body | {"ops": [*body["ops"], stranger]}), SignatureStatus.VALID
    )
    assert len(made.counters.resyncs) == 1
    assert set(made.counters.resyncs) <= {"invalid_operation", "missing_node"}


def test_each_strictness_vector_as_a_record_costs_only_itself() -> None:
    """It is written if it is a record in the one canonical form, else counted by its reason."""
    good = cbor.encode({"$type": "app.bsky.feed.like", "createdAt": TIME})
    seen = refused = 0
    for name, vector in vectors():
        if not vector or vector == good:
            continue
        paths = {"app.bsky.feed.like/good": good, "app.bsky.feed.post/vector": vector}
        cids = {path: Cid.of(block) for path, block in paths.items()}
        tree = Tree.build(cids)
        ops = [RepoOp("create", path, cid, None) for path, cid in cids.items()]
        records = [(cids[path], block) for path, block in paths.items()]
        commit = message(ops, Tree.build({}).root, tree.root, [*tree.blocks(), *records])
        made = Converting("full")
        found = made.convert(frame(commit), SignatureStatus.VALID)
        live = [json.loads(e.payload) for e in found.entries if e.stream == FIREHOSE_LIVE]
        assert live[0]["rkey"] == "good", name
        assert made.counters.errors.keys() <= set(ERROR_REASONS) - {"internal"}
        seen += 1
        try:
            is_record = isinstance(cbor.decode_strict(vector), dict)
        except InvalidDataError:
            is_record = False
        if is_record:
            assert len(live) == 2, name
        elif len(live) == 1:
            refused += 1
            assert sum(made.counters.errors.values()) == 1, name
    assert seen > 800
    assert refused > 700


@cache
def real_window() -> tuple[tuple[bytes, ...], dict[str, PublicKey | Exception | None]]:
    """Return contiguous frames of the real network, and the keys of their accounts."""
    corpus = test_data("fixtures/jetstream/corpus")
    documents = corpus_documents(corpus)
    keys = {did: parse_did_document(item, did).signing_key for did, item in documents.items()}
    return tuple(corpus_frames(corpus)), dict(keys)


def tell(frames: Sequence[bytes]) -> tuple[list[dict[str, Any]], FrameCounters]:
    accounts = Accounts()
    accounts.keys = real_window()[1]
    found: list[tuple[Written, Converting]] = []

    async def main() -> None:
        made, written = Converting("full"), Written()
        async with trio.open_nursery() as nursery:
            intake = made.intake(written, FIRST - 1, nursery, SignatureVerifier(accounts))
            await intake.take(frames)
        found.append((written, made))

    trio.run(main)
    return events(found[0][0]), found[0][1].counters


@settings(max_examples=40)
@given(st.data())
def test_damaged_frames_among_real_ones_cost_only_themselves(data: st.DataObject) -> None:
    frames = list(real_window()[0])
    places = [data.draw(st.integers(start, start + 20)) for start in (3, 50, 100)]
    for place in places:
        frames[place] = mutations(data, frames[place])
    written, tally = tell(frames)
    assert tally.messages == 150
    assert tally.errors.keys() <= set(ERROR_REASONS) - {"internal"}
    assert tally.label_verdicts == {}
    numbers = {event["seq"] for event in written}
    for event in whole_window():
        if event["seq"] - FIRST not in places:
            assert event in written
    counted = (
        tally.errors.total() + tally.duplicates + tally.replays + tally.resyncs.total()
        + tally.infos.total() + tally.frames["unknown"] + tally.frames["error"] + tally.filtered
        + tally.frames["labels"] + tally.verdicts["no_account"] + tally.jumps.total()
    )  # fmt: skip
    assert counted >= len({place for place in places if FIRST + place not in numbers} & told())


@cache
def whole_window() -> tuple[dict[str, Any], ...]:
    return tuple(tell(real_window()[0])[0])


def told() -> set[int]:
    """Return which of the real frames are written at all."""
    return {event["seq"] - FIRST for event in whole_window()}
