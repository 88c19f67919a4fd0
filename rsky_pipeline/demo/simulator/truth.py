"""The oracle: the rows that must stand in the end, worked out from the published events.

It implements the rules of the AppView's tables without the pipeline's code. Of records with one
natural key the smallest uri stands; counts are counts of what stands. Values that depend on the
order of arrival are `ANY`: whether a reply that came before a gate obeys it does not follow from
the final state.
"""

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.demo.simulator.state import AccountState, NetworkState
from rsky_pipeline.demo.simulator.tables import (
    ANY,
    TABLES,
    Rows,
    StandingRecord,
    Truth,
    canonical,
    clean,
    json_form,
    one_of,
)

Row = tuple[Any, ...]
Build = Callable[[StandingRecord], Row | None]  # None: the record has no row of its own

RECORD_ONLY = (mix.STATUS, mix.NOTIFICATIONS, mix.CHAT, mix.GERM)


def blob_cid(record: dict[str, Any], key: str) -> str | None:
    """Return the CID of a blob."""
    blob = record.get(key)
    return blob["ref"]["$link"] if blob else None


def _reaction(entry: StandingRecord) -> Row:
    subject, via = entry.record["subject"], entry.record.get("via", {})
    return (entry.cid, entry.did, subject["uri"], subject["cid"], entry.created_at, entry.sort_at,
            via.get("uri"), via.get("cid"))  # fmt: skip


def _subject(entry: StandingRecord) -> Row:
    return (entry.cid, entry.did, entry.record["subject"], entry.created_at, entry.sort_at)


def _named(entry: StandingRecord) -> Row:
    return entry.cid, entry.did, clean(entry.record["name"]), entry.created_at, entry.sort_at


def _gate(entry: StandingRecord) -> Row:
    return entry.cid, entry.did, entry.record["post"], entry.created_at


def _list_item(entry: StandingRecord) -> Row:
    its = entry.record
    return entry.cid, entry.did, its["subject"], its["list"], entry.created_at, entry.sort_at


def _described(entry: StandingRecord) -> Row:
    facets = entry.record.get("descriptionFacets")
    return (
        clean(entry.record.get("description")),
        None if facets is None else canonical(facets),
        blob_cid(entry.record, "avatar"),
        entry.created_at,
        entry.sort_at,
    )


def _list(entry: StandingRecord) -> Row:
    names = clean(entry.record["name"]), entry.record["purpose"]
    return entry.cid, entry.did, *names, *_described(entry)


def _generator(entry: StandingRecord) -> Row:
    names = entry.record["did"], clean(entry.record["displayName"])
    return entry.cid, entry.did, *names, *_described(entry)


def _labeler(entry: StandingRecord) -> Row | None:
    if entry.rkey != "self":
        return None
    return entry.cid, entry.did, entry.created_at, entry.sort_at


def _verification(entry: StandingRecord) -> Row:
    its = entry.record
    return (entry.cid, entry.did, entry.rkey, its["subject"], its["handle"],
            clean(its["displayName"]), entry.created_at, entry.sort_at)  # fmt: skip


def _profile(entry: StandingRecord) -> Row | None:
    if entry.rkey != "self":
        return None
    its = entry.record
    pack = its.get("joinedViaStarterPack", {}).get("uri")
    created = entry.created_at if "createdAt" in its else ANY  # the time when it was seen
    return (entry.cid, entry.did, clean(its.get("displayName")), clean(its.get("description")),
            blob_cid(its, "avatar"), blob_cid(its, "banner"), pack, created)  # fmt: skip


BUILDERS: dict[str, tuple[str, Build]] = {
    mix.LIKE: ("like", _reaction),
    mix.REPOST: ("repost", _reaction),
    mix.FOLLOW: ("follow", _subject),
    mix.BLOCK: ("actor_block", _subject),
    mix.LIST_BLOCK: ("list_block", _subject),
    mix.OPT_OUT: ("reference_list_opt_out", _subject),
    mix.LIST: ("list", _list),
    mix.LIST_ITEM: ("list_item", _list_item),
    mix.GENERATOR: ("feed_generator", _generator),
    mix.STARTER_PACK: ("starter_pack", _named),
    mix.LABELER: ("labeler", _labeler),
    mix.VERIFICATION: ("verification", _verification),
    mix.PROFILE: ("profile", _profile),
    mix.THREAD_GATE: ("thread_gate", _gate),
    mix.POST_GATE: ("post_gate", _gate),
}

