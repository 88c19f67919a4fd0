"""Operations of bsync become the rows of the official consumer, in whatever batches they come."""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsky_pipeline.database.connection import Database
from rsky_pipeline.indexer.bsync.apply import apply_operations, write_waiting_ages
from rsky_pipeline.indexer.bsync.operations import (
    AGE_ACCESS,
    BOOKMARK,
    DRAFT,
    SUBSCRIPTION,
    Operation,
    read_bsync,
)
from rsky_pipeline.operations.subjects import NamedSubject
from rsky_pipeline.operations.trace import applied_logs, private_operations, search
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.bsync import BSYNC_LOGS, OPERATION_FIELD, BsyncEntry
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.names import BSYNC_LIVE
from tests.data import test_data
from tests.integration.indexer.kit import NOW, Network, Tables, did_of

TABLES = {
    "mute": ("mutedByDid", "subjectDid", "onlyReposts", "onlyQuoteposts", "createdAt"),
    "list_mute": ("mutedByDid", "listUri", "createdAt"),
    "thread_mute": ("mutedByDid", "rootUri", "createdAt"),
    "actor_state": ("did", "priorityNotifs", "lastSeenNotifs"),
    "private_data": ("actorDid", "namespace", "key", "payload", "indexedAt", "updatedAt"),
    "activity_subscription": ("creator", "key", "subjectDid", "post", "reply", "indexedAt"),
    "bookmark": ("creator", "key", "subjectUri", "subjectCid", "indexedAt"),
    "draft": ("creator", "key", "payload", "createdAt", "updatedAt"),
    "post_agg": ("uri", "bookmarkCount"),
}
TIMES = {"createdAt", "indexedAt", "updatedAt", "lastSeenNotifs"}
AGES = (
    "did", "ageAssuranceStatus", "ageAssuranceLastInitiatedAt", "ageAssuranceAccess",
    "ageAssuranceCountryCode", "ageAssuranceRegionCode",
)  # fmt: skip
OURS = ("bsync_log", "bsync_applied", "bsync_created", "bsync_age_assurance")
Rows = dict[str, set[tuple[Any, ...]]]


def entry(
    log: str, number: int, served: dict[str, Any], *, history: bool = False, reading: int = 0
) -> Operation:
    """Return an operation as the indexer reads it of its entry."""
    time = f"2026-01-01T00:{number // 60 % 60:02}:{number % 60:02}.000Z"
    made = BsyncEntry(log, reading, number, time, history, served)
    found = read_bsync({OPERATION_FIELD: made.payload()})
    assert found.operation is not None, found.refused
    return found.operation


def mute(number: int, who: str, subject: str, kind: str = "ADD", **fields: Any) -> Operation:
    served = {"actorDid": did_of(who), "type": f"TYPE_{kind}", "subject": subject, **fields}
    return entry("mute", number, {name: value for name, value in served.items() if value})


def put(
    number: int, who: str, namespace: str, key: str, method: str, content: object = None,
    **options: Any,
) -> Operation:  # fmt: skip
    served = {"actorDid": did_of(who), "namespace": namespace, "key": key,
              "method": f"METHOD_{method}"}  # fmt: skip
    if method != "DELETE":
        served["payload"] = b64encode(json.dumps(content).encode()).decode()
    return entry("operation", number, served, **options)


def bookmark(number: int, key: str, post: str, **options: Any) -> Operation:
    content = {"subject": {"uri": f"at://{post}", "cid": f"cid{post}"}}
    return put(number, "ann", BOOKMARK, key, "CREATE", content, **options)


def rows_of(database: Database, tables: Iterable[str] = TABLES) -> Rows:
    """Return the rows of tables that bsync fills."""
    found: Rows = {}
    for table in tables:
        columns = ", ".join(f'"{name}"' for name in TABLES[table])
        found[table] = set(database.query(f"SELECT {columns} FROM {table}"))
    return found


def untimed(rows: Rows) -> Rows:
    """Return rows without their times."""
    return {
        table: {
            tuple(value for name, value in zip(TABLES[table], row, strict=True)
                  if name not in TIMES)
            for row in several
        }
        for table, several in rows.items()
    }  # fmt: skip


def in_batches(database: Database, operations: Sequence[Operation], size: int) -> None:
    for start in range(0, len(operations), size):
        apply_operations(database, operations[start : start + size])


# --- the official consumer, one operation after the other ---------------------------------------


