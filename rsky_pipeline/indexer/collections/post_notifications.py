"""Whom a post tells: the mentioned, the quoted, and the authors above a reply.

Everybody is told once, for the first of these reasons; never the author. Where a post above a reply
is not there yet, the reply goes on when it comes (`early_replies`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rsky_pipeline.indexer.collections.declaration import Changes
from rsky_pipeline.indexer.collections.fields import host
from rsky_pipeline.indexer.collections.pending_replies import (
    MAX_HEIGHT,
    AncestorWalk,
    forget_pending_replies,
    remember_pending_replies,
    take_pending_replies,
    waits,
    walk,
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
    changes: Changes, written: Sequence[Put], verdicts: Mapping[str, PostRules]
) -> None:
    """Add the notifications of new and edited posts, and of replies that waited for them."""
    edited = {put.uri for put in changes.updated}
    early = forget_pending_replies(changes.tx, edited.union(changes.deleted))
    climbs: list[AncestorWalk] = []
    tellers: dict[str, Put] = {}
    for put in written:
        if put.historical and put.uri not in edited:
            continue
        # What was remembered had been news: its edit is, although it comes with history.
        teller = replace(put, historical=False) if put.uri in early else put
        verdict = verdicts.get(put.uri, PostRules())
        told = _tell_named(changes, teller, verdict)
        parent = put.rows.facts.parent
        if parent is not None and not verdict.violates_thread_gate:
            tellers[put.uri] = teller
            sort_at = put.rows.facts.sort_at
            climbs.append(AncestorWalk(put.uri, put.cid, sort_at, parent, 1, told, verdict.hidden))
    for climb in take_pending_replies(changes.tx, [put.uri for put in changes.inserted]):
        tellers[climb.uri] = _stored(climb, changes.now)
        climbs.append(climb)
    _tell_above(changes, climbs, tellers)


def _tell_named(changes: Changes, put: Put, verdict: PostRules) -> frozenset[str]:
    """Tell the mentioned and the quoted; return who needs no further word."""
    facts, told = put.rows.facts, {put.did}

    def tell(did: str, reason: str, subject: str | None) -> None:
        if did not in told:
            told.add(did)
            changes.notifications.tell(put, Notification(did, reason, subject, facts.sort_at))

    for did in facts.mentions:
        tell(did, "mention", None)
    if facts.quoted is not None and not verdict.violates_embedding_rules:
        tell(host(facts.quoted), "quote", facts.quoted)
    return frozenset(told)


def _tell_above(
    changes: Changes, climbs: Sequence[AncestorWalk], tellers: Mapping[str, Put]
) -> None:
    """Tell the authors above, as far as posts are there, and remember who has further to go.

    Another worker may be writing the next post: it is locked, and looked for once more.
    """
    while climbs:
        above = _above(changes, climbs)
        waiting: list[AncestorWalk] = []
        for climb in climbs:
            found, rest = walk(climb, above.get(climb.uri, ()))
            for notification in found:
                changes.notifications.tell(tellers[climb.uri], notification)
            if waits(rest) and not tellers[climb.uri].historical:
                waiting.append(rest)
        unsure = {climb.at for climb in waiting if not changes.locks.holds(climb.at)}
        remember_pending_replies(changes.tx, [climb for climb in waiting if climb.at not in unsure])
        changes.locks.share(unsure)
        climbs = [climb for climb in waiting if climb.at in unsure]


def _above(
    changes: Changes, climbs: Sequence[AncestorWalk]
) -> dict[str, list[tuple[str, str | None]]]:
    starts = ([climb.uri for climb in climbs], [climb.at for climb in climbs],
              [climb.height for climb in climbs])  # fmt: skip
    found: dict[str, list[tuple[str, str | None]]] = {}
    for reply, uri, parent in changes.tx.query(_ABOVE, (*starts, MAX_HEIGHT)):
        found.setdefault(reply, []).append((uri, parent))
    return found


def _stored(climb: AncestorWalk, now: str) -> Put:
    """Return a reply that was written before, as the author of notifications."""
    did, rkey = host(climb.uri), climb.uri.rpartition("/")[2]
    return Put(climb.uri, did, rkey, climb.cid, "", now, historical=False, json="")
