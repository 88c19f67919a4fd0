"""The rows of all collections but posts."""

from collections.abc import Callable
from typing import Any

from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.demo.simulator.reading import canonical, clean
from rsky_pipeline.demo.simulator.truth_values import ANY, Entry

Row = tuple[Any, ...]
Build = Callable[[Entry], Row | None]  # None: the record has no row of its own

RECORD_ONLY = (mix.STATUS, mix.NOTIFICATIONS, mix.CHAT, mix.GERM)


def blob_cid(record: dict[str, Any], key: str) -> str | None:
    """Return the CID of a blob."""
    blob = record.get(key)
    return blob["ref"]["$link"] if blob else None


def _reaction(entry: Entry) -> Row:
    subject, via = entry.record["subject"], entry.record.get("via", {})
    return (entry.cid, entry.did, subject["uri"], subject["cid"], entry.created_at, entry.sort_at,
            via.get("uri"), via.get("cid"))  # fmt: skip


def _about(field: str) -> Build:
    def build(entry: Entry) -> Row:
        return (entry.cid, entry.did, entry.record[field], entry.created_at, entry.sort_at)

    return build


def _named(entry: Entry) -> Row:
    return entry.cid, entry.did, clean(entry.record["name"]), entry.created_at, entry.sort_at


def _gate(entry: Entry) -> Row:
    return entry.cid, entry.did, entry.record["post"], entry.created_at


def _list_item(entry: Entry) -> Row:
    its = entry.record
    return entry.cid, entry.did, its["subject"], its["list"], entry.created_at, entry.sort_at


def _described(entry: Entry) -> Row:
    facets = entry.record.get("descriptionFacets")
    return (
        clean(entry.record.get("description")),
        None if facets is None else canonical(facets),
        blob_cid(entry.record, "avatar"),
        entry.created_at,
        entry.sort_at,
    )


def _list(entry: Entry) -> Row:
    names = clean(entry.record["name"]), entry.record["purpose"]
    return entry.cid, entry.did, *names, *_described(entry)


def _generator(entry: Entry) -> Row:
    names = entry.record["did"], clean(entry.record["displayName"])
    return entry.cid, entry.did, *names, *_described(entry)


def _labeler(entry: Entry) -> Row | None:
    if entry.rkey != "self":
        return None
    return entry.cid, entry.did, entry.created_at, entry.sort_at


def _verification(entry: Entry) -> Row:
    its = entry.record
    return (entry.cid, entry.did, entry.rkey, its["subject"], its["handle"],
            clean(its["displayName"]), entry.created_at, entry.sort_at)  # fmt: skip


def _profile(entry: Entry) -> Row | None:
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
    mix.FOLLOW: ("follow", _about("subject")),
    mix.BLOCK: ("actor_block", _about("subject")),
    mix.LIST_BLOCK: ("list_block", _about("subject")),
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
ONE_OF_A_KIND: dict[str, Callable[[Entry], Any]] = {
    mix.LIKE: lambda entry: (entry.record["subject"]["uri"], entry.did),
    mix.REPOST: lambda entry: (entry.record["subject"]["uri"], entry.did),
    mix.FOLLOW: lambda entry: (entry.record["subject"], entry.did),
    mix.BLOCK: lambda entry: (entry.record["subject"], entry.did),
    mix.LIST_BLOCK: lambda entry: (entry.record["subject"], entry.did),
    mix.LIST_ITEM: lambda entry: (entry.record["list"], entry.record["subject"]),
    mix.VERIFICATION: lambda entry: (entry.record["subject"], entry.did),
    mix.THREAD_GATE: lambda entry: entry.record["post"],
    mix.POST_GATE: lambda entry: entry.record["post"],
}