# The natural keys: of several records with one key only one has a row.
ONE_OF_A_KIND: dict[str, Callable[[StandingRecord], Any]] = {
    mix.LIKE: lambda entry: (entry.record["subject"]["uri"], entry.did),
    mix.REPOST: lambda entry: (entry.record["subject"]["uri"], entry.did),
    mix.FOLLOW: lambda entry: (entry.record["subject"], entry.did),
    mix.BLOCK: lambda entry: (entry.record["subject"], entry.did),
    mix.LIST_BLOCK: lambda entry: (entry.record["subject"], entry.did),
    mix.OPT_OUT: lambda entry: (entry.record["subject"], entry.did),
    mix.LIST_ITEM: lambda entry: (entry.record["list"], entry.record["subject"]),
    mix.VERIFICATION: lambda entry: (entry.record["subject"], entry.did),
    mix.THREAD_GATE: lambda entry: entry.record["post"],
    mix.POST_GATE: lambda entry: entry.record["post"],
}


class PostTruth:
    """Collects posts, then judges them when all are known."""

    def __init__(self, state: NetworkState, rows: Truth) -> None:
        self._state = state
        self._rows = rows
        self._posts: dict[str, StandingRecord] = {}
        self._invalid: dict[str, Any] = {}

    def add(self, entries: list[StandingRecord]) -> None:
        """Add posts that stand."""
        self._posts.update((entry.uri, entry) for entry in entries)

    def finish(self) -> None:
        """Write the rows of all posts."""
        replies: Counter[str] = Counter()
        undecided: set[str] = set()
        for uri, entry in self._posts.items():
            self._add_post(entry)
            embed = entry.record.get("embed")
            if embed is not None:
                self._add_embed(entry, embed)
            reply = entry.record.get("reply")
            if reply is None:
                continue
            root, parent = reply["root"]["uri"], reply["parent"]["uri"]
            if self._violates_thread_gate(entry) is ANY:
                undecided.add(parent)
            else:
                replies[parent] += 1
            if host(root) == entry.did:
                self._rows["op_thread_reply"][root, uri] = (parent,)
        for parent in {*replies, *undecided}:
            count = ANY if parent in undecided else replies[parent]
            self._rows["post_agg.replyCount"][parent,] = (count,)

    def _add_post(self, entry: StandingRecord) -> None:
        its = entry.record
        root, parent = _link(its, "root"), _link(its, "parent")
        flags = (
            self._invalid_root(entry.uri),
            self._violates_thread_gate(entry),
            self._violates_embedding_rules(entry),
            self._is_gated(entry.uri, mix.THREAD_GATE),
            self._is_gated(entry.uri, mix.POST_GATE),
        )
        self._rows["post"][entry.uri,] = (
            entry.cid, entry.did, clean(its["text"]), *root, *parent, entry.created_at,
            entry.sort_at, its.get("langs") or None, its.get("tags") or None, *flags,
        )  # fmt: skip
        self._rows["feed_item"][entry.uri,] = (
            entry.cid, "post", entry.uri, entry.did, entry.sort_at,
        )  # fmt: skip

    def _add_embed(self, entry: StandingRecord, embed: dict[str, Any]) -> None:
        kind = embed["$type"].removeprefix("app.bsky.embed.")
        if kind == "recordWithMedia":
            self._add_embed(entry, embed["media"])
            self._add_quote(entry, embed["record"]["record"])
        elif kind == "record":
            self._add_quote(entry, embed["record"])
        elif kind == "images":
            self._add_images("post_embed_image", entry, list(enumerate(embed["images"])))
        elif kind == "gallery":
            # Positions are those among all items, unknown kinds included.
            known = [(place, item) for place, item in enumerate(embed["items"])
                     if item["$type"] == "app.bsky.embed.gallery#image"]  # fmt: skip
            self._add_images("post_embed_gallery_image", entry, known)
        elif kind == "video":
            row = blob_cid(embed, "video"), clean(embed.get("alt"))
            self._rows["post_embed_video"][entry.uri,] = row
        elif kind == "external":
            link = embed["external"]
            texts = clean(link["uri"]), clean(link["title"]), clean(link["description"])
            self._rows["post_embed_external"][entry.uri,] = (*texts, blob_cid(link, "thumb"))

    def _add_images(self, table: str, entry: StandingRecord, images: list[tuple[int, Any]]) -> None:
        for place, image in images:
            row = blob_cid(image, "image"), clean(image["alt"])
            self._rows[table][entry.uri, str(place)] = row

    def _add_quote(self, entry: StandingRecord, link: dict[str, str]) -> None:
        self._rows["post_embed_record"][entry.uri, link["uri"]] = (link["cid"],)
        if _collection(link["uri"]) == mix.POST and link["uri"] not in self._state.deleted:
            self._rows["quote"][entry.uri,] = (
                entry.cid, link["uri"], link["cid"], entry.created_at, entry.sort_at,
            )  # fmt: skip

    def _invalid_root(self, uri: str) -> Any:
        """A reply is invalid if its parent is missing, invalid itself, or in another thread."""
        path = [uri]
        while (parent := self._parent(path[-1])) in self._posts and parent not in self._invalid:
            path.append(parent)
        for reply in reversed(path):
            if reply not in self._invalid:
                self._invalid[reply] = self._judge(reply)
        return self._invalid[uri]

    def _judge(self, uri: str) -> Any:
        parent = self._parent(uri)
        if not parent:
            return False
        if parent not in self._posts:
            # One that was there when the reply came, and was deleted later, was a parent.
            return ANY if self._is_gone(parent) else True
        if self._invalid[parent] is not False:
            return self._invalid[parent]
        root = self._posts[uri].record["reply"]["root"]["uri"]
        above = _link(self._posts[parent].record, "root")[0]
        return above is not None if parent == root else above != root

    def _is_gone(self, uri: str) -> bool:
        account = self._state.accounts.get(host(uri))
        return uri in self._state.deleted or (account is not None and account.status == "deleted")

    def _parent(self, uri: str) -> str:
        return _link(self._posts[uri].record, "parent")[0] or ""

    def _violates_thread_gate(self, entry: StandingRecord) -> Any:
        """Gates apply to later replies only: decided only where there never was a gate."""
        root = _link(entry.record, "root")[0]
        return ANY if root in self._state.gated and host(root or "") != entry.did else False

    def _violates_embedding_rules(self, entry: StandingRecord) -> Any:
        embed = entry.record.get("embed", {})
        link = embed.get("record", {})
        quoted = link.get("uri") or link.get("record", {}).get("uri")
        if quoted is None or host(quoted) == entry.did:
            return False
        return ANY if quoted in self._state.gated else False

    def _is_gated(self, uri: str, collection: str) -> bool:
        return uri.replace(f"/{mix.POST}/", f"/{collection}/") in self._state.records


