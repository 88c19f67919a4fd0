"""Whom a post tells: the mentioned, the quoted, and the authors above a reply.

Everybody is told once, for the first of these reasons; never the author.
"""

from collections.abc import Mapping, Sequence

from rsky_pipeline.indexer.collections.post_rules import Verdict
from rsky_pipeline.indexer.collections.shape import Notification, Put
from rsky_pipeline.indexer.records import host
from rsky_pipeline.indexer.write import Changes

MAX_HEIGHT = 4  # posts above a reply whose authors are told
_ANCESTORS = """
WITH RECURSIVE above (reply, uri, parent, height) AS (
    SELECT n.reply, p.uri, p."replyParent", 1
    FROM unnest(%b::text[], %b::text[]) AS n(reply, parent) JOIN post p ON p.uri = n.parent
    UNION ALL
    SELECT a.reply, p.uri, p."replyParent", a.height + 1
    FROM above a JOIN post p ON p.uri = a.parent
    WHERE a.height < %s
)
SELECT reply, uri FROM above ORDER BY reply, height
"""


def notify_of_posts(
    changes: Changes, written: Sequence[Put], verdicts: Mapping[str, Verdict]
) -> None:
    """Add the notifications of new and edited posts."""
    edited = {put.uri for put in changes.updated}
    told = [put for put in written if not put.historical or put.uri in edited]
    ancestors = _ancestors(changes, told)
    for put in told:
        verdict = verdicts.get(put.uri, Verdict())
        for notification in _of_one(put, verdict, ancestors.get(put.uri, ())):
            changes.notes.tell(put, notification)


def _ancestors(changes: Changes, told: Sequence[Put]) -> dict[str, list[str]]:
    replies = [put for put in told if put.rows.facts.parent is not None]
    if not replies:
        return {}
    uris = [put.uri for put in replies]
    parents = [put.rows.facts.parent for put in replies]
    found: dict[str, list[str]] = {}
    for reply, uri in changes.tx.query(_ANCESTORS, (uris, parents, MAX_HEIGHT)):
        found.setdefault(reply, []).append(uri)
    return found


def _of_one(put: Put, verdict: Verdict, ancestors: Sequence[str]) -> list[Notification]:
    facts = put.rows.facts
    known = {put.did}
    found: list[Notification] = []

    def tell(did: str, reason: str, subject: str | None) -> None:
        if did not in known:
            known.add(did)
            found.append(Notification(did, reason, subject, facts.sort_at))

    for did in facts.mentions:
        tell(did, "mention", None)
    if facts.quoted is not None and not verdict.violates_embedding_rules:
        tell(host(facts.quoted), "quote", facts.quoted)
    if not verdict.violates_thread_gate:
        for uri in ancestors:
            tell(host(uri), "reply", uri)
            if uri in verdict.hidden:
                break
    return found
