"""The recorded official network, applied in order: every table equals the official rows.

Deliberate differences are those of docs/appview-parity.md; their exact extent is checked here. A
difference in another table, or of another kind, fails.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio

from rsky_pipeline.atproto.identity import parse_did_document
from rsky_pipeline.indexer.accounts.purge import purge_account
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.values import Delete, Put
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import AccountChange, Reading, read_entry
from tests.data import test_data
from tests.integration.indexer.kit import Tables, any_count, recounted
from tests.integration.indexer.recorded import expected_rows, payloads, refused_uris
from tests.integration.indexer.test_accounts import check_handles

Rows = Counter[str]
PREFIXES = ("app.bsky.", "chat.bsky.", "com.germnetwork.")
DOCUMENT = Path(__file__).parents[3] / "docs" / "appview-parity.md"
# A view that nobody refreshes, and what the migrations themselves insert.
OTHERS = {"algo_whats_hot_view", "view_param"}


def listed() -> set[str]:
    """Return the tables for which the documentation lists a deliberate difference."""
    first = DOCUMENT.read_text().partition("Where official tables are")[0]
    return set(re.findall(r"^\| `(\w+)` \|", first, re.MULTILINE))


@pytest.fixture
def folder() -> Path:
    return test_data("recorded")


def read_all(folder: Path) -> list[Reading]:
    """Return the recording without what the official indexer refuses."""
    refused = refused_uris(folder)
    found = []
    for payload in payloads(folder, PREFIXES):
        body = json.loads(payload)
        uri = f"at://{body['did']}/{body.get('collection')}/{body.get('rkey')}"
        reading = read_entry({b"event": payload}, registry.load())
        if uri not in refused or isinstance(reading.change, Delete):
            assert reading.refused is None, (uri, reading.refused)
            found.append(reading)
    return found


def feed(tables: Tables, readings: Sequence[Reading], size: int) -> None:
    """Apply in batches; accounts are purged where the recording deletes them, as officially."""
    batch: list[Reading] = []
    for reading in readings:
        batch.append(reading)
        deleted = isinstance(reading.change, AccountChange) and reading.change.status == "deleted"
        if len(batch) >= size or deleted:
            apply_batch(tables.database, batch, registry.load())
            batch = []
        if deleted:
            purge_account(tables.database, reading.did, registry.load())
    apply_batch(tables.database, batch, registry.load())


def compare_all(tables: Tables, folder: Path) -> set[str]:
    """Fail on a difference in a table for which none is documented; return the equal tables."""
    counts = json.loads((folder / "appview-expected" / "_counts.json").read_text())
    names = set(counts) - OTHERS
    assert listed() <= names
    for table in sorted(names - listed()):
        if counts[table]:
            assert differences(tables, folder, table) == ([], []), table
        else:
            assert tables.rows(table) == [], table
    for table in sorted(listed()):  # a difference that is gone must not stay documented
        assert differences(tables, folder, table) != ([], []), table
    return names - listed()


def differences(tables: Tables, folder: Path, table: str) -> tuple[list[Any], list[Any]]:
    """Return the official rows that are missing here, and ours that are not official."""
    expected = expected_rows(folder, table)
    names = list(expected[0])
    ours = [{name: row[name] for name in names} for row in tables.dicts(table)]
    left, right = Counter(map(shown, expected)), Counter(map(shown, ours))
    missing, extra = left - right, right - left
    return [json.loads(row) for row in missing.elements()], [
        json.loads(row) for row in extra.elements()
    ]


def shown(row: dict[str, Any]) -> str:
    """Return a row as a text, without what differs by nature."""
    masked = {name: value for name, value in row.items() if name not in {"id", "deletedAt"}}
    if "json" in masked:
        masked["json"] = json.loads(masked["json"])
    return json.dumps(masked, sort_keys=True)


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.long), 20, 10_000])
def test_every_table_equals_the_official_rows(tables: Tables, folder: Path, size: int) -> None:
    readings = read_all(folder)
    feed(tables, readings, size)
    check_official(tables, folder, readings)


def check_official(tables: Tables, folder: Path, readings: Sequence[Reading]) -> None:
    """Fail on a difference from the official rows that is not documented."""
    gone = {
        reading.did
        for reading in readings
        if isinstance(reading.change, AccountChange) and reading.change.status == "deleted"
    }
    assert len(gone) == 3
    compared = compare_all(tables, folder)
    assert compared >= {"record", "like", "follow", "op_thread_reply", "post_embed_image"}
    check_leftovers_of_deleted_accounts(tables, folder, gone)
    check_edited_posts(tables, folder)
    check_duplicates(tables, folder)
    check_profiles(tables, folder)
    check_counts(tables, folder, gone)
    trio.run(check_actors, tables, folder)


def check_leftovers_of_deleted_accounts(tables: Tables, folder: Path, gone: set[str]) -> None:
    """Officially these rows stay for ever."""
    missing, extra = differences(tables, folder, "verification")
    assert not extra
    assert {row["creator"] for row in missing} <= gone
    missing, extra = differences(tables, folder, "quote")
    for row in missing:
        author, subject = row["uri"].split("/")[2], row["subject"].split("/")[2]
        assert author in gone or subject in gone
    # Official edits delete and insert a post, and so lose the quotes of it.
    edited = edited_posts(tables)
    assert {row["subject"] for row in extra} <= edited
    missing, extra = differences(tables, folder, "actor_sync")
    # #sync and other collections do not reach us here, and deleted accounts leave nothing.
    others = {row["did"] for row in missing} - gone
    assert others == {row["did"] for row in extra}
    assert len(others) == 2


def check_edited_posts(tables: Tables, folder: Path) -> None:
    """Official edits delete and insert a post: its gates' flags and reposts of it are lost."""
    edited = edited_posts(tables)
    missing, extra = differences(tables, folder, "post")
    assert {row["uri"] for row in missing} == {row["uri"] for row in extra}
    for row in extra:
        assert row["uri"] in edited
        assert row["hasThreadGate"] or row["hasPostGate"]
    missing, extra = differences(tables, folder, "feed_item")
    standing = {row[0] for row in tables.rows("repost", "uri")}
    assert {row["type"] for row in extra} <= {"repost"}
    assert {row["postUri"] for row in extra} <= edited
    # Officially every duplicate of a repost is an item, and items outlive accounts and posts.
    posts = {row[0] for row in tables.rows("post", "uri")}
    assert not [row for row in missing if row["uri"] in standing and row["postUri"] in posts]


