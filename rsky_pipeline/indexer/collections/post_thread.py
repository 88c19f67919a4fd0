"""The place of a post in its thread: reply counts, and the author's own chain of replies."""

from collections.abc import Mapping, Sequence
from typing import Any

from rsky_pipeline.indexer.collections.declaration import Changes
from rsky_pipeline.indexer.collections.fields import host
from rsky_pipeline.indexer.collections.post_rules import PostRules
from rsky_pipeline.indexer.collections.values import Put

_FORGET_ITEMS = 'DELETE FROM feed_item WHERE "postUri" = ANY(%b::text[])'
_FORGET_QUOTES = "DELETE FROM quote WHERE subject = ANY(%b::text[]) RETURNING subject"
# The AppView orders a deletion against later replies by its time, so the row stays, marked.
_END_CHAIN = """
UPDATE op_thread_reply SET "deletedAt" = %s WHERE uri = ANY(%b::text[]) AND "deletedAt" IS NULL
"""
_CONTINUE_CHAIN = """
INSERT INTO op_thread_reply ("rootUri", "parentUri", uri)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[])
ON CONFLICT ("rootUri", uri) DO UPDATE
SET "parentUri" = EXCLUDED."parentUri", "deletedAt" = NULL
"""

_LEAVE_MARK = """
INSERT INTO op_thread_reply ("rootUri", "parentUri", uri, "deletedAt")
SELECT n.*, %s FROM unnest(%b::text[], %b::text[], %b::text[]) AS n(root, parent, uri)
WHERE NOT EXISTS (
    SELECT FROM rsky_pipeline.repo_floor f WHERE f.did = split_part(n.uri, '/', 3) AND f.purged)
ON CONFLICT ("rootUri", uri) DO NOTHING
"""


def forget_deleted(changes: Changes) -> None:
    """Remove feed items and quotes of deleted posts, and end their chains.

    Posts that go with their account leave them: which posts it had is not known for ever, and rows
    of others must not depend on whether they wrote it before or after.
    """
    if not changes.deleted:
        return
    tx, uris = changes.tx, sorted(changes.deleted)
    if not changes.purging:
        tx.execute(_FORGET_ITEMS, (uris,))
        for (subject,) in tx.query(_FORGET_QUOTES, (uris,)):
            changes.counts.add("post_agg", "quoteCount", subject, -1)
    tx.execute(_END_CHAIN, (changes.now, uris))


def write_op_thread_replies(changes: Changes, written: Sequence[Put]) -> None:
    """Record replies in a thread of the author's own, wherever in it they are."""
    if rows := own_replies(written):
        changes.tx.execute(_CONTINUE_CHAIN, [list(column) for column in zip(*rows, strict=True)])


def mark_overtaken(changes: Changes, puts: Sequence[Put]) -> None:
    """Mark deleted replies: the replies below them keep their place in the thread.

    An account that was purged leaves no marks.
    """
    if rows := own_replies(puts):
        columns = [list(column) for column in zip(*rows, strict=True)]
        changes.tx.execute(_LEAVE_MARK, (changes.now, *columns))


def own_replies(puts: Sequence[Put]) -> list[tuple[str, str, str]]:
    """Return root, parent and uri of the replies in a thread of the author's own."""
    return sorted(
        {
            (put.rows.facts.root, put.rows.facts.parent, put.uri)
            for put in puts
            if put.rows.facts.root is not None and host(put.rows.facts.root) == put.did
        }
    )


def count_replies(changes: Changes, written: Sequence[Put], rules: Mapping[str, PostRules]) -> None:
    """Count replies of their parents, without those that a thread gate does not allow.

    A row that stood without its record has been counted by whoever wrote it, like its post.
    """
    for row in changes.removed:
        if not row["violatesThreadGate"]:
            _add(changes, row["replyParent"], -1)
    stood = {put.uri for put in changes.updated}.difference(row["uri"] for row in changes.removed)
    for put in written:
        found = rules.get(put.uri)
        if put.uri not in stood and (found is None or not found.violates_thread_gate):
            _add(changes, put.rows.facts.parent, 1)


def _add(changes: Changes, parent: Any, difference: int) -> None:
    changes.counts.add("post_agg", "replyCount", parent, difference)
