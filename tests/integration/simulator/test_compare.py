"""Comparing finds every kind of difference, and only differences."""

import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.demo.simulator.compare import TableReport, compare
from rsky_pipeline.demo.simulator.tables import ANY, TABLES, Rows, Truth, one_of

NOW = "2026-01-01T00:00:00.000Z"
POST = "at://did:plc:a/app.bsky.feed.post/1"


def reports(url: str, truth: Truth, **options: object) -> dict[str, TableReport]:
    found = compare(url, "bsky", {name: {} for name in TABLES} | truth, **options)  # type: ignore[arg-type]
    return {report.name: report for report in found}


def execute(url: str, sql: str, *values: object) -> None:
    with Database.connect(url, name="test") as database:
        database.execute(sql, values)


def put_record(url: str, json: str, uri: str = POST, cid: str = "c") -> None:
    sql = 'INSERT INTO record (uri, cid, did, json, "indexedAt") VALUES (%s, %s, %s, %s, %s)'
    execute(url, sql, uri, cid, uri[5:].partition("/")[0], json, NOW)


def test_every_table_of_the_list_can_be_read(schema_database: str) -> None:
    found = reports(schema_database, {})
    assert set(found) == {*TABLES, "notification"}
    assert not any(report.differences or report.found for report in found.values())


def test_missing_extra_and_different_rows_are_told_apart(schema_database: str) -> None:
    put_record(schema_database, '{"b": [1, 2], "a": "x"}')
    put_record(schema_database, "{}", "at://did:plc:a/x/2")
    expected: Rows = {
        (POST,): ("c", "did:plc:a", '{"a":"x","b":[1,2]}'),
        ("at://did:plc:a/x/3",): ("c", "did:plc:a", "{}"),
    }
    report = reports(schema_database, {"record": dict(expected)})["record"]
    assert (report.expected, report.found) == (2, 2)
    assert (report.missing, report.extra, report.different) == (1, 1, 0)
    assert report.examples == (
        "missing at://did:plc:a/x/3",
        "not expected at://did:plc:a/x/2",
    )
    expected[POST,] = ("c", "did:plc:a", '{"a":"y","b":[1,2]}')
    report = reports(schema_database, {"record": dict(expected)})["record"]
    assert report.different == 1
    assert "json is" in report.examples[-1]
    report = reports(schema_database, {"record": expected}, leave_out=["record.json"])["record"]
    assert report.different == 0


def test_flags_and_times_are_compared_by_what_they_mean(schema_database: str) -> None:
    sql = """INSERT INTO post (uri, cid, creator, text, "createdAt", "indexedAt", langs)
        VALUES (%s, 'c', 'did:plc:a', 't', '2025-01-01T01:00:00.000Z', %s, '["en"]')"""
    execute(schema_database, sql, POST, NOW)
    row = ["c", "did:plc:a", "t", None, None, None, None, "2025-01-01T01:00:00.000Z",
           "2025-01-01T01:00:00.000Z", ["en"], None, False, False, False, False, False]  # fmt: skip
    assert reports(schema_database, {"post": {(POST,): tuple(row)}})["post"].differences == 0
    row[-1] = True
    assert reports(schema_database, {"post": {(POST,): tuple(row)}})["post"].different == 1


@pytest.mark.parametrize(("count", "expected"), [(3, 3), (0, None)])
def test_counts_of_nothing_need_no_row(
    schema_database: str, count: int, expected: int | None
) -> None:
    execute(schema_database, 'INSERT INTO post_agg (uri, "likeCount") VALUES (%s, %s)', POST, count)
    truth: Truth = {"post_agg.likeCount": {} if expected is None else {(POST,): (expected,)}}
    assert reports(schema_database, truth)["post_agg.likeCount"].differences == 0
    truth = {"post_agg.likeCount": {(POST,): (7,)}}
    assert reports(schema_database, truth)["post_agg.likeCount"].differences == 1


def test_open_values_admit_what_they_may_be(schema_database: str) -> None:
    sql = 'INSERT INTO actor_sync (did, "commitCid", "repoRev") VALUES (%s, %s, %s)'
    execute(schema_database, sql, "did:plc:a", "c2", "r2")

    def differences(row: tuple[object, object], did: str = "did:plc:a") -> int:
        truth: Truth = {"actor_sync": {("did:plc:a",): ("c2", "r2")} | {(did,): row}}
        return reports(schema_database, truth)["actor_sync"].differences

    assert differences((ANY, ANY)) == 0
    assert differences((one_of(["c1", "c2"]), one_of(["r1", "r2"]))) == 0
    assert differences((one_of(["c1", "c3"]), ANY)) == 1
    assert differences((ANY, ANY), "did:plc:missing") == 0
    assert differences((one_of(["c1"]), ANY), "did:plc:missing") == 1


def test_nobody_is_told_twice_or_of_what_is_not_there(schema_database: str) -> None:
    sql = """INSERT INTO notification (did, "recordUri", "recordCid", author, reason, "sortAt")
        VALUES ('did:plc:b', %s, 'c', %s, 'mention', %s)"""
    truth: Truth = {"record": {(POST,): ("c", "did:plc:a", "{}")}}
    execute(schema_database, sql, POST, "did:plc:a", NOW)
    assert reports(schema_database, truth)["notification"].differences == 0
    execute(schema_database, sql, POST, "did:plc:a", NOW)
    assert reports(schema_database, truth)["notification"].extra == 1
    execute(schema_database, sql, "at://did:plc:a/x/gone", "did:plc:a", NOW)
    assert reports(schema_database, truth)["notification"].extra == 2
