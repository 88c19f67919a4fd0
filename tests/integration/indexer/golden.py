"""Whole rows of every table, worked out from events in order and from what a golden case names.

What a record itself says is written down here once more, apart from the indexer's code. What
follows from it for others (notifications, counts, verdicts, duplicates) each case names in full.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.integration.indexer.kit import (
    Deletion,
    Event,
    Put,
    Row,
    Tables,
    any_count,
    did_of,
    time_of,
)

Rows = dict[str, list[Row]]
Note = tuple[Put, str, str, Put | None]  # record, recipient, reason, subject
# Tables that no event fills, and what the migrations themselves insert.
_OTHERS = frozenset({"kysely_migration", "kysely_migration_lock", "view_param"})
_NAMES = """
SELECT table_name FROM information_schema.tables
WHERE table_schema = 'bsky' AND table_type = 'BASE TABLE'
"""
COUNTS = ("likeCount", "replyCount", "repostCount", "quoteCount", "bookmarkCount")
PEOPLE = ("followersCount", "followsCount", "postsCount")


def expect(
    tables: Tables,
    events: Sequence[Event],
    *,
    told: Sequence[Note] = (),
    counts: Sequence[tuple[Put, tuple[int, int, int, int]]] = (),
    people: Mapping[str, tuple[int, int, int]] | None = None,
    waiting: Sequence[tuple[Put, Put]] = (),
    ended: Sequence[Put] = (),
    changed: Mapping[str, Mapping[str, Any]] | None = None,
    besides: Mapping[str, Sequence[Row]] | None = None,
) -> None:
    """Fail unless every table of the AppView holds exactly what follows from the events.

    `counts` are likes, replies, reposts and quotes, `people` followers, follows and posts of
    everybody, by name or DID; who is not named has none. `waiting` are duplicates with the record
    that stands for them, `ended` deleted replies of an author's own thread. `changed` has columns
    of the rows of a uri, or of an account by its DID; `besides` has further rows.
    """
    rows: Rows = defaultdict(list)
    hidden = {put.uri for put, _ in waiting}
    for put in standing(events):
        rows["record"].append(record_row(put))
        if put.uri not in hidden and put.collection in _WRITERS:
            _WRITERS[put.collection](put, rows)
    for put in ended:
        _add_chain(put, rows, True)
    _add_accounts(events, rows)
    rows["notification"] = [note_row(note) for note in told]
    rows["post_agg"] = [
        {"uri": put.uri, **dict(zip(COUNTS, (*values, 0), strict=True))} for put, values in counts
    ]
    rows["profile_agg"] = [
        {"did": name if name.startswith("did:") else did_of(name),
         **dict(zip(PEOPLE, values, strict=True))}
        for name, values in (people or {}).items()
    ]  # fmt: skip
    rows["duplicate_record"] = [
        {"uri": put.uri, "cid": put.cid, "duplicateOf": other.uri, "indexedAt": time_of(put.number)}
        for put, other in waiting
    ]
    for table in rows:
        rows[table] = [_changed(table, row, changed or {}) for row in rows[table]]
    for table, more in (besides or {}).items():
        rows[table] += more
    found = all_rows(tables)
    for name in sorted({*rows, *found}):
        assert found.get(name, []) == sorted(rows[name], key=repr), name


def _changed(table: str, row: Row, changed: Mapping[str, Mapping[str, Any]]) -> Row:
    key = row["did"] if table in {"actor", "actor_sync"} else row.get("uri", "")
    return row | {name: value for name, value in changed.get(key, {}).items() if name in row}


def all_rows(tables: Tables) -> Rows:
    """Return all rows of the AppView's tables; what is said twice or by the clock is left out."""
    found: Rows = {}
    for (name,) in tables.database.query(_NAMES):
        rows = [] if name in _OTHERS else [_comparable(name, row) for row in tables.dicts(name)]
        if name in {"post_agg", "profile_agg"}:  # a row of zeros says the same as none
            rows = [row for row in rows if any_count(row)]
        if rows:
            found[name] = sorted(rows, key=repr)
    return found


def _comparable(table: str, row: Row) -> Row:
    if table == "record":
        return {**row, "json": json.loads(row["json"])}
    if table == "notification":
        return {name: value for name, value in row.items() if name != "id"}
    if table == "op_thread_reply":
        return {**row, "deletedAt": row["deletedAt"] is not None}
    return row


