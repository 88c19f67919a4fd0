"""Replies that came before a post above them: remembered until it comes, so that all are told.

Officially the authors of what comes later are never told. A row is made by the reply's writer, who
holds the lock on its account, and goes on by whoever writes the missing post; the row itself is
locked without waiting, so that two who need the same rows cannot wait for each other.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.collections.fields import host, parts
from rsky_pipeline.indexer.collections.values import Notification

MAX_HEIGHT = 4  # posts above a reply whose authors are told
KEPT_FOR = timedelta(days=3)  # what comes later than this is no news any more
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
    """A reply on its way up its thread, telling the authors that it meets."""

    uri: str
    cid: str
    sort_at: str
    at: str  # the post above that is next
    height: int  # of that post
    told: frozenset[str]  # DIDs that are not told again; the author is one of them
    hidden: frozenset[str]  # replies that end the way


def walk(
    climb: AncestorWalk, above: Sequence[tuple[str, str | None]]
) -> tuple[list[Notification], AncestorWalk]:
    """Return whom a reply tells on its way over posts, given as (uri, parent), and the rest of it.

    A rest above `MAX_HEIGHT` or without a next post (`at` is empty) is the end.
    """
    told, found = set(climb.told), []
    at, height = climb.at, climb.height
    for uri, parent in above:
        did = host(uri)
        if did not in told:
            told.add(did)
            found.append(Notification(did, "reply", uri, climb.sort_at))
        at, height = parent or "", height + 1
        if uri in climb.hidden:
            at = ""
            break
    return found, replace(climb, at=at, height=height, told=frozenset(told))


def waits(climb: AncestorWalk) -> bool:
    """Tell whether somebody may have to be told when the next post comes."""
    next_post = parts(climb.at) if 0 < climb.height <= MAX_HEIGHT else None
    return (
        next_post is not None
        and next_post.collection == "app.bsky.feed.post"
        and next_post.authority.startswith("did:")
    )


def forget_pending_replies(tx: Transaction, uris: Collection[str]) -> set[str]:
    """Forget replies that are gone or edited; return those that had been remembered."""
    if not uris:
        return set()
    return {row[0] for row in tx.query(_FORGET, (sorted(uris),))}


def take_pending_replies(tx: Transaction, posts: Collection[str]) -> list[AncestorWalk]:
    """Return the replies that waited for these posts; they are remembered no more."""
    if not posts:
        return []
    return [
        AncestorWalk(uri, cid, sort_at, missing, height, _split(told) | {host(uri)}, _split(hidden))
        for uri, cid, sort_at, missing, height, told, hidden in tx.query(_TAKE, (sorted(posts),))
    ]


def remember_pending_replies(tx: Transaction, climbs: Sequence[AncestorWalk]) -> None:
    """Remember replies until the post comes that is next above them."""
    if climbs:
        rows = sorted(
            (item.uri, item.at, item.height, _join(item.told - {host(item.uri)}),
             _join(item.hidden))
            for item in climbs
        )  # fmt: skip
        tx.execute(_REMEMBER, [list(column) for column in zip(*rows, strict=True)])


def prune_pending_replies(database: Database) -> int:
    """Remove some replies that have waited for too long; return how many."""
    return database.execute(_PRUNE, (KEPT_FOR, PRUNE_BATCH))


def _join(texts: Collection[str]) -> str:
    # What has a space in it is neither an account nor a post that could come.
    return " ".join(sorted(text for text in texts if " " not in text and "\0" not in text))


def _split(text: str) -> frozenset[str]:
    return frozenset(text.split(" ")) if text else frozenset()
