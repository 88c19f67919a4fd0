"""A database to apply events to, and makers of events."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.database.connection import Database
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.batch import Applied
from rsky_pipeline.indexer.core.entries import Reading, read_entry
from rsky_pipeline.streams.event import (
    AccountEvent,
    IdentityEvent,
    RepoEvent,
    encode_event,
    encode_record_event,
)

Row = dict[str, Any]
NOW = "2026-01-01T00:00:00.000Z"
_BASE = 1_700_000_000_000_000


def did_of(name: str) -> str:
    """Return the DID of a person of a test."""
    return f"did:plc:{name.ljust(24, 'x')[:24]}"


def rev_of(number: int) -> str:
    """Return the rev with this number; greater numbers are later."""
    return tid_from(_BASE + number * 1_000_000)


def time_of(number: int) -> str:
    """Return the time of the rev with this number."""
    return format_utc(datetime.fromtimestamp(_BASE / 1_000_000 + number, UTC))


def cid_of(content: object) -> str:
    """Return the CID of a record, or of anything that DAG-CBOR can hold."""
    return str(Cid.of(cbor.encode(content)))


@dataclass
class Network:
    """Makes events of people who act one after the other."""

    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    history: bool = False

    def put(
        self,
        who: str,
        collection: str,
        record: Mapping[str, Any],
        rkey: str | None = None,
        *,
        action: str = "create",
        number: int | None = None,
    ) -> "Put":
        """Return the creation (or update) of a record."""
        number = next(self.numbers) if number is None else number
        rev = rev_of(number)
        full = {"$type": collection, "createdAt": time_of(number), **record}
        return Put(who, collection, rkey or rev, number, full, action, self.history)

    def post(self, who: str, text: str = "hello", **fields: Any) -> "Put":
        """Return a post."""
        return self.put(who, "app.bsky.feed.post", {"text": text, **fields})

    def reply(self, who: str, parent: "Put", root: "Put | None" = None, **fields: Any) -> "Put":
        """Return a reply."""
        reply = {"root": (root or parent).reference, "parent": parent.reference}
        return self.post(who, reply=reply, **fields)

    def quote(self, who: str, quoted: "Put", **fields: Any) -> "Put":
        """Return a post that embeds another one."""
        embed = {"$type": "app.bsky.embed.record", "record": quoted.reference}
        return self.post(who, embed=embed, **fields)

    def like(self, who: str, subject: "Put", via: "Put | None" = None) -> "Put":
        """Return a like."""
        record: dict[str, Any] = {"subject": subject.reference}
        if via is not None:
            record["via"] = via.reference
        return self.put(who, "app.bsky.feed.like", record)

    def repost(self, who: str, subject: "Put", via: "Put | None" = None) -> "Put":
        """Return a repost."""
        record: dict[str, Any] = {"subject": subject.reference}
        if via is not None:
            record["via"] = via.reference
        return self.put(who, "app.bsky.feed.repost", record)

    def follow(self, who: str, whom: str) -> "Put":
        """Return a follow."""
        return self.put(who, "app.bsky.graph.follow", {"subject": did_of(whom)})

    def update(self, put: "Put", record: Mapping[str, Any]) -> "Put":
        """Return a new content of a record."""
        return self.put(put.who, put.collection, record, put.rkey, action="update")

    def delete(self, put: "Put") -> "Deletion":
        """Return the deletion of a record."""
        return Deletion(put, next(self.numbers))


@dataclass(frozen=True)
class Put:
    """A record that is written."""

    who: str
    collection: str
    rkey: str
    number: int
    record: dict[str, Any]
    action: str
    history: bool

    @property
    def uri(self) -> str:
        return f"at://{did_of(self.who)}/{self.collection}/{self.rkey}"

    @property
    def cid(self) -> str:
        return cid_of(self.record)

    @property
    def reference(self) -> dict[str, str]:
        return {"uri": self.uri, "cid": self.cid}

    @property
    def payload(self) -> bytes:
        return encode_record_event(
            "update" if self.action == "update" else "create",
            seq=-1 if self.history else self.number,
            time=time_of(self.number), did=did_of(self.who), commit=cid_of(self.number),
            rev=rev_of(self.number), collection=self.collection, rkey=self.rkey, cid=self.cid,
            record=self.record,
        )  # fmt: skip


@dataclass(frozen=True)
class Deletion:
    """A record that is deleted."""

    put: Put
    number: int

    @property
    def payload(self) -> bytes:
        return encode_record_event(
            "delete", seq=self.number, time=time_of(self.number), did=did_of(self.put.who),
            commit=cid_of(self.number), rev=rev_of(self.number), collection=self.put.collection,
            rkey=self.put.rkey,
        )  # fmt: skip


def account(
    who: str, number: int, active: bool, status: str | None = None, *, relay: str = "",
    time: int | None = None,
) -> bytes:  # fmt: skip
    """Return an account event; `time` is the number of its time, if that is another one."""
    at = time_of(number if time is None else time)
    return encode_event(AccountEvent(number, at, did_of(who), active, status, relay))


def identity(who: str, number: int = 1) -> bytes:
    """Return an identity event."""
    return encode_event(IdentityEvent(number, time_of(number), did_of(who), None))


def repo(who: str, number: int, *, complete: bool = False) -> bytes:
    """Return the event that closes a backfilled repo."""
    commit, rev = cid_of(number), rev_of(number)
    return encode_event(RepoEvent(-1, time_of(number), did_of(who), commit, rev, complete))


Event = Put | Deletion | bytes


class Tables:
    """A database with the schema."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = Database.connect(url, name="test", by_key=True)

    def apply(self, *events: Event) -> Applied:
        """Apply events as one batch; fails on an event that is refused."""
        return apply_batch(self.database, read(events), registry.load())

    def apply_any(self, *events: Event) -> Applied:
        """Apply events as one batch; those that are refused are kept as such."""
        payloads = (event if isinstance(event, bytes) else event.payload for event in events)
        readings = [read_entry({b"event": one}, registry.load()) for one in payloads]
        return apply_batch(self.database, readings, registry.load())

    def apply_each(self, events: Iterable[Event]) -> None:
        """Apply events one by one."""
        for event in events:
            self.apply(event)

    def rows(self, table: str, columns: str = "*", where: str = "true") -> list[tuple[Any, ...]]:
        """Return rows, sorted."""
        found = self.database.query(f'SELECT {columns} FROM "{table}" WHERE {where}')
        return sorted(found, key=repr)

    def dicts(self, table: str) -> list[Row]:
        """Return whole rows by column name."""
        found = self.database.query(f'SELECT row_to_json(t) FROM "{table}" t')
        return sorted((row[0] for row in found), key=lambda row: json.dumps(row, sort_keys=True))

    def counts(self, post: Put) -> tuple[int, ...]:
        """Return likes, replies, reposts and quotes of a post as its row says."""
        columns = '"likeCount", "replyCount", "repostCount", "quoteCount"'
        found = self.database.query(f"SELECT {columns} FROM post_agg WHERE uri = %s", (post.uri,))
        return tuple(found[0]) if found else (0, 0, 0, 0)

    def profile_counts(self, who: str) -> tuple[int, ...]:
        """Return followers, follows and posts of an account as its row says."""
        columns = '"followersCount", "followsCount", "postsCount"'
        found = self.database.query(
            f"SELECT {columns} FROM profile_agg WHERE did = %s", (did_of(who),)
        )
        return tuple(found[0]) if found else (0, 0, 0)

    def notified(self, who: str | None = None) -> list[tuple[str, str]]:
        """Return (reason, recordUri) of an account's notifications, or of all."""
        where = "true" if who is None else f"did = '{did_of(who)}'"
        return [(row[0], row[1]) for row in self.rows("notification", 'reason, "recordUri"', where)]


