"""Whom a post notifies: the mentioned, the quoted, and the authors above a reply.

Everybody is notified once, for the first of these reasons; never the author.

A reply walks up its thread (`AncestorWalk`). Where a post above it is not there yet, it becomes a
pending reply, a row of `early_reply`, and goes on when that post comes; officially the authors of
posts that come later are never notified. A row is made by the reply's writer, who holds the lock on
its account, and taken by whoever writes the missing post; the row itself is locked without waiting,
so that two workers that need the same rows cannot wait for each other.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import takewhile

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.collections.declaration import Changes
from rsky_pipeline.indexer.collections.fields import host, parts
from rsky_pipeline.indexer.collections.post_rules import (
    THREAD_GATE,
    PostRules,
    gate_histories,
    gate_uri,
)
from rsky_pipeline.indexer.collections.values import Notification, Put

MAX_HEIGHT = 4  # posts above a reply whose authors are notified
KEPT_FOR = timedelta(days=3)  # a post that comes later than this is no news any more
BATCH_REPLIES = 5_000  # removed in one step, so that no transaction is long

_FORGET = """
WITH n AS (
    SELECT uri FROM rsky_pipeline.early_reply WHERE uri = ANY(%b::text[]) FOR UPDATE NOWAIT
)
DELETE FROM rsky_pipeline.early_reply e USING n WHERE e.uri = n.uri RETURNING e.uri
"""
_TAKE = """
WITH n AS (
    SELECT uri FROM rsky_pipeline.early_reply WHERE missing = ANY(%b::text[]) FOR UPDATE NOWAIT
)
DELETE FROM rsky_pipeline.early_reply e USING n, post p WHERE e.uri = n.uri AND p.uri = e.uri
RETURNING e.uri, p.cid, p."sortAt", e.missing, e.height, e.told, e.hidden
"""
_REMEMBER = """
INSERT INTO rsky_pipeline.early_reply (uri, missing, height, told, hidden)
SELECT * FROM unnest(%b::text[], %b::text[], %b::integer[], %b::text[], %b::text[])
ON CONFLICT (uri) DO UPDATE SET missing = EXCLUDED.missing, height = EXCLUDED.height,
    told = EXCLUDED.told, hidden = EXCLUDED.hidden, noticed_at = now()