def standing(events: Sequence[Event]) -> list[Put]:
    """Return the records that are there after the events, each in its last state."""
    found: dict[str, Put] = {}
    for event in events:
        if isinstance(event, Put):
            found[event.uri] = event
        elif isinstance(event, Deletion):
            found.pop(event.put.uri, None)
    return list(found.values())


def record_row(put: Put) -> Row:
    """Return the row of `record`; its JSON as a value."""
    body = json.loads(put.payload)
    return {
        "uri": put.uri, "cid": put.cid, "did": did_of(put.who), "json": body["record"],
        "indexedAt": time_of(put.number), "takedownRef": None, "tags": None, "rev": body["rev"],
    }  # fmt: skip


def note_row(note: Note) -> Row:
    """Return a row of `notification`; it is sorted by what the record claims, or its time."""
    put, who, reason, subject = note
    return {
        "did": did_of(who), "recordUri": put.uri, "recordCid": put.cid, "author": did_of(put.who),
        "reason": reason, "reasonSubject": None if subject is None else subject.uri,
        "sortAt": time_of(put.number) if reason == "starterpack-joined" else _sorted_at(put),
    }  # fmt: skip


def _add_accounts(events: Sequence[Event], rows: Rows) -> None:
    seen: dict[str, str] = {}
    newest: dict[str, tuple[str, str]] = {}
    for event in events:
        body = json.loads(event if isinstance(event, bytes) else event.payload)
        seen.setdefault(body["did"], body["time"])
        if "rev" in body and body.get("seq", 0) >= 0:
            known = newest.get(body["did"], ("", ""))
            newest[body["did"]] = max(known, (body["rev"], body["commit"]))
    rows["actor"] = [
        {"did": did, "handle": None, "indexedAt": time, "takedownRef": None, "upstreamStatus": None,
         "trustedVerifier": False, "ageAssuranceStatus": None, "ageAssuranceLastInitiatedAt": None,
         "ageAssuranceAccess": None, "ageAssuranceCountryCode": None,
         "ageAssuranceRegionCode": None} for did, time in seen.items()
    ]  # fmt: skip
    rows["actor_sync"] = [
        {"did": did, "commitCid": commit, "repoRev": rev} for did, (rev, commit) in newest.items()
    ]


def _sorted_at(put: Put) -> str:
    return min(str(put.record["createdAt"]), time_of(put.number))


def _row(put: Put, *, sort: str = "sortAt", **columns: Any) -> Row:
    row = {
        "uri": put.uri, "cid": put.cid, "creator": did_of(put.who),
        "createdAt": put.record.get("createdAt"), "indexedAt": time_of(put.number), **columns,
    }  # fmt: skip
    return {**row, sort: _sorted_at(put)} if sort else row


def _post(put: Put, rows: Rows) -> None:
    reply = put.record.get("reply")
    root, parent = (reply["root"], reply["parent"]) if reply else ({}, {})
    rows["post"].append(_row(
        put, text=put.record["text"], replyRoot=root.get("uri"), replyRootCid=root.get("cid"),
        replyParent=parent.get("uri"), replyParentCid=parent.get("cid"),
        langs=put.record.get("langs"), tags=put.record.get("tags"), invalidReplyRoot=None,
        violatesThreadGate=None, violatesEmbeddingRules=None, hasThreadGate=None, hasPostGate=None,
    ))  # fmt: skip
    _add_item(put, rows, "post", put.uri)
    _add_chain(put, rows, False)
    _add_embed(put, rows, put.record.get("embed"))


def _add_item(put: Put, rows: Rows, kind: str, post: str) -> None:
    rows["feed_item"].append(
        {"uri": put.uri, "cid": put.cid, "type": kind, "postUri": post,
         "originatorDid": did_of(put.who), "sortAt": _sorted_at(put)}
    )  # fmt: skip


def _add_chain(put: Put, rows: Rows, deleted: bool) -> None:
    reply = put.record.get("reply")
    if reply and reply["root"]["uri"].startswith(f"at://{did_of(put.who)}/"):
        rows["op_thread_reply"].append(
            {"rootUri": reply["root"]["uri"], "parentUri": reply["parent"]["uri"], "uri": put.uri,
             "deletedAt": deleted}
        )  # fmt: skip


