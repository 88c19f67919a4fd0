"""The tables that are compared: which columns, and how both sides are brought to one form.

Left out are columns that depend on the time at which an event was seen (`indexedAt`), that the
database assigns (`notification.id`), or that others write.
"""

from base64 import b32encode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import cbor2
import orjson

EPOCH = "1970-01-01T00:00:00.000Z"
_CID_TAG = 42


def json_form(block: bytes) -> Any:
    """Return the JSON form of a block: links as `$link`, bytes as `$bytes`."""
    return _plain(cbor2.loads(block))


def canonical(value: Any) -> str:
    """Return JSON as a text that is equal for equal values."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def clean(text: str | None) -> str | None:
    """Return a text as PostgreSQL can hold it: without NUL characters."""
    return None if text is None else text.replace("\0", "")


def utc_milliseconds(text: str) -> str:
    """Return a datetime in UTC and cut to milliseconds; 1970 for an invalid one."""
    head, point, rest = text.partition(".")
    if point:  # Python reads six digits of a second at most
        digits = len(rest) - len(rest.lstrip("0123456789"))
        text = f"{head}.{rest[:digits][:6].ljust(6, '0')}{rest[digits:]}"
    try:
        moment = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return EPOCH
    return f"{moment:%Y-%m-%dT%H:%M:%S}".rjust(19, "0") + f".{moment.microsecond // 1000:03d}Z"


def _plain(value: Any) -> Any:
    if isinstance(value, cbor2.CBORTag):
        if value.tag != _CID_TAG:
            raise ValueError(f"tag {value.tag} in a record")
        return {"$link": "b" + b32encode(value.value[1:]).decode().lower().rstrip("=")}
    if isinstance(value, bytes):
        return {"$bytes": b64encode(value).decode().rstrip("=")}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


Key = tuple[str, ...]
Rows = dict[Key, tuple[Any, ...]]
Truth = dict[str, Rows]

ANY = {"any": True}  # a value that the published events do not decide


def one_of(values: Iterable[Any]) -> Any:
    """Return a value that may be any of several."""
    return {"one_of": list(values)}


def admits(expected: Any, found: Any) -> bool:
    """Return whether a value is as expected; a missing row is found as None."""
    if isinstance(expected, dict):
        return "any" in expected or found in expected["one_of"]
    return bool(expected == found)


@dataclass(frozen=True, slots=True)
class StandingRecord:
    """A record that stands, in its JSON form; `published` is the time of its frame."""

    uri: str
    did: str
    rkey: str
    cid: str
    published: str
    record: dict[str, Any]

    @property
    def created_at(self) -> str:
        """The record's own time in the normal form."""
        return utc_milliseconds(self.record.get("createdAt", EPOCH))

    @property
    def sort_at(self) -> Any:
        """The earlier of its own time and that when it was seen, which is after its frame's."""
        return self.created_at if self.created_at <= self.published else ANY


