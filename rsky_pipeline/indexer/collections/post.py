"""app.bsky.feed.post: the post, its feed item, embeds and quote, thread rules, notifications.

Here the rows of a post are made from its record. `post_rules` applies the rules of others (gates,
parents), `post_notifications` notifies. An edited post is updated in place, so that gates,
reposts and quotes of it stay what they were (officially they are lost).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from rsky_pipeline.atproto.syntax import is_did
from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.collections.declaration import Changes, Collection, Finished
from rsky_pipeline.indexer.collections.fields import (
    InvalidRecordError,
    Record,
    check_length,
    clean,
    created_at,
    did,
    host,
    items,
    mapping,
    strong_reference,
    text,
)
from rsky_pipeline.indexer.collections.post_beyond import looks_beyond
from rsky_pipeline.indexer.collections.post_embeds import SIDE_TABLES, read_embed
from rsky_pipeline.indexer.collections.post_notifications import (
    expected_notifications,
    notify_of_posts,
)
from rsky_pipeline.indexer.collections.post_rules import (
    check_rules,
    gate_flags,
    looked_at,
    set_gate_flags,
    standing_rules,
)
from rsky_pipeline.indexer.collections.post_thread import (
    count_replies,
    forget_deleted,
    mark_overtaken,
    own_replies,
    write_op_thread_replies,
)
from rsky_pipeline.indexer.collections.repost import FEED_ITEM
from rsky_pipeline.indexer.collections.values import (
    CollectionTable,
    Count,
    Put,
    Row,
    Rows,
    SideTable,
)

FINISHED_COLUMNS = (
    "invalidReplyRoot", "violatesThreadGate", "violatesEmbeddingRules", "hasThreadGate",
    "hasPostGate",
)  # fmt: skip
OP_THREAD_REPLY = SideTable(
    "op_thread_reply",
    owner="uri",
    columns={"rootUri": "varchar", "parentUri": "varchar", "deletedAt": "varchar"},
)
MENTION = "app.bsky.richtext.facet#mention"
MAX_TEXT_BYTES = 3_000
MAX_LANGS, MAX_TAGS, MAX_TAG_BYTES = 3, 8, 640
MAX_MENTIONS = 100  # a text of 300 graphemes has no room for more


@dataclass(frozen=True, slots=True)
class PostFacts:
    """The facts of a post that rules and notifications depend on."""

    sort_at: str
    mentions: tuple[str, ...] = ()
    root: str | None = None
    parent: str | None = None
    quoted: str | None = None  # uri of the post that it embeds


def _read(put: Put, record: Record) -> Rows:
    body = text(record, "text", MAX_TEXT_BYTES)
    created = created_at(record)
    root, root_cid, parent, parent_cid = _reply(record)
    side: dict[str, Sequence[Row]] = {}
    quoted = read_embed(put, record, created, side)
    sort_at = put.sort_at(created)
    side["feed_item"] = [(put.cid, "post", put.uri, put.did, sort_at)]
    langs = _texts(record, "langs", MAX_LANGS)
    tags = _texts(record, "tags", MAX_TAGS)
    main = (body, root, root_cid, parent, parent_cid, created, langs, tags)
    facts = PostFacts(sort_at, _mentions(record), root, parent, quoted)
    looks_at = looked_at(root, parent, quoted) if root or quoted else ()
    return Rows(main=main, side=side, facts=facts, looks_at=looks_at)


def _reply(record: Record) -> tuple[str | None, str | None, str | None, str | None]:
    reply = mapping(record, "reply")
    if reply is None:
        return None, None, None, None
    root = strong_reference(reply, "root")
    if not is_did(host(root[0])):  # an AppView of 0.0.280 fails at whole pages with such a post
        raise InvalidRecordError("invalid_uri", "reply.root does not name its account by a DID")
    return *root, *strong_reference(reply, "parent")


def _texts(record: Record, key: str, max_items: int) -> str | None:
    found = items(record, key, max_items)
    for item in found:
        if not isinstance(item, str):
            raise InvalidRecordError("wrong_type", f"{key} holds something that is not a text")
        check_length(key, item, MAX_TAG_BYTES)
    # jsonb refuses NUL characters, also as escapes
    return orjson.dumps([clean(str(item)) for item in found]).decode() if found else None


def _mentions(record: Record) -> tuple[str, ...]:
    if not record.get("facets"):
        return ()
    found: dict[str, None] = {}
    for facet in items(record, "facets", 10_000):
        features = items(facet, "features", 10_000) if isinstance(facet, dict) else ()
        for feature in features:
            if isinstance(feature, dict) and feature.get("$type") == MENTION:
                found[did(feature, "did")] = None
    return tuple(found)[:MAX_MENTIONS]


def _finish(changes: Changes) -> None:
    forget_deleted(changes)
    written = [*changes.inserted, *changes.updated]
    if written:
        set_gate_flags(changes, written)
    rules = check_rules(changes, written)
    write_op_thread_replies(changes, written)
    count_replies(changes, written, rules)
    notify_of_posts(changes, written, rules)


def _finished(tx: Transaction, puts: Sequence[Put]) -> dict[str, Finished]:
    rules = standing_rules(tx, puts, {put.uri for put in puts})
    flags = gate_flags(tx, [put.uri for put in puts])
    notifications = expected_notifications(tx, puts, rules)
    threads = {uri: [(root, parent, None)] for root, parent, uri in own_replies(puts)}
    found = {}
    for put in puts:
        values = (*rules[put.uri].columns, *flags[put.uri])
        columns = dict(zip(FINISHED_COLUMNS, values, strict=True))
        rows = {OP_THREAD_REPLY.name: threads.get(put.uri, [])}
        of, reply = notifications[put.uri], frozenset({"reply"})
        unclear = reply if of.broken else frozenset()
        found[put.uri] = Finished(
            columns, rows, of.certain, of.possible, put.rows.facts.sort_at, unclear, reply
        )
    return found


COLLECTION = Collection(
    nsid="app.bsky.feed.post",
    read=_read,
    table=CollectionTable(
        "post",
        columns={
            "text": "varchar",
            "replyRoot": "varchar",
            "replyRootCid": "varchar",
            "replyParent": "varchar",
            "replyParentCid": "varchar",
            "createdAt": "varchar",
            "langs": "jsonb",
            "tags": "jsonb",
        },
        counts=(Count("profile_agg", "postsCount", by="creator"),),
        kept=("replyRoot", "replyParent", "violatesThreadGate"),
    ),
    side=(SideTable("feed_item", owner="uri", columns=FEED_ITEM), *SIDE_TABLES),
    written_last=True,
    looked_at=True,
    looks_beyond=looks_beyond,
    overtaken=mark_overtaken,
    finish=_finish,
    finished=_finished,
    traces=(OP_THREAD_REPLY,),
)
