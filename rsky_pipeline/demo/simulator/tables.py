"""The tables that are compared: which columns, and how both sides are brought to one form.

Left out is what depends on when an event was seen (`indexedAt`), by whom it was assigned
(`notification.id`), or what others write.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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
