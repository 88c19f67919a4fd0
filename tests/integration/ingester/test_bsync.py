"""Following the logs of bsync: cursors, jumps, another database, refusals."""

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import orjson
import pytest

from rsky_pipeline.configuration.endpoints import HostKey
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.ingester import bsync as source
from rsky_pipeline.ingester import read_again
from rsky_pipeline.ingester.bsync import read_scan
from rsky_pipeline.network.http import HttpError
from rsky_pipeline.operations.cursors import CursorRefusedError, list_cursors, set_cursor
from rsky_pipeline.streams.bsync import BSYNC_READINGS, digest
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.marks import request_reading
from tests.bsync import KEY, Bsync, running_bsync
from tests.integration.ingester.worker import (
    Ingester,
    entries,
    eventually,
    free_port,
    ingesting,
    value,
)
from tests.stores import redis_client

ANN, BOB = "did:plc:annxxxxxxxxxxxxxxxxxxxxx", "did:plc:bobxxxxxxxxxxxxxxxxxxxxx"
MUTE = {"type": "TYPE_ADD", "actorDid": ANN, "subject": BOB}
LIVE: Final = "bsync_live"


@pytest.fixture
def bsync() -> Iterator[Bsync]:
    with running_bsync() as served:
        yield served


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "JUMP_SECONDS", (0.2, 0.2, 0.2))
    monkeypatch.setattr(source, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(source, "BACKOFF_SECONDS", (0.1, 0.2))


@asynccontextmanager
async def reading(redis_url: str, bsync: Bsync, **settings: Any) -> AsyncIterator[Ingester]:
    """Run an ingester whose relay is away."""
    given = {"bsync_url": bsync.url, "bsync_key": KEY} | settings
    async with ingesting(redis_url, f"ws://127.0.0.1:{free_port()}", **given) as ingester:
        yield ingester


def operations(redis_url: str, log: str = "mute") -> list[dict[str, Any]]:
    """Return what the entries of a log hold."""
    found = [orjson.loads(fields[b"operation"]) for fields in entries(redis_url, LIVE)]
    return [each for each in found if each["log"] == log]


def ids(redis_url: str, log: str = "mute") -> list[int]:
    return [each["id"] for each in operations(redis_url, log)]


def cursor(redis_url: str, log: str = "mute") -> str | None:
    return value(redis_url, f"{LIVE}:cursor:{log}")


def reached(redis_url: str, log: str, last: int) -> bool:
    return cursor(redis_url, log) == str(last)


def findings(ingester: Ingester) -> dict[str, str]:
    """Return the findings about bsync and their verdicts, by finding and subject."""
    return {
        f"{each['finding']} {each['subject']}".strip(): each["verdict"]
        for each in ingester.health.get("reports", ())
        if each["finding"].startswith("bsync")
    }


def is_live(redis_url: str, log: str = "mute") -> Callable[[], bool]:
    def look() -> bool:
        with redis_client(redis_url) as client:
            note: Any = client.hget(BSYNC_READINGS, log)
        return note is not None and bool(json.loads(note)["live"])

    return look


async def test_all_logs_are_read_in_order_with_their_cursors(
    clean_redis: str, bsync: Bsync
) -> None:
    bsync.load("scans-after")
    async with reading(clean_redis, bsync) as ingester:
        for log, served in bsync.logs.items():
            last = max(served)
            await eventually(partial(reached, clean_redis, log, last))
            assert ids(clean_redis, log) == sorted(served)
            await eventually(is_live(clean_redis, log))
        assert all(each["history"] for each in operations(clean_redis))
        bsync.add("mute", MUTE)
        await eventually(lambda: cursor(clean_redis) == str(max(bsync.logs["mute"])))
        newest = operations(clean_redis)[-1]
        assert (newest["history"], newest["did"], newest["operation"]["subject"]) == (
            False, ANN, BOB,
        )  # fmt: skip
        count = len(bsync.logs["mute"])
        await eventually(
            lambda: ingester.metric("ingester_bsync_operations_total", log="mute") == count
        )
        at = ingester.metric("ingester_cursor_seq", stream=LIVE, host="mute")
        assert at == int(str(cursor(clean_redis)))
        told = {(each["stream"], each["host"]): each["seq"] for each in ingester.health["cursors"]}
        await eventually(lambda: not findings(ingester))
        assert (LIVE, "notif") in told
    settings = Settings(bsync_url=bsync.url)
    store = connect(clean_redis, name="test")
    listed = {each.host: each for each in list_cursors(store, settings) if each.stream == LIVE}
    store.close()
    assert set(listed) == {"mute", "notif", "operation"}
    assert all(each.configured and each.seq for each in listed.values())


async def test_reading_goes_on_at_the_cursor_in_small_pages(
    clean_redis: str, bsync: Bsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "PAGE_OPERATIONS", 7)
    for _ in range(30):
        bsync.add("mute", MUTE)
    async with reading(clean_redis, bsync):
        await eventually(lambda: cursor(clean_redis) == "30")
    for _ in range(10):
        bsync.add("mute", MUTE)
    async with reading(clean_redis, bsync):
        await eventually(lambda: cursor(clean_redis) == "40")
    assert ids(clean_redis) == list(range(1, 41))


async def test_an_id_that_becomes_visible_late_is_read(clean_redis: str, bsync: Bsync) -> None:
    bsync.add("mute", MUTE)
    async with reading(clean_redis, bsync) as ingester:
        await eventually(is_live(clean_redis))
        bsync.add("mute", MUTE, 3)
        await eventually(lambda: cursor(clean_redis) == "3")
        bsync.add("mute", {**MUTE, "subject": ANN}, 2)
        await eventually(lambda: sorted(ids(clean_redis)) == [1, 2, 3])
        assert cursor(clean_redis) == "3"
        await eventually(
            lambda: ingester.metric("ingester_bsync_late_operations_total", log="mute") == 1
        )
        bsync.add("mute", MUTE, 6)
        await eventually(lambda: cursor(clean_redis) == "6")
    bsync.add("mute", MUTE, 5)  # while nobody reads
    async with reading(clean_redis, bsync):
        await eventually(lambda: 5 in ids(clean_redis))


async def test_a_new_database_is_noticed_and_begins_anew_when_asked(
    clean_redis: str, bsync: Bsync
) -> None:
    for _ in range(5):
        bsync.add("mute", MUTE)
    async with reading(clean_redis, bsync):
        await eventually(lambda: cursor(clean_redis) == "5")
    bsync.logs["mute"].clear()
    async with reading(clean_redis, bsync) as ingester:
        await eventually(lambda: findings(ingester) == {"bsync_replaced mute": "fail"})
        for _ in range(7):
            bsync.add("mute", {**MUTE, "type": "TYPE_REMOVE"})
        await eventually(lambda: "operation 1 is another one" in str(ingester.health["reports"]))
        assert cursor(clean_redis) == "5"  # nothing is read of it
        settings, store = Settings(bsync_url=bsync.url), connect(clean_redis, name="test")
        with pytest.raises(CursorRefusedError, match="as that of a new bsync database"):
            set_cursor(store, LIVE, HostKey("mute"), None, force=False)
        assert settings.bsync_url
        set_cursor(store, LIVE, HostKey("mute"), None, force=True)
        store.close()
        await eventually(lambda: cursor(clean_redis) == "7")
        await eventually(lambda: not findings(ingester))
    second = [each for each in operations(clean_redis) if each["reading"] == 1]
    assert [each["id"] for each in second] == list(range(1, 8))
    async with reading(clean_redis, bsync):
        bsync.add("mute", MUTE)
        await eventually(lambda: cursor(clean_redis) == "8")
    assert operations(clean_redis)[-1]["reading"] == 1


async def test_a_reset_begins_one_reading(clean_redis: str, bsync: Bsync) -> None:
    store = connect(clean_redis, name="test")
    set_cursor(store, LIVE, HostKey("mute"), None, force=True)
    store.close()
    for _ in range(2):  # nothing comes until the second run
        async with reading(clean_redis, bsync):
            await eventually(is_live(clean_redis))
    async with reading(clean_redis, bsync):
        bsync.add("mute", MUTE)
        await eventually(lambda: cursor(clean_redis) == "1")
    assert operations(clean_redis)[-1]["reading"] == 1


async def test_an_operator_can_go_on_where_operations_were_deleted(
    clean_redis: str, bsync: Bsync
) -> None:
    for _ in range(5):
        bsync.add("mute", MUTE)
    async with reading(clean_redis, bsync):
        await eventually(lambda: cursor(clean_redis) == "5")
    del bsync.logs["mute"][5]
    async with reading(clean_redis, bsync) as ingester:
        await eventually(lambda: findings(ingester) == {"bsync_replaced mute": "warn"})
        store = connect(clean_redis, name="test")
        set_cursor(store, LIVE, HostKey("mute"), 4, force=False)
        store.close()
        bsync.add("mute", MUTE, 6)
        await eventually(lambda: cursor(clean_redis) == "6")
        await eventually(lambda: not findings(ingester))
    del bsync.logs["mute"][6]
    bsync.add("mute", MUTE, 7)  # it went on, so it is the same log
    async with reading(clean_redis, bsync):
        await eventually(lambda: cursor(clean_redis) == "7")


async def test_a_wrong_key_and_an_old_server_are_one_finding(
    clean_redis: str, bsync: Bsync
) -> None:
    bsync.add("mute", MUTE)
    async with reading(clean_redis, bsync, bsync_key="another") as ingester:
        await eventually(lambda: findings(ingester) == {"bsync_refused": "fail"})
        assert "mute, notif, operation: bsync refuses bsync_key (401)" in str(
            ingester.health["reports"]
        )
        bsync.key = "another"
        await eventually(lambda: cursor(clean_redis) == "1")
        await eventually(lambda: not findings(ingester))
        bsync.old = True
        await eventually(lambda: findings(ingester) == {"bsync_refused": "fail"})
        bsync.old, bsync.status = False, 503
        await eventually(lambda: "answered 503" in str(ingester.health["reports"])
                         or not findings(ingester))  # fmt: skip
        bsync.status = 200
        bsync.add("mute", MUTE)
        await eventually(lambda: cursor(clean_redis) == "2")


async def test_a_lost_redis_goes_on_from_the_database(
    clean_redis: str, schema_database: str, bsync: Bsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MARGIN_OPERATIONS", 3)
    for _ in range(10):
        bsync.add("mute", MUTE)
    with Database.connect(schema_database, name="test") as database:
        last = digest(bsync.logs["mute"][8])
        database.execute(
            "INSERT INTO rsky_pipeline.bsync_log VALUES ('mute', %s, %s, false)",
            [2 * 2**48 + 8, last],
        )
    async with reading(clean_redis, bsync, database_url=schema_database):
        await eventually(lambda: cursor(clean_redis) == "10")
    assert sorted(set(ids(clean_redis))) == [6, 7, 8, 9, 10]
    assert {each["reading"] for each in operations(clean_redis)} == {2}


async def test_what_the_database_has_lost_is_read_again(
    clean_redis: str, bsync: Bsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_again, "_CHECK_SECONDS", 0.2)
    for _ in range(5):
        bsync.add("mute", MUTE)
    async with reading(clean_redis, bsync):
        await eventually(is_live(clean_redis))
        store = connect(clean_redis, name="test")
        await eventually(lambda: store.call("KEYS", "rsky_pipeline:cursor_history:*"))
        request_reading(store, "database_lost", time.time(), None, [])
        store.close()
        await eventually(lambda: ids(clean_redis) == [1, 2, 3, 4, 5] * 2)
        await eventually(lambda: cursor(clean_redis) == "5")
    assert {each["reading"] for each in operations(clean_redis)} == {0}


async def test_one_operation_that_is_too_large_costs_itself(
    clean_redis: str, bsync: Bsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MAX_ANSWER", 3_000)
    for number in range(1, 9):
        subject = "at://" + "x" * (5_000 if number == 4 else 400)
        bsync.add("mute", {**MUTE, "subject": subject})
    async with reading(clean_redis, bsync):
        await eventually(lambda: cursor(clean_redis) == "8")
    assert ids(clean_redis) == [1, 2, 3, 5, 6, 7, 8]


async def test_a_full_stream_stops_reading(
    clean_redis: str, bsync: Bsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "PAGE_OPERATIONS", 5)
    for _ in range(30):
        bsync.add("mute", MUTE)
    async with reading(
        clean_redis, bsync, live_high_water_mark=10, ingester_batch_size=5
    ) as ingester:
        await eventually(lambda: ingester.health.get("held_up"))
        assert len(ids(clean_redis)) <= 15
        with redis_client(clean_redis) as client:
            client.xtrim(LIVE, maxlen=0)
            await eventually(lambda: len(ids(clean_redis)) > 0)
            client.xtrim(LIVE, maxlen=0)
            await eventually(lambda: cursor(clean_redis) in ("20", "25", "30"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({}, ([], 5, 0)),
        ({"operations": [{"id": "7"}, {"id": "6"}, {"id": "5"}], "cursor": "7"}, ([6, 7], 7, 1)),
        ({"operations": [{"id": 8}, 3, {"id": "x"}], "cursor": "9"}, ([], 9, 3)),
        ({"operations": [{"id": str(2**60)}], "cursor": str(2**60)}, ([], 5, 1)),
        ({"operations": [{"id": "9"}], "cursor": None}, ([9], 9, 0)),
    ],
)
def test_answers_to_scans(answer: object, expected: tuple[list[int], int, int]) -> None:
    scan = read_scan(answer, 5)
    assert ([number for number, _ in scan.operations], scan.next, scan.unreadable) == expected


@pytest.mark.parametrize("answer", [None, [], "text", {"operations": {}}])
def test_answers_that_are_none(answer: object) -> None:
    with pytest.raises(HttpError):
        read_scan(answer, 0)
