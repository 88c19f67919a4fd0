"""The rows of posts: themselves, their embeds, their place in threads and feeds."""

from collections import Counter
from typing import Any

from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.demo.simulator.reading import clean
from rsky_pipeline.demo.simulator.state import NetworkState
from rsky_pipeline.demo.simulator.truth_records import blob_cid
from rsky_pipeline.demo.simulator.truth_values import ANY, Entry, Truth


class PostTruth:
    """Collects posts, then judges them when all are known."""

    def __init__(self, state: NetworkState, rows: Truth) -> None:
        self._state = state
        self._rows = rows
        self._posts: dict[str, Entry] = {}
        self._invalid: dict[str, Any] = {}

    def add(self, entries: list[Entry]) -> None:
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

    def _add_post(self, entry: Entry) -> None:
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

    def _add_embed(self, entry: Entry, embed: dict[str, Any]) -> None:
        kind = embed["$type"].removeprefix("app.bsky.embed.")
        if kind == "recordWithMedia":
            self._add_embed(entry, embed["media"])
            self._add_quote(entry, embed["record"]["record"])
        elif kind == "record":
            self._add_quote(entry, embed["record"])
        elif kind == "images":
            self._add_images("post_embed_image", entry, list(enumerate(embed["images"])))
        elif kind == "gallery":
            # Positions are those among all items, also those of kinds that nobody knows.
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

    def _add_images(self, table: str, entry: Entry, images: list[tuple[int, Any]]) -> None:
        for place, image in images:
            row = blob_cid(image, "image"), clean(image["alt"])
            self._rows[table][entry.uri, str(place)] = row

    def _add_quote(self, entry: Entry, link: dict[str, str]) -> None:
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

    def _violates_thread_gate(self, entry: Entry) -> Any:
        """Gates judge what comes after them: decided only where there never was one."""
        root = _link(entry.record, "root")[0]
        return ANY if root in self._state.gated and host(root or "") != entry.did else False

    def _violates_embedding_rules(self, entry: Entry) -> Any:
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
