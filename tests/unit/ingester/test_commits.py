"""Frames of a relay to entries: what is kept, what is refused, what is fetched again."""

import base64
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.atproto.car import write_car
from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.atproto.frame import encode_error_frame, encode_frame
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.configuration.settings import Verify
from rsky_pipeline.ingester.commits import convert
from rsky_pipeline.ingester.commits.signatures import SignatureStatus
from rsky_pipeline.ingester.commits.validation import FUTURE_SECONDS
from rsky_pipeline.ingester.frames import PendingFrame
from rsky_pipeline.ingester.sequence import timestamp
from rsky_pipeline.streams.names import REPO_BACKFILL_HIGH
from tests.unit.ingester.support import Converting
from tests.unit.readers import readers

__all__ = ["readers"]  # everything is read with and without the compiled readers

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
REV = "3mptbypluud2a"
TIME = "2026-07-04T14:38:08.999Z"
LIKE = {"$type": "app.bsky.feed.like", "createdAt": TIME}


def converter(
    *, verify: Verify = "none", collections: tuple[str, ...] = ("app.bsky.",)
) -> Converting:
    return Converting(verify, collections)


def commit(
    ops: list[tuple[str, str, Any]], *, leave_out: frozenset[str] = frozenset(), **changes: Any
) -> bytes:
    """Return a frame with these (action, path, record) operations; no MST is in it."""
    root = encode({"root": True})
    blocks = [(Cid.of(root), root)]
    listed: list[dict[str, Any]] = []
    for action, path, record in ops:
        if action == "delete":
            listed.append({"action": action, "path": path, "cid": None})
            continue
        block = record if isinstance(record, bytes) else encode(record)
        listed.append({"action": action, "path": path, "cid": Cid.of(block)})
        if path not in leave_out:
            blocks.append((Cid.of(block), block))
    body = {
        "seq": 5, "repo": DID, "rev": REV, "since": None, "commit": Cid.of(root), "ops": listed,
        "blocks": write_car([Cid.of(root)], blocks), "time": TIME, "tooBig": False, "blobs": [],
    } | changes  # fmt: skip
    return encode_frame("#commit", body)


def signed(ops: list[tuple[str, str, Any]], **changes: Any) -> bytes:
    """Return a frame whose commit object is one, of a tree that is not in it."""
    root = sign_commit(DID, REV, Cid.of(b"tree"), PrivateKey.from_seed("k256", b"a"))
    records = [encode(record) for _, _, record in ops]
    blocks = [(Cid.of(block), block) for block in (root, *records)]
    car = write_car([Cid.of(root)], blocks)
    return commit(ops, **({"commit": Cid.of(root), "blocks": car} | changes))


def events(converted: PendingFrame) -> list[dict[str, Any]]:
    return [json.loads(e.payload) for e in converted.entries if e.stream == "firehose_live"]


def jobs(converted: PendingFrame) -> list[dict[str, Any]]:
    return [json.loads(e.payload) for e in converted.entries if e.stream == "repo_backfill_high"]


def kept_aside(converted: PendingFrame) -> list[dict[str, Any]]:
    return [json.loads(e.payload) for e in converted.entries if e.stream == "raw"]


def test_creates_updates_and_deletes() -> None:
    made = converter()
    frame = made.convert(
        commit(
            [
                ("create", "app.bsky.feed.like/a", LIKE),
                ("update", "app.bsky.actor.profile/self", {"displayName": "A"}),
                ("delete", "app.bsky.feed.post/c", None),
                ("create", "com.example.thing/d", {"x": 1}),
            ]
        )
    )
    common = {"seq": 5, "time": TIME, "did": DID, "rev": REV,
              "commit": str(Cid.of(encode({"root": True})))}  # fmt: skip
    assert events(frame) == [
        common | {"type": "create", "collection": "app.bsky.feed.like", "rkey": "a",
                  "cid": str(Cid.of(encode(LIKE))), "record": LIKE},
        common | {"type": "update", "collection": "app.bsky.actor.profile", "rkey": "self",
                  "cid": str(Cid.of(encode({"displayName": "A"}))),
                  "record": {"displayName": "A"}},
        common | {"type": "delete", "collection": "app.bsky.feed.post", "rkey": "c"},
    ]  # fmt: skip
    assert (frame.seq, frame.time) == (5, TIME)
    assert frame.size == sum(len(entry.payload) for entry in frame.entries)
    tally = made.counters
    assert (tally.creates, tally.updates, tally.deletes) == (1, 1, 1)
    assert (tally.filtered, tally.events, tally.messages) == (1, 3, 1)
    assert not tally.errors