def read(events: Sequence[Event]) -> list[Reading]:
    """Return what events say; fails on one that is refused."""
    readings = []
    for event in events:
        payload = event if isinstance(event, bytes) else event.payload
        reading = read_entry({b"event": payload}, registry.load())
        assert reading.refused is None, reading.refused
        readings.append(reading)
    return readings


STATE_TABLES = (
    "record", "duplicate_record", "post", "post_embed_image", "post_embed_record", "quote",
    "feed_item", "like", "repost", "follow", "profile", "actor_block", "list", "list_item",
    "thread_gate", "post_gate", "actor_sync", "reference_list_opt_out",
)  # fmt: skip


def state(tables: Tables) -> dict[str, list[Row]]:
    """Return everything that must not depend on the order in which events came."""
    found = {table: tables.dicts(table) for table in STATE_TABLES}
    found["notification"] = sorted(
        ({**row, "id": 0} for row in tables.dicts("notification")), key=repr
    )
    found["actor"] = [{**row, "indexedAt": ""} for row in tables.dicts("actor")]
    found["op_thread_reply"] = [
        {**row, "deletedAt": row["deletedAt"] is not None}
        for row in tables.dicts("op_thread_reply")
    ]
    for table in ("post_agg", "profile_agg"):  # a row of zeros says the same as none
        found[table] = [row for row in tables.dicts(table) if any_count(row)]
    return found


def any_count(row: Row) -> bool:
    """Return whether a row counts anything."""
    return any(value for name, value in row.items() if name.endswith("Count"))


REPLIES = """
SELECT "replyParent", count(*) FROM post
WHERE "replyParent" IS NOT NULL AND "violatesThreadGate" IS NOT TRUE GROUP BY 1
"""


def recounted(tables: Tables) -> None:
    """Fail unless every count is what its rows add up to."""
    for table, key, column, query in (
        ("post_agg", "uri", "likeCount", 'SELECT subject, count(*) FROM "like" GROUP BY 1'),
        ("post_agg", "uri", "repostCount", "SELECT subject, count(*) FROM repost GROUP BY 1"),
        ("post_agg", "uri", "quoteCount", "SELECT subject, count(*) FROM quote GROUP BY 1"),
        (
            "post_agg", "uri", "replyCount",
            REPLIES,
        ),
        ("profile_agg", "did", "postsCount", "SELECT creator, count(*) FROM post GROUP BY 1"),
        ("profile_agg", "did", "followsCount", "SELECT creator, count(*) FROM follow GROUP BY 1"),
        (
            "profile_agg", "did", "followersCount",
            'SELECT "subjectDid", count(*) FROM follow GROUP BY 1',
        ),
    ):  # fmt: skip
        stored = f'SELECT {key}, "{column}" FROM {table} WHERE "{column}" <> 0'
        assert dict(tables.database.query(stored)) == dict(tables.database.query(query)), column


def mention(*names: str) -> list[dict[str, Any]]:
    features = [{"$type": "app.bsky.richtext.facet#mention", "did": did_of(name)} for name in names]
    return [{"index": {"byteStart": 0, "byteEnd": 3}, "features": features}]


def quoting(put: Put) -> dict[str, Any]:
    return {"$type": "app.bsky.embed.record", "record": put.reference}


def notes_of(tables: Tables, put: Put) -> list[tuple[Any, ...]]:
    """Return (recipient, reason, subject, cid) of the notifications that a record made."""
    where = f"\"recordUri\" = '{put.uri}'"
    return tables.rows("notification", 'did, reason, "reasonSubject", "recordCid"', where)
