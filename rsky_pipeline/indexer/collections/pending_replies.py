"""Pending replies: they came before a post above them, whose author is notified when it comes.

Officially the authors of posts that come later are never notified. A row is made by the reply's
writer, who holds the lock on its account, and taken by whoever writes the missing post; the row
itself is locked without waiting, so that two workers that need the same rows cannot wait for each
other. The table is called `early_reply`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.collections.fields import host, parts
from rsky_pipeline.indexer.collections.values import Notification

MAX_HEIGHT = 4  # posts above a reply whose authors are notified
KEPT_FOR = timedelta(days=3)  # a post that comes later than this is no news any more
PRUNE_BATCH = 5_000  # removed in one step, so that no transaction is long

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
    return database.execute(_PRUNE, (KEPT_FOR, PRUNE_BATCH))


def _join(texts: Collection[str]) -> str:
    # A text with a space in it is neither an account nor a post that could come.
    return " ".join(sorted(text for text in texts if " " not in text and "\0" not in text))


def _split(text: str) -> frozenset[str]:
    return frozenset(text.split(" ")) if text else frozenset()
