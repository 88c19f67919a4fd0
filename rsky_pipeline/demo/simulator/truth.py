"""The oracle: which rows must stand in the end, worked out from what was published.

It knows the rules of the AppView's tables and nothing of the pipeline's code. Of records with one
natural key the smallest uri stands; counts are counts of what stands. Values that depend on the
order of arrival are `ANY`: whether a reply that came before a gate obeys it is not decided by what
stands in the end.
"""

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.demo.simulator.reading import canonical, json_form
from rsky_pipeline.demo.simulator.state import AccountState, NetworkState
from rsky_pipeline.demo.simulator.tables import TABLES
from rsky_pipeline.demo.simulator.truth_posts import PostTruth
from rsky_pipeline.demo.simulator.truth_records import BUILDERS, ONE_OF_A_KIND, RECORD_ONLY
from rsky_pipeline.demo.simulator.truth_values import ANY, Entry, Rows, Truth, one_of

DEFAULT_COLLECTIONS = ("app.bsky.", "chat.bsky.", "com.germnetwork.declaration")
INDEXED = frozenset({mix.POST, *BUILDERS, *RECORD_ONLY})


def truth(
    state: NetworkState,
    *,
    collections: Collection[str] = DEFAULT_COLLECTIONS,
    handles: bool = False,
) -> Truth:
    """Return the rows of every compared table.

    `collections` are the pipeline's own setting. `handles`: whether it looks them up. Of deleted
    accounts no record is left.
    """
    rows: Truth = {name: {} for name in TABLES}
    posts = PostTruth(state, rows)
    found: dict[str, list[Entry]] = {}
    for uri, item in state.records.items():
        did, collection, rkey = uri[5:].split("/", 2)
        if not _is_wanted(collection, collections):
            continue
        if state.accounts[did].status == "deleted":
            continue
        record = json_form(item.block)
        rows["record"][uri,] = (item.cid, did, canonical(record))
        entry = Entry(uri, did, rkey, item.cid, item.published, record)
        found.setdefault(collection, []).append(entry)
    for collection, entries in found.items():
        if collection == mix.POST:
            posts.add(entries)
        elif collection in BUILDERS:
            _add(rows, state, collection, entries)
    posts.finish()
    _add_counts(rows)
    _add_accounts(rows, state, handles)
    for key, label in state.labels.items():
        rows["label"][key] = (label.neg, label.cts, label.exp)
    return rows


def _is_wanted(collection: str, wanted: Collection[str]) -> bool:
    return collection in INDEXED and any(
        collection.startswith(item) if item.endswith(".") else collection == item for item in wanted
    )


def _add(rows: Truth, state: NetworkState, collection: str, entries: list[Entry]) -> None:
    table, build = BUILDERS[collection]
    key_of = ONE_OF_A_KIND.get(collection)
    standing: dict[Any, str] = {}
    # The smallest uri of each natural key comes first and stands.
    for entry in sorted(entries, key=lambda entry: entry.uri):
        row = build(entry)
        if row is None:
            continue
        if key_of is not None and standing.setdefault(key_of(entry), entry.uri) != entry.uri:
            rows["duplicate_record"][entry.uri,] = (entry.cid, standing[key_of(entry)])
            continue
        rows[table][entry.uri,] = row
        if collection == mix.REPOST:
            subject = entry.record["subject"]["uri"]
            # A deleted post takes its reposts out of feeds; other things can be reposted too.
            if subject not in state.deleted or f"/{mix.POST}/" not in subject:
                item = (entry.cid, "repost", subject, entry.did, entry.sort_at)
                rows["feed_item"][entry.uri,] = item


def _add_counts(rows: Truth) -> None:
    def count(name: str, table: str, column: Callable[[tuple[Any, ...]], str]) -> None:
        for key, number in Counter(column(row) for row in rows[table].values()).items():
            rows[name][key,] = (number,)

    count("post_agg.likeCount", "like", lambda row: row[2])
    count("post_agg.repostCount", "repost", lambda row: row[2])
    count("post_agg.quoteCount", "quote", lambda row: row[1])
    count("profile_agg.followersCount", "follow", lambda row: row[2])
    count("profile_agg.followsCount", "follow", lambda row: row[1])
    count("profile_agg.postsCount", "post", lambda row: row[1])


def _add_accounts(rows: Truth, state: NetworkState, handles: bool) -> None:
    for did, account in state.accounts.items():
        if account.status == "deleted":
            # What arrives after the purge makes the account's own rows again, without a record.
            rows["actor"][did,] = rows["actor_sync"][did,] = (ANY, ANY)
            continue
        # An inactive account without a reason is hidden as a deactivated one is.
        status = None if account.active else account.status or "deactivated"
        rows["actor"][did,] = (status, account.handle if handles else None)
        if account.commits:
            rows["actor_sync"][did,] = _sync(account)


def _sync(account: AccountState) -> tuple[Any, ...]:
    """A live commit counts if it changes an indexed record; a backfill may have seen any later."""
    if not account.indexed:
        return ANY, ANY
    if len(account.commits) == 1:
        return account.commits[0]
    cids, revs = zip(*account.commits, strict=True)
    return one_of(cids), one_of(revs)


__all__ = ["ANY", "DEFAULT_COLLECTIONS", "INDEXED", "Rows", "Truth", "truth"]