SAME, TIME, JSON, FLAG = "same", "time", "json", "flag"
_REACTION = ("cid", "creator", "subject", "subjectCid", "createdAt", "sortAt", "via", "viaCid")
_IMAGE = ("imageCid", "alt")
_FORMS = {
    "createdAt": TIME, "sortAt": TIME, "sortedAt": TIME, "cts": TIME, "exp": TIME,
    "descriptionFacets": JSON, "json": JSON,
    "invalidReplyRoot": FLAG, "violatesThreadGate": FLAG, "violatesEmbeddingRules": FLAG,
    "hasThreadGate": FLAG, "hasPostGate": FLAG,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ComparedTable:
    """A table, or a part of one: `where` takes the rest out."""

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    source: str = ""  # table to read, if the name is not it
    where: str = ""

    @property
    def query(self) -> str:
        """Return the SELECT of key and columns."""
        names = ", ".join(f'"{column}"' for column in (*self.key, *self.columns))
        where = f" WHERE {self.where}" if self.where else ""
        return f'SELECT {names} FROM "{self.source or self.name}"{where}'

    @property
    def forms(self) -> tuple[str, ...]:
        """Return how each column (without the key) is compared."""
        return tuple(_FORMS.get(column, SAME) for column in self.columns)


def _count(table: str, key: str, column: str) -> ComparedTable:
    # A row without anything to count may be there or not.
    return ComparedTable(f"{table}.{column}", (key,), (column,), table, f'"{column}" <> 0')


_ALL = (
    ComparedTable("record", ("uri",), ("cid", "did", "json")),
    ComparedTable("duplicate_record", ("uri",), ("cid", "duplicateOf")),
    ComparedTable("actor", ("did",), ("upstreamStatus", "handle")),
    ComparedTable("actor_sync", ("did",), ("commitCid", "repoRev")),
    ComparedTable(
        "post", ("uri",),
        ("cid", "creator", "text", "replyRoot", "replyRootCid", "replyParent", "replyParentCid",
         "createdAt", "sortAt", "langs", "tags", "invalidReplyRoot", "violatesThreadGate",
         "violatesEmbeddingRules", "hasThreadGate", "hasPostGate"),
    ),
    ComparedTable("feed_item", ("uri",), ("cid", "type", "postUri", "originatorDid", "sortAt")),
    ComparedTable("post_embed_image", ("postUri", "position"), _IMAGE),
    ComparedTable("post_embed_gallery_image", ("postUri", "position"), _IMAGE),
    ComparedTable("post_embed_video", ("postUri",), ("videoCid", "alt")),
    ComparedTable(
        "post_embed_external", ("postUri",), ("uri", "title", "description", "thumbCid")
    ),
    ComparedTable("post_embed_record", ("postUri", "embedUri"), ("embedCid",)),
    ComparedTable("quote", ("uri",), ("cid", "subject", "subjectCid", "createdAt", "sortAt")),
    ComparedTable("op_thread_reply", ("rootUri", "uri"), ("parentUri",), "", '"deletedAt" IS NULL'),
    ComparedTable("thread_gate", ("uri",), ("cid", "creator", "postUri", "createdAt")),
    ComparedTable("post_gate", ("uri",), ("cid", "creator", "postUri", "createdAt")),
    ComparedTable("like", ("uri",), _REACTION),
    ComparedTable("repost", ("uri",), _REACTION),
    ComparedTable("follow", ("uri",), ("cid", "creator", "subjectDid", "createdAt", "sortAt")),
    ComparedTable("actor_block", ("uri",), ("cid", "creator", "subjectDid", "createdAt", "sortAt")),
    ComparedTable(
        "list", ("uri",),
        ("cid", "creator", "name", "purpose", "description", "descriptionFacets", "avatarCid",
         "createdAt", "sortAt"),
    ),
    ComparedTable(
        "list_item", ("uri",), ("cid", "creator", "subjectDid", "listUri", "createdAt", "sortAt")
    ),
    ComparedTable("list_block", ("uri",), ("cid", "creator", "subjectUri", "createdAt", "sortAt")),
    ComparedTable(
        "reference_list_opt_out",
        ("uri",),
        ("cid", "creator", "subjectUri", "createdAt", "sortAt"),
    ),
    ComparedTable(
        "feed_generator", ("uri",),
        ("cid", "creator", "feedDid", "displayName", "description", "descriptionFacets",
         "avatarCid", "createdAt", "sortAt"),
    ),
    ComparedTable("starter_pack", ("uri",), ("cid", "creator", "name", "createdAt", "sortAt")),
    ComparedTable("labeler", ("uri",), ("cid", "creator", "createdAt", "sortAt")),
    ComparedTable(
        "verification", ("uri",),
        ("cid", "creator", "rkey", "subject", "handle", "displayName", "createdAt", "sortedAt"),
    ),
    ComparedTable(
        "profile", ("uri",),
        ("cid", "creator", "displayName", "description", "avatarCid", "bannerCid",
         "joinedViaStarterPackUri", "createdAt"),
    ),
    ComparedTable("label", ("src", "uri", "cid", "val"), ("neg", "cts", "exp")),
    _count("post_agg", "uri", "likeCount"),
    _count("post_agg", "uri", "replyCount"),
    _count("post_agg", "uri", "repostCount"),
    _count("post_agg", "uri", "quoteCount"),
    _count("profile_agg", "did", "followersCount"),
    _count("profile_agg", "did", "followsCount"),
    _count("profile_agg", "did", "postsCount"),
)  # fmt: skip
TABLES: Mapping[str, ComparedTable] = {table.name: table for table in _ALL}