def test_records_become_exact_dag_json() -> None:
    blob = {"ref": Cid.of(b"picture", RAW), "size": 7, "$type": "blob"}
    record = {"bytes": b"\x00\xff\x10", "blob": blob, "links": [Cid.of(b"x")], "n": None,
              "big": 2**53 - 1, "text": "\u0000 \U0001f600"}  # fmt: skip
    [event] = events(converter().convert(commit([("create", "app.bsky.feed.post/a", record)])))
    assert event["record"] == {
        "bytes": {"$bytes": base64.b64encode(b"\x00\xff\x10").decode().rstrip("=")},
        "blob": {"ref": {"$link": str(Cid.of(b"picture", RAW))}, "size": 7, "$type": "blob"},
        "links": [{"$link": str(Cid.of(b"x"))}],
        "n": None, "big": 2**53 - 1, "text": "\u0000 \U0001f600",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("collections", "kept"),
    [
        (("app.bsky.",), ["app.bsky.feed.like", "app.bsky.feed.likes"]),
        (("app.bsky.feed.like",), ["app.bsky.feed.like"]),
        (("app.bsky.feed.like", "com."), ["app.bsky.feed.like", "com.example.thing"]),
        ((), []),
    ],
)
def test_collections_are_prefixes_or_exact_names(
    collections: tuple[str, ...], kept: list[str]
) -> None:
    names = [
        "app.bsky.feed.like",
        "app.bsky.feed.likes",
        "app.bskyx.feed.like",
        "com.example.thing",
    ]
    made = converter(collections=collections)
    frame = made.convert(
        commit([("create", f"{name}/{i}", {"i": i}) for i, name in enumerate(names)])
    )
    assert [event["collection"] for event in events(frame)] == kept
    assert made.counters.filtered == len(names) - len(kept)


def test_a_missing_block_costs_its_operation_and_has_the_repo_fetched() -> None:
    made = converter()
    ops = [("create", f"app.bsky.feed.post/{key}", {"key": key}) for key in "abc"]
    frame = made.convert(commit(ops, leave_out=frozenset({"app.bsky.feed.post/b"})))
    assert [event["rkey"] for event in events(frame)] == ["a", "c"]
    assert jobs(frame) == [
        {
            "did": DID,
            "host": "https://relay.test",
            "rev": REV,
            "status": None,
            "active": True,
            "reason": "missing_block",
        }
    ]
    assert made.counters.errors == {"missing_block": 1}
    assert made.counters.resyncs == {"missing_block": 1}


def test_a_missing_block_of_a_new_repo_has_it_fetched_though_nothing_is_discovered() -> None:
    made = converter()
    assert not made.shared.discovery.enabled
    path = "app.bsky.feed.post/a"
    frame = made.convert(
        commit([("create", path, {})], leave_out=frozenset({path}), since="3jzfcijpj2z23")
    )
    assert [(entry.stream, entry.field) for entry in frame.entries] == [
        (REPO_BACKFILL_HIGH, b"repo")
    ]