def host(uri: str) -> str:
    """Return whose record a uri names."""
    return uri[5:].partition("/")[0]


def _collection(uri: str) -> str:
    return uri[5:].partition("/")[2].partition("/")[0]


def _link(record: dict[str, Any], key: str) -> tuple[str | None, str | None]:
    link = record.get("reply", {}).get(key, {})
    return link.get("uri"), link.get("cid")


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
    found: dict[str, list[StandingRecord]] = {}
    for uri, item in state.records.items():
        did, collection, rkey = uri[5:].split("/", 2)
        if not _is_wanted(collection, collections):
            continue
        if state.accounts[did].status == "deleted":
            continue
        record = json_form(item.block)
        rows["record"][uri,] = (item.cid, did, canonical(record))
        entry = StandingRecord(uri, did, rkey, item.cid, item.published, record)
        found.setdefault(collection, []).append(entry)
    for collection, entries in found.items():
        if collection == mix.POST:
            posts.add(entries)
        elif collection in BUILDERS:
            _add(rows, state, collection, entries)
    posts.finish()
    _add_counts(rows)
    _add_accounts(rows, state, handles)
    newest: dict[tuple[str, str, str], tuple[str, bool, str | None]] = {}
    for (src, uri, _, value), label in state.labels.items():
        known = newest.get((src, uri, value))
        if known is None or known[:2] < (label.cts, label.neg):
            newest[src, uri, value] = label.cts, label.neg, label.exp
    for src, uri, cid, value in state.labels:
        cts, negated, expires = newest[src, uri, value]
        rows["label"][src, uri, cid, value] = (negated, cts, expires)
    return rows


def _is_wanted(collection: str, wanted: Collection[str]) -> bool:
    return collection in INDEXED and any(
        collection.startswith(item) if item.endswith(".") else collection == item for item in wanted
    )


def _add(rows: Truth, state: NetworkState, collection: str, entries: list[StandingRecord]) -> None:
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
