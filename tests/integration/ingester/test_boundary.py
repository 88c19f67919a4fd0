"""Whatever the work on one stranger's account or label raises, it costs that account or label."""

import json
from functools import partial
from typing import Any

import pytest
import trio

from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.ingester.commits.convert import RepoConverter
from rsky_pipeline.ingester.frames import PendingFrame
from rsky_pipeline.ingester.pipeline import Admission
from rsky_pipeline.streams.names import (
    FIREHOSE_LIVE,
    FIREHOSE_RAW_LETTERS,
    LABEL_LIVE,
    REPO_BACKFILL_HIGH,
)
from tests.breaking import PARTS, break_part
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.backfiller.kit import document
from tests.integration.ingester.relay import KEY, TIME, Relay, like, running
from tests.integration.ingester.worker import entries, eventually, ingesting, value
from tests.stores import redis_client

GOOD = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


def written(redis_url: str) -> list[str]:
    return [json.loads(entry[b"event"])["did"] for entry in entries(redis_url, FIREHOSE_LIVE)]


def jobs(redis_url: str) -> list[tuple[str, str]]:
    made = [json.loads(entry[b"repo"]) for entry in entries(redis_url, REPO_BACKFILL_HIGH)]
    return [(job["did"], job["reason"]) for job in made]


async def follow(redis_url: str, bad: str, **settings: Any) -> dict[str, float]:
    """Have a commit of a bad account come before one of a good one; return some metrics."""
    relay = Relay([(1, like(1, repo=bad)), (2, like(2, repo=GOOD))])
    with FakeHosts() as hosts:
        hosts.add(GOOD, document(GOOD, KEY), b"")
        hosts.add(bad, document(bad, KEY), b"")
        options: dict[str, Any] = {"verify": "signature", "plc_url": hosts.url} | settings
        async with running(relay), ingesting(redis_url, relay.url, **options) as ingester:
            key = f"firehose_live:cursor:127.0.0.1:{relay.port}"
            await eventually(lambda: value(redis_url, key) == "2")
            assert not ingester.ended.is_set()
    return {
        "internal": ingester.metric("ingester_error_reasons_total", reason="internal_error"),
        "connections": float(len(relay.cursors)),
    }


@pytest.mark.parametrize("part", PARTS)
async def test_a_commit_whose_account_raises_is_unverified_and_fetched(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    break_part(monkeypatch, part)
    seen = await follow(clean_redis, PARTS[part])
    assert written(clean_redis) == [GOOD]
    assert jobs(clean_redis) == [(PARTS[part], "unverified")]
    assert seen["connections"] == 1, "nothing had to be read again"
    assert seen["internal"] > 0


@pytest.mark.parametrize(
    ("bad", "outcome"),
    [
        ("did:web:example.com.", ["unverified"]),
        ("did:web:a..b", ["unverified"]),  # these name no host: a job that is given up at once
        ("did:web:.", ["unverified"]),
    ],
)
async def test_an_odd_did_web_stops_nobody(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch, bad: str, outcome: list[str]
) -> None:
    look_up = trio.socket.getaddrinfo

    async def only_here(host: object, *args: Any, **options: Any) -> object:
        if host != "127.0.0.1":
            await trio.lowlevel.checkpoint()
            raise OSError("no such name")
        return await look_up(host, *args, **options)

    monkeypatch.setattr("trio.socket.getaddrinfo", only_here)
    seen = await follow(clean_redis, bad, allow_private_hosts=False)
    assert written(clean_redis) == [GOOD]
    assert jobs(clean_redis) == [(bad, reason) for reason in outcome]
    assert seen == {"internal": 0.0, "connections": 1.0}


async def test_a_frame_that_nobody_can_judge_is_fetched(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = Admission.admit

    def broken(self: Admission, frame: Any) -> None:
        if frame.seq == 1:
            raise RuntimeError("a defect")
        admit(self, frame)

    monkeypatch.setattr(Admission, "admit", broken)
    seen = await follow(clean_redis, "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb")
    assert written(clean_redis) == [GOOD]
    assert jobs(clean_redis) == [("did:plc:bbbbbbbbbbbbbbbbbbbbbbbb", "unverified")]
    assert seen == {"internal": 1.0, "connections": 1.0}


@pytest.mark.parametrize("part", PARTS)
async def test_a_label_whose_labeler_raises_is_unverified(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    break_part(monkeypatch, part)
    # A did:plc whose directory gives no answer holds its labeler's stream; see `labels`.
    monkeypatch.setattr("rsky_pipeline.ingester.labels.RETRY_SECONDS", 0.01)
    bad = "did:web:bad.test"
    label = {"src": bad, "uri": GOOD, "val": "spam", "cts": TIME, "sig": b"x" * 64, "ver": 1}
    frames = [encode_frame("#labels", {"seq": seq, "labels": [label]}) for seq in (1, 2)]
    labeler = Relay(list(enumerate(frames, 1)))
    with FakeHosts() as hosts:
        options: dict[str, Any] = {"label_signatures": "check", "plc_url": hosts.url}
        async with (
            running(labeler),
            ingesting(clean_redis, labeler_hosts=(labeler.url,), **options) as ingester,
        ):
            await eventually(lambda: len(entries(clean_redis, LABEL_LIVE)) == 2)
            verdicts = ingester.metric("ingester_label_verifications_total", verdict="unverified")
    assert verdicts == 2
    assert len(labeler.cursors) == 1


async def test_a_stored_cursor_that_is_no_text_is_left_to_the_operator(clean_redis: str) -> None:
    relay, other = Relay([(1, like(1, repo=GOOD))]), Relay([(2, like(2, repo=GOOD))])
    async with running(relay), running(other):
        keys = [f"firehose_live:cursor:127.0.0.1:{each.port}" for each in (relay, other)]
        with redis_client(clean_redis) as client:
            client.set(keys[0], b"\xff\x00")
        async with ingesting(clean_redis, relay.url, other.url) as ingester:
            await eventually(lambda: value(clean_redis, keys[1]) == "2")
            assert not ingester.ended.is_set()
            refused = partial(
                ingester.metric, "ingester_error_reasons_total", reason="invalid_cursor"
            )
            await eventually(lambda: refused() == 1)
            with redis_client(clean_redis) as client:
                client.set(keys[1], b"\xff")  # while the writer holds another one
            await eventually(
                lambda: ingester.metric("ingester_error_reasons_total", reason="cursor_moved")
            )
            assert not ingester.ended.is_set()
    assert relay.cursors == []


async def test_an_exception_without_a_message_stops_nobody(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise ValueError("no message")

        __repr__ = __str__

    begin = RepoConverter.begin_commit

    def broken(self: RepoConverter, message: Any, raw: bytes, rev: int) -> PendingFrame:
        if message.did != GOOD:
            raise BrokenError
        return begin(self, message, raw, rev)

    monkeypatch.setattr(RepoConverter, "begin_commit", broken)
    seen = await follow(clean_redis, "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb")
    assert written(clean_redis) == [GOOD]
    assert seen == {"internal": 1.0, "connections": 1.0}
    assert len(entries(clean_redis, FIREHOSE_RAW_LETTERS)) == 1