def test_a_block_that_is_not_what_it_is_named_is_not_believed() -> None:
    made = converter()
    good, bad, root = encode(LIKE), encode({"bad": True}), encode({"root": True})
    blocks = write_car([Cid.of(root)], [(Cid.of(root), root), (Cid.of(good), bad)])
    frame = made.convert(commit([("create", "app.bsky.feed.like/a", LIKE)], blocks=blocks))
    assert events(frame) == []
    assert len(jobs(frame)) == 1
    assert made.counters.errors == {"hash_mismatch": 1}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (encode([1, 2]), "invalid_record"),
        (b"\xa1\x61x\xfb\x3f\xf8\x00\x00\x00\x00\x00\x00", "float"),
        (b"\xff", "invalid_cbor"),
        (encode({"a": 1}) + b"\x00", "trailing_bytes"),
    ],
)
def test_a_record_that_cannot_be_read_costs_only_itself(record: bytes, reason: str) -> None:
    made = converter()
    frame = made.convert(
        commit([("create", "app.bsky.feed.post/a", record), ("create", "app.bsky.feed.post/b", {})])
    )
    assert [event["rkey"] for event in events(frame)] == ["b"]
    assert jobs(frame) == []
    assert [item["reason"] for item in kept_aside(frame)] == [reason]
    assert made.counters.errors == {reason: 1}
    assert made.counters.quarantined == 1


def test_a_record_of_absurd_depth_costs_only_itself() -> None:
    made = converter()
    deep = b"\x81" * 5_000 + b"\x00"
    frame = made.convert(
        commit([("create", "app.bsky.feed.post/a", deep), ("create", "app.bsky.feed.post/b", {})])
    )
    assert [event["rkey"] for event in events(frame)] == ["b"]
    assert sum(made.counters.errors.values()) == 1


@pytest.mark.parametrize("path", ["app.bsky.feed.like", "app.bsky.feed.like/", "app.bsky.x/a b"])
def test_a_path_that_is_none_costs_only_itself(path: str) -> None:
    made = converter(collections=("app.bsky.", "app.bsky.feed.like"))
    frame = made.convert(commit([("create", path, {}), ("create", "app.bsky.feed.post/b", {})]))
    assert [event["rkey"] for event in events(frame)] == ["b"]
    assert made.counters.errors == {"invalid_path": 1}


@pytest.mark.parametrize("blocks", [b"", b"\x05junk", b"\xff" * 50])
def test_blocks_that_cannot_be_read_have_the_repo_fetched(blocks: bytes) -> None:
    made = converter()
    frame = made.convert(commit([("create", "app.bsky.feed.like/a", LIKE)], blocks=blocks))
    assert events(frame) == []
    assert len(jobs(frame)) == len(kept_aside(frame)) == 1
    assert made.counters.resyncs == {"invalid_blocks": 1}
    assert frame.seq == 5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"blocks": b"\0" * 2_000_001}, "blocks_too_big"),
        ({"since": 1}, "invalid_frame"),
        ({"commit": None}, "invalid_frame"),
        ({"time": None}, "invalid_frame"),
        ({"time": "2" * 65}, "text_too_long"),
        ({}, "invalid_ops"),  # more than 200
    ],
)  # fmt: skip
def test_a_commit_beyond_a_limit_has_the_repo_fetched(changes: dict[str, Any], reason: str) -> None:
    made = converter()
    count = 1 if changes else 201
    ops = [("delete", f"app.bsky.feed.like/{number}", None) for number in range(count)]
    frame = made.convert(commit(ops, **changes))
    assert events(frame) == []
    (job,) = jobs(frame)
    assert (job["did"], job["rev"], job["reason"]) == (DID, REV, "invalid_blocks")
    assert len(job["deleted"]) == count, "deletions are proven from the repo"
    assert [letter["reason"] for letter in kept_aside(frame)] == [reason]
    assert made.counters.resyncs == {"invalid_blocks": 1}
    assert frame.seq == 5


@pytest.mark.parametrize("verify", ["none", "full"])
@pytest.mark.parametrize(
    "changes", [{"rev": REV[:12]}, {"rev": REV[:11]}, {"blocks": b"\0" * 10_001}, {"blocks": None},
                {"time": "2" * 65}, {"time": 1}],
)  # fmt: skip
def test_a_sync_that_cannot_be_read_as_a_whole_has_the_repo_fetched(
    changes: dict[str, Any], verify: Verify
) -> None:
    """A rev that is a shortened TID occurs on real hosts; the one that is asked for is below it."""
    body = {"seq": 5, "did": DID, "rev": REV, "time": TIME, "blocks": b""} | changes
    made = converter(verify=verify)
    frame = made.convert(encode_frame("#sync", body))
    assert events(frame) == []
    (job,) = jobs(frame)
    assert (job["did"], job["reason"]) == (DID, "invalid_blocks")
    assert job["rev"] <= body["rev"]
    assert len(kept_aside(frame)) == 1
    assert frame.seq == 5


