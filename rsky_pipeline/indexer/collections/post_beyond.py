"""Operations of a batch that change what replies of the batch look at, beside what they name.

A reply names its root, its parent and so their gates (`post_rules.looked_at`). It also looks at the
posts above its parent, whose authors it notifies, and, if its thread has a gate, at follows and
list items. Which of these it looks at stands in the database, or in the batch. A batch is cut where
one of them changes after the reply, so that the rows are the same whatever is in one batch.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set

from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.collections.fields import host
from rsky_pipeline.indexer.collections.post_notifications import MAX_HEIGHT
from rsky_pipeline.indexer.collections.post_rules import THREAD_GATE, gate_uri
from rsky_pipeline.indexer.collections.values import Delete, Operation, Put, collection_of

_POST, _FOLLOW, _ITEM = "app.bsky.feed.post", "app.bsky.graph.follow", "app.bsky.graph.listitem"

_ANSWERED = """
SELECT n.uri FROM unnest(%b::text[]) AS n(uri)
WHERE EXISTS (SELECT FROM post p WHERE p."replyParent" = n.uri)
"""
_PARENTS = """
SELECT uri, "replyParent" FROM post WHERE uri = ANY(%b::text[]) AND "replyParent" IS NOT NULL
"""
_WAITING = """
SELECT uri, "replyRoot" FROM post WHERE uri = ANY(%b::text[]) AND "invalidReplyRoot"
"""
_GATED = """SELECT "postUri" FROM thread_gate WHERE "postUri" = ANY(%b::text[])"""


def looks_beyond(tx: Transaction, operations: Sequence[Operation]) -> dict[str, Set[str]]:
    """Return by the uri of each reply the operations of the batch that change what it looks at."""
    by_kind: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_kind[collection_of(operation.uri)].append(operation)
    posts = [item for item in by_kind[_POST] if isinstance(item, Put)]
    replies = [put for put in posts if put.rows.facts.parent is not None]
    found: defaultdict[str, set[str]] = defaultdict(set)
    gone = {item.uri for item in by_kind[_POST] if isinstance(item, Delete)}
    if posts and gone:
        _add_waiting(tx, posts, gone, found)
    if replies:
        _add_ancestors(tx, posts, replies, gone, found)
        if by_kind[_FOLLOW] or by_kind[_ITEM]:
            gates = {item.uri for item in by_kind[THREAD_GATE]}
            _add_judges(tx, replies, gates, by_kind[_FOLLOW], by_kind[_ITEM], found)
    return dict(found)


def _add_ancestors(
    tx: Transaction,
    posts: Iterable[Put],
    replies: Sequence[Put],
    gone: Set[str],
    found: Mapping[str, set[str]],
) -> None:
    """Add deleted posts that are above the parent of a reply, as far up as notifications go."""
    above: dict[str, str | None] = {put.uri: put.rows.facts.parent for put in posts}
    answered = gone & {parent for parent in above.values() if parent is not None}
    if missing := gone - answered:
        answered |= {row[0] for row in tx.query(_ANSWERED, (sorted(missing),))}
    if not answered:
        return
    level: set[str] = {put.rows.facts.parent for put in replies}
    for _ in range(MAX_HEIGHT - 1):
        if unknown := level.difference(above):
            above |= dict.fromkeys(unknown)
            above |= dict(tx.query(_PARENTS, (sorted(unknown),)))
        level = {parent for uri in level if (parent := above[uri]) is not None}
    for put in replies:
        at: str | None = put.rows.facts.parent
        for _ in range(MAX_HEIGHT - 1):
            at = None if at is None else above.get(at)
            if at is not None and at in answered:
                found[put.uri].add(at)


def _add_waiting(
    tx: Transaction, posts: Sequence[Put], gone: Set[str], found: Mapping[str, set[str]]
) -> None:
    """Add deleted replies through which a post of their thread may accept others."""
    roots = {put.uri: put.rows.facts.root for put in posts if put.uri in gone}
    roots |= dict(tx.query(_WAITING, (sorted(gone),)))
    of_thread: defaultdict[str, set[str]] = defaultdict(set)
    for uri, root in roots.items():
        if root is not None:
            of_thread[root].add(uri)
    if of_thread:
        for put in posts:
            waiting = of_thread[put.uri] | of_thread[put.rows.facts.root]
            if waiting := waiting - {put.uri}:
                found[put.uri].update(waiting)


def _add_judges(
    tx: Transaction,
    replies: Iterable[Put],
    gates: Set[str],
    follows: Iterable[Operation],
    items: Iterable[Operation],
    found: Mapping[str, set[str]],
) -> None:
    """Add follows and list items that may decide about a reply in a gated thread of another."""
    replies = [put for put in replies if host(put.rows.facts.root) != put.did]
    roots = {put.rows.facts.root for put in replies}
    gated = {root for root in roots if gate_uri(root, THREAD_GATE) in gates}
    if others := roots - gated:
        gated |= {row[0] for row in tx.query(_GATED, (sorted(others),))}
    if not gated:
        return
    # Of a deletion it is not known here whom it was about.
    pairs, people = defaultdict[tuple[str, str], set[str]](set), defaultdict[str, set[str]](set)
    for item in follows:
        if isinstance(item, Delete):
            people[item.did].add(item.uri)
        elif item.rows.main is not None:
            pairs[item.did, item.rows.main[0]].add(item.uri)
    listed, unlisted = defaultdict[str, set[str]](set), set[str]()
    for item in items:
        if isinstance(item, Delete):
            unlisted.add(item.uri)
        elif item.rows.main is not None:
            listed[item.rows.main[0]].add(item.uri)
    for put in replies:
        if put.rows.facts.root in gated:
            did, owner = put.did, host(put.rows.facts.root)
            found[put.uri].update(
                pairs[did, owner], pairs[owner, did], people[did], people[owner], listed[did],
                unlisted,
            )  # fmt: skip
