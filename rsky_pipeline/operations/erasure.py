"""Erases an account on request: its rows, what is kept about it, and its dead letters.

Rows go as those of a deleted account (`indexer.accounts.purge`). Whatever came before stays without
effect. What others wrote about the account is theirs and stays, and so do deleted posts' tombstones
and the newest hosting status, without which events of before could return.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.accounts.purge import purge_account
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.operations import dead_letters
from rsky_pipeline.operations.derived_rows import compare_rows, snapshot
from rsky_pipeline.operations.rebuild import BATCH_RECORDS, write_again
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.dead_letters import DeadLetter

# Table, and the condition on the account.
_HELD = {
    "record": "did = %s",
    "actor": "did = %s",
    "actor_sync": "did = %s",
    "notification": "%s IN (did, author)",
    "post": "creator = %s",
    '"like"': "creator = %s",
    "repost": "creator = %s",
    "follow": "creator = %s",
    "feed_item": '"originatorDid" = %s',
    "profile": "creator = %s",
    "rsky_pipeline.rejected_record": "did = %s",
    "rsky_pipeline.handle_check": "did = %s",
    "rsky_pipeline.deletion_check": "did = %s",
    "rsky_pipeline.backfill_repo": "did = %s",
}
_ERASED = "SELECT did, rev FROM rsky_pipeline.repo_floor WHERE did = ANY(%b::text[]) AND purged"
_FORGET = (
    "DELETE FROM rsky_pipeline.deletion_check WHERE did = %s",
    "DELETE FROM rsky_pipeline.backfill_repo WHERE did = %s",
)


def held(database: Database, did: str) -> dict[str, int]:
    """Return how many rows of an account the most important tables hold, if any."""
    found: dict[str, int] = {}
    for table, condition in _HELD.items():
        ((count,),) = database.query(f"SELECT count(*) FROM {table} WHERE {condition}", (did,))
        if count:
            found[table.strip('"').removeprefix("rsky_pipeline.")] = count
    return found


def erased_revs(database: Database | Transaction, dids: Sequence[str]) -> dict[str, str]:
    """Return the revs up to which accounts were erased, of those that were and did not return."""
    return dict(database.query(_ERASED, (list(dids),)))


def erase(
    database: Database, did: str, collections: Mapping[str, Collection], until: str,
    *, by_block: bool = False,
) -> None:  # fmt: skip
    """Remove all rows of an account; events up to `until` stay without effect.

    With `by_block` until the block is lifted.
    """
    purge_account(database, did, collections, until, by_block=by_block)
    for _, found in compare_rows(partial(snapshot, database), did, collections):
        uris = sorted({one.uri for one in found})  # rows without a record
        for start in range(0, len(uris), BATCH_RECORDS):
            write_again(database, did, uris[start : start + BATCH_RECORDS], collections)
    for statement in _FORGET:
        database.execute(statement, (did,))


def letters_of(store: Store, dids: Sequence[str]) -> dict[str, list[DeadLetter]]:
    """Return by stream the dead letters that name one of these accounts in their content."""
    names = [did.encode() for did in dids]
    found: dict[str, list[DeadLetter]] = {}
    for stream in dead_letters.LETTER_STREAMS:
        for letter in dead_letters.select(store, stream):
            if any(name in value for value in letter.fields.values() for name in names):
                found.setdefault(stream, []).append(letter)
    return found