def test_of_a_commit_whose_account_cannot_be_read_only_the_frame_is_kept() -> None:
    made = converter()
    for changes in ({"repo": "ewvi"}, {"rev": "now"}, {"seq": None}):
        frame = made.convert(commit([], **changes))
        assert jobs(frame) == []
        assert len(kept_aside(frame)) == 1


@pytest.mark.parametrize("verify", ["none", "full"])
def test_blocks_of_another_commit_are_refused(verify: Verify) -> None:
    made = converter(verify=verify)
    frame = made.convert(
        signed([("create", "app.bsky.feed.like/a", LIKE)], commit=Cid.of(b"another"))
    )
    assert events(frame) == []
    assert made.counters.errors == {"root_mismatch": 1}
    assert len(jobs(frame)) == 1


def test_a_commit_that_is_too_big_has_the_repo_fetched() -> None:
    made = converter()
    frame = made.convert(commit([("create", "app.bsky.feed.like/a", LIKE)], tooBig=True))
    assert (events(frame), len(jobs(frame))) == ([], 1)
    assert made.counters.resyncs == {"too_big": 1}


def test_one_record_under_many_paths_cannot_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convert, "MAX_FRAME_OUTPUT", 100_000)
    record = {"text": "\x00" * 5_000}
    ops = [("create", f"app.bsky.feed.post/{number}", record) for number in range(200)]
    made = converter()
    frame = made.convert(commit(ops))
    assert frame.size < 200_000
    assert len(jobs(frame)) == 1
    assert made.counters.errors == {"expands_too_much": 1}


def test_texts_that_would_be_repeated_are_bounded() -> None:
    made = converter()
    frame = made.convert(commit([("create", "app.bsky.feed.like/a", LIKE)], time="x" * 65))
    assert made.counters.errors == {"text_too_long": 1}
    assert events(frame) == []
    handle = {"seq": 1, "did": DID, "time": TIME, "handle": "h" * 3_000}
    assert events(made.convert(encode_frame("#identity", handle))) == []


@pytest.mark.parametrize("verify", ["signature", "full"])
def test_every_commit_has_a_proof_of_what_it_signs(verify: Verify) -> None:
    made = converter(verify=verify).converter
    for path in ("app.bsky.feed.like/a", "com.example.thing/a"):
        frame = made.convert(signed([("create", path, {})]))
        assert frame.update is not None
        proof = frame.update.proof
        assert proof is not None
        assert proof.commit is not None
        assert (proof.commit.did, proof.commit.rev) == (DID, REV)
        assert proof.has_operations == (verify == "full")
        assert len(frame.entries) == path.startswith("app.bsky.")


@pytest.mark.parametrize("verify", ["signature", "full"])
@pytest.mark.parametrize(
    ("repo", "rev", "reason"),
    [
        ("did:plc:zzz", REV, "commit_did"),
        ("did:plc:222", REV, "commit_did"),
        (DID, "3mptbypluud2b", "commit_rev"),
        (DID, "3mptbypluuc2b", "commit_rev"),
    ],
)
def test_the_commit_of_another_is_refused(verify: Verify, repo: str, rev: str, reason: str) -> None:
    made = converter(verify=verify)
    frame = made.convert(signed([("create", "app.bsky.feed.like/a", {})], repo=repo, rev=rev))
    assert events(frame) == []
    assert len(jobs(frame)) == len(kept_aside(frame)) == 1
    assert made.counters.errors == {reason: 1}
    assert frame.state is None


def test_a_rev_from_the_future_is_refused_and_not_remembered() -> None:
    made = converter()
    later = tid_from(int((time.time() + 400) * 1e6))
    frame = made.convert(commit([("create", "app.bsky.feed.like/a", LIKE)], rev=later))
    assert (events(frame), jobs(frame), frame.state) == ([], [], None)
    assert made.counters.errors == {"future_rev": 1}
    soon = tid_from(int((time.time() + 200) * 1e6))
    frame = made.convert(commit([("create", "app.bsky.feed.like/a", LIKE)], rev=soon))
    assert len(events(frame)) == 1
    assert frame.state is not None


