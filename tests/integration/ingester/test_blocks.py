"""An ingester takes changes of blocks up while it runs, and keeps them while Redis lacks them."""

from typing import Any

import pytest

from rsky_pipeline.configuration.selection import Selection
from rsky_pipeline.ingester import role
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.selection import SELECTION, publish_selection, read_selection
from tests.integration.ingester.relay import Relay, like, running
from tests.integration.ingester.worker import entries, eventually, ingesting, value
from tests.stores import redis_client

GROUP = "firehose_group"
ANN, BOB = (f"did:plc:{letter * 24}" for letter in "ab")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "SELECTION_SECONDS", 0.02)


def publish(redis_url: str, selection: Selection) -> None:
    store = connect(redis_url, name="test")
    publish_selection(store, GROUP, selection)
    store.close()


async def test_blocks_come_and_go_while_it_runs(clean_redis: str) -> None:
    publish(clean_redis, Selection(5, frozenset((ANN,))))
    relay = Relay()
    relay.add((1, like(1, repo=ANN)), (2, like(2, repo=BOB)))
    async with running(relay), ingesting(clean_redis, relay.url) as ingester:
        key = f"firehose_live:cursor:{relay.key}"

        async def reached(seq: int) -> None:
            await eventually(lambda: value(clean_redis, key) == str(seq))

        def blocked(kind: str) -> float:
            return ingester.metric("ingester_blocked_events_total", kind=kind)

        def written() -> int:
            return len(entries(clean_redis, "firehose_live"))

        await reached(2)
        assert written() == 1
        await eventually(lambda: blocked("account") == 1)
        await eventually(lambda: ingester.health.get("blocks") == 1)
        with redis_client(clean_redis) as client:
            client.delete(SELECTION + GROUP)
        relay.add((3, like(3, repo=ANN)))
        await reached(3)
        await eventually(lambda: blocked("account") == 2)
        publish(clean_redis, Selection(4, collections=("app.bsky.feed.like",)))
        await eventually(lambda: _takes(relay, ingester, blocked))
        before = written()
        publish(clean_redis, Selection(6))
        await eventually(lambda: _takes(relay, ingester, lambda _: written() - before))


def _takes(relay: Relay, ingester: Any, seen: Any) -> bool:
    """Send one more like; return whether what is waited for was seen."""
    seq = len(relay.frames) + 1
    relay.add((seq, like(seq, repo=BOB)))
    return bool(seen("collection"))


@pytest.mark.parametrize(
    "fields",
    [
        {"version": "x"}, {"version": "8"}, {"version": "8", "content": "{"},
        {"version": "8", "content": "[]"}, {"version": "8", "content": b"\xff"},
        {"version": "8", "content": '{"accounts":[1],"hosts":[],"collections":[]}'},
        {"version": "9" * 30, "content": "{}"}, {"content": "{}"},
    ],
)  # fmt: skip
def test_what_cannot_be_read_changes_nothing(clean_redis: str, fields: dict[Any, Any]) -> None:
    known = Selection(7, frozenset((ANN,)))
    with redis_client(clean_redis) as client:
        client.hset(SELECTION + GROUP, mapping=fields)
    store = connect(clean_redis, name="test")
    assert read_selection(store, GROUP, known) is known
    publish_selection(store, GROUP, Selection(9, hosts=frozenset(("x.test",))))
    assert read_selection(store, GROUP, known) == Selection(9, hosts=frozenset(("x.test",)))
    store.close()