"""
_PRUNE = """
DELETE FROM rsky_pipeline.early_reply WHERE uri IN (
    SELECT uri FROM rsky_pipeline.early_reply WHERE noticed_at < now() - %s
    ORDER BY noticed_at LIMIT %s FOR UPDATE SKIP LOCKED
)
"""


@dataclass(frozen=True, slots=True)
class AncestorWalk:
    """A reply on its way up its thread, to notify the authors of the posts above it."""

    uri: str
    cid: str
    sort_at: str
    at: str  # the post above that is next
    height: int  # of that post
    notified: frozenset[str]  # DIDs, the author's among them
    hidden: frozenset[str]  # replies that end the way


def advance(
    walk: AncestorWalk, above: Sequence[tuple[str, str | None]]
) -> tuple[list[Notification], AncestorWalk]:
    """Walk over posts, given as (uri, parent): return the notifications and the rest of the walk.

    A rest above `MAX_HEIGHT` or without a next post (`at` is empty) is the end.
    """
    notified, found = set(walk.notified), []
    at, height = walk.at, walk.height
    for uri, parent in above:
        did = host(uri)
        if did not in notified:
            notified.add(did)
            found.append(Notification(did, "reply", uri, walk.sort_at))
        at, height = parent or "", height + 1
        if uri in walk.hidden:
            at = ""
            break
    return found, replace(walk, at=at, height=height, notified=frozenset(notified))


def is_pending(walk: AncestorWalk) -> bool:
    """Return whether somebody may have to be notified when the next post comes."""
    next_post = parts(walk.at) if 0 < walk.height <= MAX_HEIGHT else None
    return (
        next_post is not None
        and next_post.collection == "app.bsky.feed.post"
        and next_post.authority.startswith("did:")
    )


def forget_pending_replies(tx: Transaction, uris: Collection[str]) -> set[str]:
    """Forget replies that are deleted or edited; return those that were pending."""
    if not uris:
        return set()
    return {row[0] for row in tx.query(_FORGET, (sorted(uris),))}


def take_pending_replies(tx: Transaction, posts: Collection[str]) -> list[AncestorWalk]:
    """Take the replies that are pending for these posts out of the table."""
    if not posts:
        return []
    return [
        AncestorWalk(
            uri, cid, sort_at, missing, height, _split(notified) | {host(uri)}, _split(hidden)
        )
        for uri, cid, sort_at, missing, height, notified, hidden in tx.query(
            _TAKE, (sorted(posts),)
        )
    ]


def remember_pending_replies(tx: Transaction, walks: Sequence[AncestorWalk]) -> None:
    """Keep replies until the post comes that is next above them."""
    if walks:
        rows = sorted(
            (item.uri, item.at, item.height, _join(item.notified - {host(item.uri)}),
             _join(item.hidden))
            for item in walks
        )  # fmt: skip
        tx.execute(_REMEMBER, [list(column) for column in zip(*rows, strict=True)])


def prune_pending_replies(database: Database) -> int:
    """Remove some replies that were pending for too long; return how many."""
    return database.execute(_PRUNE, (KEPT_FOR, BATCH_REPLIES))


def _join(texts: Collection[str]) -> str:
    # A text with a space in it is neither an account nor a post that could come.
    return " ".join(sorted(text for text in texts if " " not in text and "\0" not in text))


def _split(text: str) -> frozenset[str]:
    return frozenset(text.split(" ")) if text else frozenset()


_ABOVE = """
WITH RECURSIVE above (reply, uri, parent, height) AS (
    SELECT n.reply, p.uri, p."replyParent", n.height
    FROM unnest(%b::text[], %b::text[], %b::integer[]) AS n(reply, uri, height)
    JOIN post p ON p.uri = n.uri
    UNION ALL
    SELECT a.reply, p.uri, p."replyParent", a.height + 1
    FROM above a JOIN post p ON p.uri = a.parent
    WHERE a.height < %s
)
SELECT reply, uri, parent FROM above ORDER BY reply, height
"""

_CAME = 'SELECT uri, "indexedAt" FROM record WHERE uri = ANY(%b::text[])'


def notify_of_posts(
    changes: Changes, written: Sequence[Put], rules: Mapping[str, PostRules]
) -> None:
    """Add the notifications of new and edited posts, and of replies that waited for them."""
    if changes.rebuilding:  # posts that were there before; replies may have waited for them
        written = ()
    edited = {put.uri for put in changes.updated}.intersection(put.uri for put in written)
    pending = forget_pending_replies(changes.tx, edited.union(changes.deleted))
    walks: list[AncestorWalk] = []
    sources: dict[str, Put] = {}
    for put in written:
        if put.historical and put.uri not in edited:
            continue
        # A pending reply was news: so is its edit, although it comes with history.
        source = replace(put, historical=False) if put.uri in pending else put
        rule = rules.get(put.uri, PostRules())
        notified = _notify_named(changes, source, rule)
        parent = put.rows.facts.parent
        if parent is not None and not rule.violates_thread_gate:
            sources[put.uri] = source
            sort_at = put.rows.facts.sort_at
            walks.append(AncestorWalk(put.uri, put.cid, sort_at, parent, 1, notified, rule.hidden))
    for walk in take_pending_replies(changes.tx, [put.uri for put in changes.inserted]):
        if walk.uri in sources:
            continue  # written by this batch: another writer took its post and left it pending
        sources[walk.uri] = _stored(walk, changes.now)
        walks.append(walk)
    _notify_above(changes, walks, sources)


@dataclass(slots=True)
class ExpectedNotifications:
    """The notifications of a post that has been there for a while.

    `certain`, if it was news, are those that do not depend on what may have changed since: a gate
    hides replies, and authors of posts that came later than the reply may have come too late.
    `broken`: a post above is not there, so it is not known who is above that one.
    """

    certain: list[Notification]
    possible: set[tuple[str, str, str | None]]
    broken: bool = False


def expected_notifications(
    tx: Transaction, puts: Sequence[Put], rules: Mapping[str, PostRules]
) -> dict[str, ExpectedNotifications]:
    """Return by uri the notifications that posts have made, as far as that can be known."""
    expected: dict[str, ExpectedNotifications] = {}
    walks: list[AncestorWalk] = []
    for put in puts:
        facts, rule = put.rows.facts, rules[put.uri]
        certain, notified = _named(put, rule)
        named, _ = _named(put, PostRules())
        possible = {(one.did, one.reason, one.reason_subject) for one in named}
        expected[put.uri] = ExpectedNotifications(certain, possible)
        if facts.parent is not None and not rule.violates_thread_gate:
            at = facts.parent
            walks.append(
                AncestorWalk(put.uri, put.cid, facts.sort_at, at, 1, notified, frozenset())
            )
    by_uri = {put.uri: put for put in puts}
    above = _above(tx, walks) if walks else {}
    came = _came(tx, {uri for posts in above.values() for uri, _ in posts})
    gates = gate_histories(tx, [by_uri[walk.uri] for walk in walks])
    for walk in walks:
        put, posts, of = by_uri[walk.uri], above.get(walk.uri, ()), expected[walk.uri]
        of.possible.update((host(uri), "reply", uri) for uri, _ in posts)
        # A post in between may be gone.
        of.broken = len(posts) < MAX_HEIGHT and (not posts or posts[-1][1] is not None)
        gate = gates.get(gate_uri(put.rows.facts.root, THREAD_GATE))
        if gate is None or (not gate.since and gate.was_the_same(put)):
            early = takewhile(lambda post: came.get(post[0], "~") <= put.indexed_at, posts)  # noqa: B023
            found, _ = advance(walk, list(early))
            of.certain += found
    return expected


def _came(tx: Transaction, uris: Set[str]) -> dict[str, str]:
    return dict(tx.query(_CAME, (sorted(uris),))) if uris else {}


def _notify_named(changes: Changes, put: Put, rule: PostRules) -> frozenset[str]:
    """Notify the mentioned and the quoted; return whom a reply need not notify any more."""
    found, notified = _named(put, rule)
    for notification in found:
        changes.notifications.add(put, notification)
    return notified


def _named(put: Put, rule: PostRules) -> tuple[list[Notification], frozenset[str]]:
    """Return the notifications of the mentioned and the quoted, and who is notified with them."""
    facts, notified = put.rows.facts, {put.did}
    found: list[Notification] = []

    def notify(did: str, reason: str, subject: str | None) -> None:
        if did not in notified:
            notified.add(did)
            found.append(Notification(did, reason, subject, facts.sort_at))

    for did in facts.mentions:
        notify(did, "mention", None)
    if facts.quoted is not None and not rule.violates_embedding_rules:
        notify(host(facts.quoted), "quote", facts.quoted)
    return found, frozenset(notified)


def _notify_above(
    changes: Changes, walks: Sequence[AncestorWalk], sources: Mapping[str, Put]
) -> None:
    """Notify the authors above, as far as posts are there, and keep the replies that wait.

    Another worker may be writing the next post: it is locked, and looked for once more.
    """
    while walks:
        above = _above(changes.tx, walks)
        waiting: list[AncestorWalk] = []
        for walk in walks:
            found, rest = advance(walk, above.get(walk.uri, ()))
            for notification in found:
                changes.notifications.add(sources[walk.uri], notification)
            if is_pending(rest) and not sources[walk.uri].historical:
                waiting.append(rest)
        unsure = {walk.at for walk in waiting if not changes.locks.holds(walk.at)}
        remember_pending_replies(changes.tx, [walk for walk in waiting if walk.at not in unsure])
        changes.locks.share(unsure)
        walks = [walk for walk in waiting if walk.at in unsure]


def _above(
    tx: Transaction, walks: Sequence[AncestorWalk]
) -> dict[str, list[tuple[str, str | None]]]:
    starts = ([walk.uri for walk in walks], [walk.at for walk in walks],
              [walk.height for walk in walks])  # fmt: skip
    found: dict[str, list[tuple[str, str | None]]] = {}
    for reply, uri, parent in tx.query(_ABOVE, (*starts, MAX_HEIGHT)):
        found.setdefault(reply, []).append((uri, parent))
    return found


def _stored(walk: AncestorWalk, now: str) -> Put:
    """Return a reply that was written before, as the author of notifications."""
    did, rkey = host(walk.uri), walk.uri.rpartition("/")[2]
    return Put(walk.uri, did, rkey, walk.cid, "", now, historical=False, json="")