def test_error_frames_end_the_connection_and_remarks_do_not() -> None:
    made = converter()
    assert made.convert(encode_frame("#info", {"name": "OutdatedCursor"})).entries == []
    assert made.convert(encode_frame("#info", {"name": "x" * 999, "message": "m"})).entries == []
    ended_by_a_remark = made.converter.ended
    assert ended_by_a_remark is None
    made.convert(encode_error_frame("ConsumerTooSlow", "too slow"))
    assert made.converter.ended is not None
    assert made.converter.ended.error == "ConsumerTooSlow"
    assert made.counters.infos["OutdatedCursor"] == 1


@given(st.binary(max_size=300))
def test_garbage_never_raises(raw: bytes) -> None:
    frame = converter().convert(raw)
    assert frame.seq is None or isinstance(frame.seq, int)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_damage_never_raises(where: int, flip: int) -> None:
    raw = bytearray(commit([("create", "app.bsky.feed.like/a", LIKE)]))
    raw[where % len(raw)] ^= flip
    for mode in ("none", "signature", "full"):
        converter(verify=mode).convert(bytes(raw))


@pytest.mark.parametrize(
    ("verdict", "changes"),
    [(SignatureStatus.FORGED, {}), (None, {"tooBig": True}), (None, {"blocks": b"junk"})],
)
def test_a_commit_that_is_not_written_leaves_its_deletions_to_the_fetch(
    verdict: SignatureStatus | None, changes: dict[str, Any]
) -> None:
    made = converter()
    operations = [
        ("delete", "app.bsky.feed.like/gone", None),
        ("create", "app.bsky.feed.like/new", LIKE),
        ("delete", "com.example.thing/foreign", None),
    ]
    frame = made.convert(commit(operations, **changes), verdict)
    assert events(frame) == []
    (job,) = jobs(frame)
    assert (job["rev"], job["deleted"]) == (REV, ["app.bsky.feed.like/gone"])


def test_the_job_of_a_written_commit_names_no_deletions() -> None:
    path = "app.bsky.feed.post/lost"
    frame = converter().convert(
        commit(
            [("create", path, {}), ("delete", "app.bsky.feed.like/gone", None)],
            leave_out=frozenset({path}),
        )
    )
    assert [event["type"] for event in events(frame)] == ["delete"]
    (job,) = jobs(frame)
    assert "deleted" not in job


def account(seq: int, time: str, active: bool = False) -> bytes:
    return encode_frame("#account", {"seq": seq, "did": DID, "time": time, "active": active})


def test_an_event_of_an_account_from_the_future_has_the_time_of_the_one_before_it() -> None:
    """The newest event of an account stands: one of the year 9999 would stand for ever."""
    far, later = "9999-12-31T23:59:59Z", "2026-07-04T14:38:09.000Z"
    for before in (signed([], time=TIME), account(1, TIME), account(1, TIME, active=True)):
        made = converter()
        made.convert(before)
        frames = [account(2, far), encode_frame("#identity", {"seq": 3, "did": DID, "time": far}),
                  account(4, later, active=True)]  # fmt: skip
        events = [json.loads(made.convert(raw).entries[0].payload) for raw in frames]
        assert [event["time"] for event in events] == [TIME, TIME, later]
        assert made.counters.errors == {"future_time": 2}


def test_without_a_believable_time_before_it_the_clock_stands_in() -> None:
    made = converter()
    made.converter.time_before = "9998-01-01T00:00:00Z"
    now = time.time()
    event = json.loads(made.convert(account(2, "9999-12-31T23:59:59+00:00")).entries[0].payload)
    assert abs((timestamp(event["time"]) or 0.0) - now) < 60


def test_times_may_be_ahead_as_revs_may() -> None:
    soon = format_utc(datetime.fromtimestamp(time.time() + FUTURE_SECONDS - 100, UTC))
    made = converter()
    event = json.loads(made.convert(account(2, soon)).entries[0].payload)
    assert (event["time"], dict(made.counters.errors)) == (soon, {})
