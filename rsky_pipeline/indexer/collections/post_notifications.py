"""Whom a post notifies: the mentioned, the quoted, and the authors above a reply.

Everybody is notified once, for the first of these reasons; never the author. Where a post above a
reply is not there yet, the reply goes on when it comes (`pending_replies`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rsky_pipeline.indexer.collections.declaration import Changes
from rsky_pipeline.indexer.collections.fields import host
from rsky_pipeline.indexer.collections.pending_replies import (
    MAX_HEIGHT,
    AncestorWalk,
    advance,
    forget_pending_replies,
    is_pending,
    remember_pending_replies,
    take_pending_replies,
)
from rsky_pipeline.indexer.collections.post_rules import PostRules
from rsky_pipeline.indexer.collections.values import Notification, Put

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


def notify_of_posts(
    changes: Changes, written: Sequence[Put], rules: Mapping[str, PostRules]
) -> None:
    """Add the notifications of new and edited posts, and of replies that waited for them."""
    edited = {put.uri for put in changes.updated}
    early = forget_pending_replies(changes.tx, edited.union(changes.deleted))
    walks: list[AncestorWalk] = []
    sources: dict[str, Put] = {}
    for put in written:
        if put.historical and put.uri not in edited:
            continue
        # A pending reply was news: so is its edit, although it comes with history.
        source = replace(put, historical=False) if put.uri in early else put
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


def _notify_named(changes: Changes, put: Put, rule: PostRules) -> frozenset[str]:
    """Notify the mentioned and the quoted; return whom a reply need not notify any more."""
    facts, notified = put.rows.facts, {put.did}

    def notify(did: str, reason: str, subject: str | None) -> None:
        if did not in notified:
            notified.add(did)
            changes.notifications.add(put, Notification(did, reason, subject, facts.sort_at))

    for did in facts.mentions:
        notify(did, "mention", None)
    if facts.quoted is not None and not rule.violates_embedding_rules:
        notify(host(facts.quoted), "quote", facts.quoted)
    return frozenset(notified)


def _notify_above(
    changes: Changes, walks: Sequence[AncestorWalk], sources: Mapping[str, Put]
) -> None:
    """Notify the authors above, as far as posts are there, and keep the replies that wait.

    Another worker may be writing the next post: it is locked, and looked for once more.
    """
    while walks:
        above = _above(changes, walks)
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
    changes: Changes, walks: Sequence[AncestorWalk]
) -> dict[str, list[tuple[str, str | None]]]:
    starts = ([walk.uri for walk in walks], [walk.at for walk in walks],
              [walk.height for walk in walks])  # fmt: skip
    found: dict[str, list[tuple[str, str | None]]] = {}
    for reply, uri, parent in changes.tx.query(_ABOVE, (*starts, MAX_HEIGHT)):
        found.setdefault(reply, []).append((uri, parent))
    return found


def _stored(walk: AncestorWalk, now: str) -> Put:
    """Return a reply that was written before, as the author of notifications."""
    did, rkey = host(walk.uri), walk.uri.rpartition("/")[2]
    return Put(walk.uri, did, rkey, walk.cid, "", now, historical=False, json="")