def _add_embed(put: Put, rows: Rows, embed: Mapping[str, Any] | None) -> None:
    kind = "" if embed is None else str(embed["$type"]).rpartition(".")[2]
    if embed is None:
        return
    if kind == "recordWithMedia":
        _add_embed(put, rows, embed["record"])
        _add_embed(put, rows, embed["media"])
    elif kind == "images":
        rows["post_embed_image"] += [
            {"postUri": put.uri, "position": str(place), "imageCid": item["image"]["ref"]["$link"],
             "alt": item["alt"]} for place, item in enumerate(embed["images"])
        ]  # fmt: skip
    elif kind == "record":
        uri, cid = embed["record"]["uri"], embed["record"]["cid"]
        rows["post_embed_record"].append({"postUri": put.uri, "embedUri": uri, "embedCid": cid})
        if "/app.bsky.feed.post/" in uri:
            quote = _row(put, subject=uri, subjectCid=cid)
            del quote["creator"]
            rows["quote"].append(quote)
    else:  # unknown, or empty
        assert kind == "new" or embed["items"] == [], kind


def _reaction(put: Put, rows: Rows) -> None:
    subject, via = put.record["subject"], put.record.get("via", {})
    table = put.collection.rpartition(".")[2]
    rows[table].append(_row(
        put, subject=subject["uri"], subjectCid=subject["cid"], via=via.get("uri"),
        viaCid=via.get("cid"),
    ))  # fmt: skip
    if table == "repost":
        _add_item(put, rows, "repost", subject["uri"])


def _simple(
    table: str, columns: Mapping[str, str], *, sort: str = "sortAt"
) -> Callable[[Put, Rows], None]:
    """Return a writer of rows that take columns from fields of the record."""

    def write(put: Put, rows: Rows) -> None:
        fields = {column: put.record.get(field) for column, field in columns.items()}
        rows[table].append(_row(put, sort=sort, **fields))

    return write


def _profile(put: Put, rows: Rows) -> None:
    joined = put.record.get("joinedViaStarterPack", {})
    if put.rkey == "self":
        rows["profile"].append(_row(
            put, sort="", displayName=put.record.get("displayName"),
            description=put.record.get("description"), avatarCid=None, bannerCid=None,
            joinedViaStarterPackUri=joined.get("uri"), pinnedPost=None, pinnedPostCid=None,
        ))  # fmt: skip


def _labeler(put: Put, rows: Rows) -> None:
    if put.rkey == "self":
        rows["labeler"].append(_row(put))


def _verification(put: Put, rows: Rows) -> None:
    fields = {name: put.record[name] for name in ("subject", "handle", "displayName")}
    rows["verification"].append(_row(put, sort="sortedAt", rkey=put.rkey, **fields))


_SUBJECT = {"subjectDid": "subject"}
_DESCRIBED = {"description": "description", "descriptionFacets": "", "avatarCid": ""}
_WRITERS: dict[str, Callable[[Put, Rows], None]] = {
    "app.bsky.feed.post": _post,
    "app.bsky.feed.like": _reaction,
    "app.bsky.feed.repost": _reaction,
    "app.bsky.actor.profile": _profile,
    "app.bsky.labeler.service": _labeler,
    "app.bsky.graph.verification": _verification,
    "app.bsky.graph.follow": _simple("follow", _SUBJECT),
    "app.bsky.graph.block": _simple("actor_block", _SUBJECT),
    "app.bsky.graph.list": _simple("list", {"name": "name", "purpose": "purpose", **_DESCRIBED}),
    "app.bsky.graph.listitem": _simple("list_item", {**_SUBJECT, "listUri": "list"}),
    "app.bsky.graph.listblock": _simple("list_block", {"subjectUri": "subject"}),
    "app.bsky.graph.referencelistoptout": _simple(
        "reference_list_opt_out", {"subjectUri": "subject"}
    ),
    "app.bsky.graph.starterpack": _simple("starter_pack", {"name": "name"}),
    "app.bsky.feed.generator": _simple(
        "feed_generator", {"feedDid": "did", "displayName": "displayName", **_DESCRIBED}
    ),
    "app.bsky.feed.threadgate": _simple("thread_gate", {"postUri": "post"}, sort=""),
    "app.bsky.feed.postgate": _simple("post_gate", {"postUri": "post"}, sort=""),
}