class Official:
    """A model of the official consumer: rows by table and primary key."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[tuple[str, ...], dict[str, Any]]] = {
            name: {} for name in TABLES
        }

    def rows(self) -> Rows:
        return {
            table: {tuple(row[name] for name in TABLES[table]) for row in rows.values()}
            for table, rows in self.tables.items()
        }

    def apply(self, each: Operation) -> None:
        if each.log == "mute":
            self._mute(each)
        elif each.log == "notif":
            if each.priority is not None:
                did = each.item.actor
                row = self.tables["actor_state"].setdefault(
                    (did,), {"did": did, "lastSeenNotifs": each.time}
                )
                row["priorityNotifs"] = each.priority
        else:
            self._private(each)

    def _mute(self, each: Operation) -> None:
        actor, table, subject = each.item
        if each.method == "clear":
            for name in ("mute", "list_mute"):
                rows = self.tables[name]
                self.tables[name] = {key: row for key, row in rows.items() if key[0] != actor}
        elif each.method == "delete":
            self.tables[table].pop((actor, subject), None)
        else:
            row = self.tables[table].setdefault(
                (actor, subject),
                {"mutedByDid": actor, TABLES[table][1]: subject, "createdAt": each.time},
            )
            row |= {"onlyReposts": each.only_reposts, "onlyQuoteposts": each.only_quoteposts}

    def _private(self, each: Operation) -> None:
        actor, namespace, key = each.item
        rows = self.tables["private_data"]
        if each.method == "delete":
            rows.pop(each.item, None)
        else:
            row = rows.setdefault(
                each.item,
                {"actorDid": actor, "namespace": namespace, "key": key, "indexedAt": each.time},
            )
            row |= {"payload": each.payload, "updatedAt": each.time}
        body = json.loads(each.payload) if each.payload else {}
        if namespace == BOOKMARK:
            self._bookmark(each, body)
        elif namespace == DRAFT:
            self._draft(each)
        elif namespace == SUBSCRIPTION:
            self._subscription(each, body)

    def _bookmark(self, each: Operation, body: dict[str, Any]) -> None:
        rows, where = self.tables["bookmark"], (each.item.actor, each.item.key)
        if each.method == "create":
            uri = body["subject"]["uri"]
            if where in rows or any(
                row["creator"] == where[0] and row["subjectUri"] == uri for row in rows.values()
            ):
                return
            rows[where] = {"creator": where[0], "key": where[1], "subjectUri": uri,
                           "subjectCid": body["subject"]["cid"],
                           "indexedAt": each.time}  # fmt: skip
        elif each.method == "delete" and where in rows:
            uri = rows.pop(where)["subjectUri"]
        else:
            return
        count = sum(row["subjectUri"] == uri for row in rows.values())
        self.tables["post_agg"][uri,] = {"uri": uri, "bookmarkCount": count}

    def _draft(self, each: Operation) -> None:
        rows, where = self.tables["draft"], (each.item.actor, each.item.key)
        if each.method == "create" and where not in rows:
            rows[where] = {"creator": where[0], "key": where[1], "createdAt": each.time,
                           "updatedAt": each.time, "payload": each.payload}  # fmt: skip
        elif each.method == "update" and where in rows:
            rows[where] |= {"payload": each.payload, "updatedAt": each.time}
        elif each.method == "delete":
            rows.pop(where, None)

    def _subscription(self, each: Operation, body: dict[str, Any]) -> None:
        rows = self.tables["activity_subscription"]
        where = (each.item.actor, each.item.key)
        wanted = body.get("activitySubscription", {})
        if each.method == "create":
            subject = body["subject"]
            if where not in rows and not any(
                row["creator"] == where[0] and row["subjectDid"] == subject for row in rows.values()
            ):
                rows[where] = {"creator": where[0], "key": where[1], "subjectDid": subject,
                               "indexedAt": each.time, **wanted}  # fmt: skip
        elif each.method == "update" and where in rows:
            rows[where] |= {**wanted, "indexedAt": each.time}
        elif each.method == "delete":
            rows.pop(where, None)


# --- the recording ------------------------------------------------------------------------------


def recorded(folder: str) -> list[Operation]:
    """Return the operations of the recorded scans."""
    found = []
    for log in BSYNC_LOGS:
        scan = json.loads((test_data(f"bsync/{folder}") / f"{log}.json").read_text())
        found += [entry(log, int(each["id"]), each) for each in scan["operations"]]
    return found


def recorded_rows(folder: str, table: str) -> list[dict[str, Any]]:
    path = test_data(f"bsync/{folder}") / f"{table}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def expected_rows(folder: str) -> Rows:
    return untimed(
        {
            table: {
                tuple(row[name] for name in TABLES[table]) for row in recorded_rows(folder, table)
            }
            for table in TABLES
        }
    )


@pytest.mark.parametrize("size", [1, 7, 2_000])
def test_recorded_operations_give_the_recorded_rows(tables: Tables, size: int) -> None:
    database = tables.database
    for table, names in (("actor", AGES), ("post_agg", ("uri", "bookmarkCount"))):
        for row in recorded_rows("rows-before", table):
            keys = [*names, *(["indexedAt"] if table == "actor" else [])]
            columns = ", ".join(f'"{key}"' for key in keys)
            marks = ", ".join(["%s"] * len(keys))
            database.execute(
                f"INSERT INTO {table} ({columns}) VALUES ({marks})", [row[key] for key in keys]
            )
    in_batches(database, recorded("scans-after"), size)
    expected, found = expected_rows("rows-after"), untimed(rows_of(database))
    seen = {row for row in expected["actor_state"] if row not in found["actor_state"]}
    assert all(not priority for _, priority in seen)  # made by "seen" alone
    expected["actor_state"] -= seen
    assert found == expected
    columns = ", ".join(f'"{name}"' for name in AGES)
    ages = {tuple(row[name] for name in AGES) for row in recorded_rows("rows-after", "actor")}
    assert set(database.query(f"SELECT {columns} FROM actor")) == ages


@pytest.mark.parametrize("size", [1, 7, 2_000])
def test_recorded_operations_replayed_into_an_empty_database(tables: Tables, size: int) -> None:
    in_batches(tables.database, recorded("scans-final"), size)
    assert untimed(rows_of(tables.database)) == expected_rows("rows-replayed-into-empty")
    before = rows_of(tables.database)
    in_batches(tables.database, recorded("scans-final"), size)
    assert rows_of(tables.database) == before  # also their times


def test_payloads_are_stored_as_they_were_served(tables: Tables) -> None:
    scan = json.loads((test_data("bsync/scans-after") / "operation.json").read_text())
    in_batches(tables.database, recorded("scans-after"), 50)
    texts = {
        b64decode(each["payload"]).decode("utf-8", "replace")
        for each in scan["operations"]
        if "payload" in each
    }
    stored = tables.database.query("SELECT payload FROM private_data")
    assert stored
    assert {payload for (payload,) in stored} <= texts


# --- any batches, replays, late ids ---------------------------------------------------------------

PEOPLE = st.sampled_from(["ann", "bob"])
SUBJECTS = st.sampled_from(
    [
        did_of("carol"), did_of("dan"), "at://did:web:a.example/app.bsky.graph.list/l1",
        "at://did:web:a.example/app.bsky.feed.post/p1",
    ]
)  # fmt: skip
KINDS = st.sampled_from(["ADD", "ADD", "REMOVE", "CLEAR"])
METHODS = st.sampled_from(["CREATE", "CREATE", "UPDATE", "DELETE"])
NAMESPACES = st.sampled_from([BOOKMARK, DRAFT, SUBSCRIPTION, "com.example.any"])
POSTS = st.sampled_from(["p1", "p2"])


def content_of(namespace: str, post: str, number: int) -> dict[str, Any]:
    if namespace == BOOKMARK:
        return {"subject": {"uri": f"at://{post}", "cid": f"cid-{post}"}}
    if namespace == SUBSCRIPTION:
        wanted = {"post": bool(number % 2), "reply": bool(number % 3)}
        return {"subject": did_of(post), "activitySubscription": wanted}
    return {"number": number}


@st.composite
def logs(draw: st.DrawFn, *, usual: bool = False) -> list[Operation]:
    """Operations in their order; `usual` ones are as an AppView makes them: each key once."""
    found = []
    for number in range(1, draw(st.integers(2, 24)) + 1):
        who = draw(PEOPLE)
        if draw(st.booleans()):
            kind = draw(KINDS)
            subject = "" if kind == "CLEAR" else draw(SUBJECTS)
            scopes = draw(st.booleans()) and subject.startswith("did:")
            found.append(mute(number, who, subject, kind, onlyReposts=scopes))
            continue
        namespace, post = draw(NAMESPACES), draw(POSTS)
        made = sorted({each.item.key for each in found if each.item.namespace == namespace
                       and each.item.actor == did_of(who)})  # fmt: skip
        method = draw(METHODS)
        if usual:
            if not made or method == "CREATE":
                method, key = "CREATE", f"k{number}"
            else:
                key = draw(st.sampled_from(made))
            deleted = any(each.item.key == key and each.method == "delete" for each in found)
            if deleted or (method == "UPDATE" and namespace == BOOKMARK):
                continue
            if method == "UPDATE":  # an UPDATE leaves the subject as it was
                first = next(each for each in found if each.item.key == key)
                content = json.loads(first.payload) | (
                    {"activitySubscription": content_of(namespace, post, number)[
                        "activitySubscription"]} if namespace == SUBSCRIPTION
                    else {"number": number}
                )  # fmt: skip
                found.append(put(number, who, namespace, key, method, content))
                continue
        else:
            key = draw(st.sampled_from(["k1", "k2"]))
        found.append(put(number, who, namespace, key, method, content_of(namespace, post, number)))
    return found


@pytest.fixture(scope="module")
def shared(database_server: str, schema_template: str) -> Iterable[Database]:
    """A database for all examples, which empty it."""
    from tests import stores

    with (
        stores.fresh_database(database_server, schema_template) as url,
        Database.connect(url, name="test") as database,
    ):
        yield database


def emptied(database: Database) -> Database:
    names = ", ".join([*TABLES, *(f"rsky_pipeline.{name}" for name in OURS)])
    database.execute(f"TRUNCATE {names}")
    return database


def official_rows(operations: Sequence[Operation]) -> Rows:
    model = Official()
    for each in sorted(operations, key=lambda it: it.place):
        model.apply(each)
    return model.rows()


few = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(logs(), st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(0, 24))
@few
def test_any_batches_and_replays_are_the_official_consumer(
    shared: Database, log: list[Operation], sizes: list[int], again: int
) -> None:
    database, start = emptied(shared), 0
    for turn in range(len(log)):
        size = sizes[turn % len(sizes)]
        apply_operations(database, log[max(0, start - again) : start + size])
        start += size
    assert rows_of(database) == official_rows(log)


@given(logs(usual=True), st.randoms(use_true_random=False), st.integers(1, 5))
@few
def test_any_order_of_a_usual_log_converges(
    shared: Database, log: list[Operation], random: Any, size: int
) -> None:
    database = emptied(shared)
    shuffled = [*log, *log[:5]]
    random.shuffle(shuffled)
    in_batches(database, shuffled, size)
    counted = {row for row in rows_of(database)["post_agg"] if row[1]}
    expected = official_rows(log)
    found = untimed(rows_of(database))
    assert counted == {row for row in expected.pop("post_agg") if row[1]}
    del found["post_agg"]  # a count of nothing is a row or none
    assert found == untimed(expected)


def test_a_later_reading_overtakes_the_earlier_one(tables: Tables) -> None:
    database = tables.database
    apply_operations(database, [mute(50, "ann", did_of("bob")), bookmark(50, "k1", "p1")])
    served = {"actorDid": did_of("ann"), "type": "TYPE_REMOVE", "subject": did_of("bob")}
    apply_operations(database, [entry("mute", 1, served, reading=1)])
    apply_operations(database, [bookmark(1, "k1", "p1", reading=1)])
    gone = put(2, "ann", BOOKMARK, "k1", "DELETE", reading=1)
    assert rows_of(database)["mute"] == set()
    assert len(rows_of(database)["bookmark"]) == 1
    apply_operations(database, [gone])
    assert rows_of(database)["bookmark"] == set()
    logs = database.query("SELECT log, place FROM rsky_pipeline.bsync_log ORDER BY 1")
    assert logs == [("mute", 2**48 + 1), ("operation", 2**48 + 2)]


def test_history_has_the_times_of_its_keys(tables: Tables) -> None:
    old, new = "3kbbbbbbbbb2a", "3zzzzzzzzzz2a"  # of 2023, and of after its arrival
    apply_operations(
        tables.database,
        [
            bookmark(1, old, "p1", history=True), bookmark(2, new, "p2", history=True),
            bookmark(3, "3kbbbbbbbbb2b", "p3"),
            put(4, "ann", DRAFT, old, "CREATE", {}, history=True),
            put(5, "ann", DRAFT, old, "UPDATE", {"changed": 1}, history=True),
        ],
    )  # fmt: skip
    times = {row[1]: row[4] for row in rows_of(tables.database)["bookmark"]}
    assert times[old].startswith("2023-")
    assert times[new] == "2026-01-01T00:00:02.000Z"
    assert times["3kbbbbbbbbb2b"] == "2026-01-01T00:00:03.000Z"
    ((_, _, payload, made, changed),) = rows_of(tables.database)["draft"]
    assert (payload, made, changed) == ('{"changed": 1}', times[old], times[old])


def test_rows_of_the_official_consumer_keep_their_times(tables: Tables) -> None:
    database = tables.database
    rows: tuple[tuple[str, tuple[object, ...]], ...] = (
        ("mute", (did_of("ann"), did_of("bob"), False, False, "2020")),
        ("bookmark", (did_of("ann"), "k1", "at://p1", "cidp1", "2020")),
        ("draft", (did_of("ann"), "d1", "{}", "2020", "2020")),
    )
    for table, values in rows:
        columns = ", ".join(f'"{name}"' for name in TABLES[table])
        marks = ", ".join(["%s"] * len(values))
        database.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)
    apply_operations(
        database,
        [
            mute(1, "ann", did_of("bob"), onlyReposts=True), bookmark(1, "k1", "p1"),
            put(2, "ann", DRAFT, "d1", "UPDATE", {"new": 1}),  # its CREATE was read by others
        ],
    )  # fmt: skip
    found = rows_of(database)
    assert found["mute"] == {(did_of("ann"), did_of("bob"), True, False, "2020")}
    assert {row[4] for row in found["bookmark"]} == {"2020"}
    assert {(row[2], row[3]) for row in found["draft"]} == {('{"new": 1}', "2020")}
    apply_operations(database, [put(3, "ann", DRAFT, "d1", "DELETE")])
    assert rows_of(database)["draft"] == set()


def test_the_age_of_an_account_that_comes_later(tables: Tables, net: Network) -> None:
    content = {"createdAt": "2026-01-01T00:00:00Z", "status": "pending", "access": "none",
               "countryCode": "GB"}  # fmt: skip
    ages = 'SELECT "ageAssuranceStatus", "ageAssuranceLastInitiatedAt" FROM actor'
    late = content | {"status": "assured", "access": "full"}
    apply_operations(tables.database, [put(2, "ann", AGE_ACCESS, "a2", "CREATE", late)])
    assert write_waiting_ages(tables.database) == 0
    tables.apply(net.post("ann"))
    assert write_waiting_ages(tables.database) == 1
    apply_operations(tables.database, [put(1, "ann", AGE_ACCESS, "a1", "CREATE", content)])
    assert tables.database.query(ages) == [("assured", "2026-01-01T00:00:00Z")]
    assert write_waiting_ages(tables.database) == 0


@pytest.mark.parametrize(
    ("log", "served", "reason"),
    [
        ("mute", {"type": "TYPE_ADD", "subject": did_of("bob")}, "missing_field"),
        ("mute", {"actorDid": "nobody", "type": "TYPE_ADD", "subject": "x"}, "invalid_did"),
        ("mute", {"actorDid": did_of("a"), "subject": did_of("bob")}, "unknown_type"),
        ("mute", {"actorDid": did_of("a"), "type": 9, "subject": did_of("b")}, "unknown_type"),
        ("mute", {"actorDid": did_of("a"), "type": 1, "subject": "no uri"}, "invalid_uri"),
        ("mute", {"actorDid": did_of("a"), "type": 1, "subject": "did:" + "x" * 400},
         "invalid_did"),
        ("notif", {"actorDid": did_of("a"), "priority": "yes"}, "invalid_field"),
        ("operation", {"actorDid": did_of("a"), "namespace": "n", "key": "k",
                       "method": "METHOD_CREATE"}, "missing_field"),
        ("operation", {"actorDid": did_of("a"), "namespace": "n", "key": "k" * 600, "method": 3},
         "invalid_field"),
        ("operation", {"actorDid": did_of("a"), "namespace": "n", "key": "k", "method": 1,
                       "payload": b64encode(b"x" * 1_048_577).decode()}, "too_big"),
        ("operation", {"actorDid": did_of("a"), "namespace": "n", "key": "k", "method": 1,
                       "payload": "%"}, "invalid_field"),
        ("operation", {"actorDid": did_of("a"), "namespace": "n", "key": "k", "method": 1,
                       "payload": b64encode(b'"a\0b"').decode()}, "invalid_field"),
        ("other", {"actorDid": did_of("a")}, "invalid_field"),
    ],
)  # fmt: skip
def test_operations_that_cannot_be_applied_are_refused(
    log: str, served: dict[str, Any], reason: str
) -> None:
    made = BsyncEntry(log, 0, 1, "2026-01-01T00:00:00.000Z", False, served)
    found = read_bsync({OPERATION_FIELD: made.payload()})
    assert found.refused is not None
    assert found.refused.reason == reason


def test_payloads_that_do_not_fit_are_private_data_alone(tables: Tables) -> None:
    odd: list[object] = [
        {"no": "subject"}, [1], "text", {"subject": {"uri": "a\0b", "cid": "c"}},
        {"subject": {"uri": "at://" + "x" * 2_000, "cid": "c"}}, {"subject": {"uri": 1, "cid": 2}},
        {"subject": did_of("bob"), "activitySubscription": {"post": 1, "reply": True}},
    ]  # fmt: skip
    operations = [
        put(10 * number + at, "ann", namespace, f"k{number}", "CREATE", content)
        for number, content in enumerate(odd, 1)
        for at, namespace in enumerate((BOOKMARK, SUBSCRIPTION))
    ]
    apply_operations(tables.database, operations)
    rows = rows_of(tables.database)
    assert len(rows["private_data"]) == 2 * len(odd)
    assert rows["bookmark"] == rows["activity_subscription"] == rows["post_agg"] == set()


def test_a_thread_mute_counts_for_what_comes_after_it(tables: Tables, net: Network) -> None:
    root = net.post("ann")
    tables.apply(root, net.reply("bob", root))
    apply_operations(tables.database, [mute(1, "ann", root.uri)])
    tables.apply(net.reply("bob", root))
    apply_operations(tables.database, [mute(2, "ann", root.uri, "REMOVE")])
    tables.apply(net.reply("bob", root))
    ((count,),) = tables.database.query(
        "SELECT count(*) FROM notification WHERE did = %s", [did_of("ann")]
    )
    assert count == 2


def test_operations_of_bsync_about_an_account_and_a_post(
    clean_redis: str, tables: Tables, net: Network
) -> None:
    post = net.post("ann")
    tables.apply(post)
    content = {"subject": {"uri": post.uri, "cid": "c"}}
    apply_operations(
        tables.database,
        [
            mute(1, "bob", did_of("ann")), mute(2, "bob", post.uri), mute(3, "bob", did_of("eve")),
            mute(4, "bob", did_of("eve"), "REMOVE"),
            put(7, "bob", BOOKMARK, "k", "CREATE", content),
            put(8, "bob", BOOKMARK, "again", "CREATE", content),
        ],
    )  # fmt: skip
    waiting = BsyncEntry("mute", 0, 5, NOW, False, {
        "actorDid": did_of("bob"), "type": "TYPE_ADD", "subject": did_of("ann"),
    })  # fmt: skip
    store = connect(clean_redis, name="test")
    append(store, [Entry(BSYNC_LIVE, OPERATION_FIELD, waiting.payload())])
    found = search(store, NamedSubject(did_of("bob"))).entries
    about = search(store, NamedSubject(did_of("ann"))).entries
    other = search(store, NamedSubject(did_of("eve"))).entries
    store.close()
    assert [(each.stream, each.kind) for each in found] == [(BSYNC_LIVE, "operation")]
    assert (len(about), other) == (1, ())
    private = private_operations(tables.database, NamedSubject(did_of("bob")))
    listed = {(each["log"], each["id"]): (each["stored"], each["shown"]) for each in private}
    assert listed == {
        ("mute", 1): (True, None), ("mute", 2): (True, None), ("mute", 4): (False, None),
        ("operation", 7): (True, True), ("operation", 8): (True, False),
    }  # fmt: skip
    of_post = private_operations(
        tables.database, NamedSubject(did_of("ann"), "app.bsky.feed.post", post.rkey)
    )
    assert [(each["actor"], each["id"]) for each in of_post] == [
        (did_of("bob"), 7), (did_of("bob"), 2),
    ]  # fmt: skip
    assert applied_logs(tables.database)["mute"].startswith("4 at ")