def edited_posts(tables: Tables) -> set[str]:
    rows = tables.database.query("SELECT uri FROM record WHERE json LIKE '%(edited)%'")
    return {row[0] for row in rows}


def check_duplicates(tables: Tables, folder: Path) -> None:
    """Officially a promoted duplicate keeps waiting for the record that it replaced."""
    records = {row[0] for row in tables.rows("record", "uri")}
    missing, extra = differences(tables, folder, "duplicate_record")
    assert all(row["duplicateOf"] not in records for row in missing)
    assert all(row["duplicateOf"] in records for row in extra)
    missing, extra = differences(tables, folder, "notification")
    # A promoted record takes over the notification of the one that it replaces.
    assert not {row["recordUri"] for row in missing} & records
    assert {row["recordUri"] for row in extra} <= records
    assert len(missing) == 22
    assert len(extra) == 4


def check_profiles(tables: Tables, folder: Path) -> None:
    """Officially createdAt is stored as it came, or is the indexer's clock."""
    missing, extra = differences(tables, folder, "profile")
    without = [{**row, "createdAt": ""} for row in missing]
    assert sorted(map(shown, without)) == sorted(shown({**row, "createdAt": ""}) for row in extra)
    assert all(row["createdAt"].endswith("Z") and len(row["createdAt"]) == 24 for row in extra)


def check_counts(tables: Tables, folder: Path, gone: set[str]) -> None:
    """Officially counts are not corrected when accounts, quotes' subjects or edits go."""
    recounted(tables)
    zero = {"likeCount": 0, "replyCount": 0, "repostCount": 0, "quoteCount": 0}
    missing, extra = differences(tables, folder, "post_agg")
    ours = {row["uri"]: row for row in extra if any_count(row)}
    posts = {row[0] for row in tables.rows("post", "uri")}
    for row in filter(any_count, missing):
        mine = ours.pop(row["uri"], zero)
        for name in zero:
            assert mine[name] <= row[name], row
        if row["uri"] in posts:
            assert touched_by(tables, folder, row["uri"], gone), (row, mine)
    assert not ours
    missing, extra = differences(tables, folder, "profile_agg")
    assert {row["did"] for row in missing} == {row["did"] for row in extra} == gone


def touched_by(tables: Tables, folder: Path, uri: str, gone: set[str]) -> bool:
    """Return whether a deleted account once reacted to a post, or the post was edited."""
    if uri in edited_posts(tables):
        return True
    for payload in payloads(folder, PREFIXES):
        if uri.encode() in payload and json.loads(payload)["did"] in gone:
            return True
    return False


async def check_actors(tables: Tables, folder: Path) -> None:
    """Handles are looked up behind the batches: each from its document, and the other way round."""
    assert {row[0] for row in tables.rows("actor", "handle")} == {None}
    documents = json.loads((folder / "dids.json").read_text())
    claims = {did: parse_did_document(documents[did], did).handle or "" for did in documents}
    answers: dict[str, str | None] = dict.fromkeys(claims.values())
    answers |= json.loads((folder / "handles.json").read_text())
    await check_handles(tables, claims, answers)
    expected = [{**row, "indexedAt": ""} for row in expected_rows(folder, "actor")]
    found = [{**row, "indexedAt": ""} for row in tables.dicts("actor")]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert len({row["handle"] for row in found} - {None}) == len(found) == 43


def test_nothing_is_refused_that_the_official_indexer_accepts(folder: Path) -> None:
    refused = refused_uris(folder)
    for payload in payloads(folder, PREFIXES):
        reading = read_entry({b"event": payload}, registry.load())
        if reading.refused is not None:
            body = json.loads(payload)
            assert f"at://{body['did']}/{body['collection']}/{body['rkey']}" in refused


def test_the_text_of_a_record_is_that_of_its_event(folder: Path) -> None:
    """`record.json` is the text that the event has, and what encoding the record again gives."""
    texts = 0
    for payload in payloads(folder, PREFIXES):
        reading = read_entry({b"event": payload}, registry.load())
        if isinstance(reading.change, Put):
            again = orjson.dumps(orjson.loads(payload)["record"])
            assert reading.change.json.encode() == again
            assert payload.endswith(b',"record":' + again + b"}")
            texts += 1
    assert texts > 1_000
