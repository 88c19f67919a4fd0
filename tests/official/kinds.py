"""Says of which documented kind a difference from the official rows is.

The kinds are those of docs/appview-parity.md. What is of none of them is a defect, ours or of that
page. A kind is granted by what both databases hold, not by a list of rows: a row that is missing
because its account was deleted must be of an account that was deleted.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rsky_pipeline.indexer.collections.registry import RECORD_ONLY
from tests.official.rows import PRIVATE, Row, TableDifference

Database = Mapping[str, list[Row]]
KEYS: Mapping[str, tuple[str, ...]] = {
    "actor": ("did",), "actor_state": ("did",), "actor_sync": ("did",), "profile_agg": ("did",),
    "notification": ("did", "recordUri", "reason", "reasonSubject"),
    "op_thread_reply": ("rootUri", "uri"), "post_embed_image": ("postUri", "position"),
    "post_embed_gallery_image": ("postUri", "position"), "post_embed_video": ("postUri",),
    "post_embed_external": ("postUri",), "post_embed_record": ("postUri", "embedUri"),
}  # fmt: skip
REACTIONS = ("like", "repost", "follow", "actor_block", "list_item", "list_block", "verification",
             "reference_list_opt_out")  # fmt: skip
_MARK = "\ufeff"

DELETED = "rows of deleted accounts go as a whole"
LATER = "handles are looked up later"
UNSTORED = "commits of other collections and #sync move no rev"
PROMOTED = "the next duplicate stands after every deletion and every change of subject"
SMALLEST = "of several records the one with the smallest uri stands"
WAITS = "waiting records point at the one that stands"
ONE_ITEM = "only the standing repost is an item"
KEPT = "an edit keeps reposts, quotes and flags"
COUNTED = "counts equal the number of rows"
ZEROS = "no rows of zeros"
CLOCK = "the time of the event, not the indexer's clock"
FORM = "createdAt in the normal form"
NUL = "NUL characters are left out"
NO_IMAGES = "embed.images without images"
MARK = "a byte order mark at the beginning of a text is kept"
MOVED = "a record moved onto a taken subject waits"
CORRECTED = "a refused record that is corrected is indexed"
NO_NEWS = "history brings no notifications"
UNSERVED = "no repo of an inactive account is served"
PRIVATELY = "what people do in private comes from bsync alone"
NEVER_SEEN = "a deletion of before history was fetched is not seen"
NEVER_VALID = "the repo has a version that is refused"
JUDGED = "gates, reply roots and flags as they were when history came"
AT_HOME = "the hosting status is that of the account's present home"
NEWER = "a record type that this release does not index"
SEEN = "seen, by an AppView over our rows"
GONE_POST = "no items and quotes of posts that are gone"
NEWS = "notifications follow the record that stands"
FETCHED = "seen first in a repo that was fetched"
READABLE = "a record that the read path accepts"
AWAITED = "a reply whose parent may still come is not judged yet"
UNVERIFIED = "a changed verification sends no `unverified`"


@dataclass
class Facts:
    """What is known beside the rows of two databases."""

    official: Database
    ours: Database
    refused: Mapping[str, str]  # uri -> error of the official indexer
    gone: Collection[str]  # deleted accounts
    edited: Collection[str]  # uris
    moved: Collection[str] = ()  # accounts that another host has now
    imported: Collection[str] = ()  # accounts with a repo from elsewhere, which is fetched
    unserved: Collection[str] | None = None  # inactive accounts, if ours is from history alone
    lenient: Collection[str] = ()  # refused records that the read path may accept
    kinds: dict[str, Counter[str]] = field(default_factory=dict)  # table -> kind -> rows
    explained: list[tuple[str, str, Row]] = field(default_factory=list)  # table, kind, row
    unexplained: list[tuple[str, str, Row]] = field(default_factory=list)

    @cached_property
    def records(self) -> set[str]:
        """The uris of our records."""
        return {row["uri"] for row in self.ours["record"]}

    @cached_property
    def newest_revs(self) -> dict[str, str]:
        """The newest rev of our records, by account."""
        return {row["did"]: row["rev"] for row in sorted(self.ours["record"], key=_rev)}

    @cached_property
    def texts(self) -> dict[str, str]:
        """Our records as texts."""
        return {row["uri"]: row["json"] for row in self.ours["record"]}

    @cached_property
    def standing(self) -> set[str]:
        """The uris of our rows that stand for a subject."""
        return {row["uri"] for table in REACTIONS for row in self.ours.get(table, ())}

    @cached_property
    def standing_officially(self) -> set[str]:
        """The uris of the official rows that stand for a subject."""
        return {row["uri"] for table in REACTIONS for row in self.official.get(table, ())}

    @cached_property
    def waiting(self) -> set[str]:
        """The uris of our records that wait for another one."""
        return {row["uri"] for row in self.ours["duplicate_record"]}

    @cached_property
    def lost(self) -> dict[str, str]:
        """Records that the official indexer lost to an error of its own, with the kind."""
        found = {}
        for uri, error in self.refused.items():
            if "invalid byte sequence" in error or "\\u0000" in error:
                found[uri] = NUL
            elif "syntax error" in error:
                found[uri] = NO_IMAGES
        return found

    @cached_property
    def unmoved(self) -> set[str]:
        """Records whose new subject the official indexer lost, since another one stands for it."""
        return {
            uri for uri, error in self.refused.items() if "could not be replaced" in error
        }  # fmt: skip

    @cached_property
    def posts(self) -> set[str]:
        """The uris of our posts."""
        return {row["uri"] for row in self.ours["post"]}

    @cached_property
    def fetched(self) -> set[str]:
        """Our records that a fetched repo brought before their event, by their time."""
        times = {row["uri"]: row["indexedAt"] for row in self.official["record"]}
        return {
            row["uri"] for row in self.ours["record"]
            if row["indexedAt"] != times.get(row["uri"], row["indexedAt"])
        }  # fmt: skip

    @cached_property
    def post_counts(self) -> dict[str, dict[str, int]]:
        """The counts of posts, by our rows."""
        return _post_counts(self.ours)

    @cached_property
    def profile_counts(self) -> dict[str, dict[str, int]]:
        """The counts of accounts, by our rows."""
        return _profile_counts(self.ours)

    @cached_property
    def reads_bsync(self) -> bool:
        """Whether we have anything of what people do in private."""
        return any(self.ours.get(table) for table in PRIVATE)

    @cached_property
    def marked(self) -> set[str]:
        """Our records with a byte order mark at the beginning of a text."""
        return {row["uri"] for row in self.ours["record"] if f'"{_MARK}' in row["json"]}

    def explain(self, difference: TableDifference) -> None:
        """Sort the rows of a table into kinds."""
        key = KEYS.get(difference.name, ("uri",))
        counts = self.kinds.setdefault(difference.name, Counter())
        extra = {_identity(row, key): row for row in difference.extra}
        for row in difference.missing:
            mine = extra.pop(_identity(row, key), None)
            kind = _kind(self, difference.name, row, mine)
            self._note(counts, "official", difference.name, kind, row)
        for row in extra.values():
            kind = _kind(self, difference.name, None, row)
            self._note(counts, "ours", difference.name, kind, row)

    def _note(
        self, counts: Counter[str], side: str, table: str, kind: str | None, row: Row
    ) -> None:
        if kind is None:
            self.unexplained.append((table, side, row))
        else:
            counts[kind] += 1
            self.explained.append((table, kind, row))


def _identity(row: Row, key: tuple[str, ...]) -> str:
    """Return what makes a row the same one in both databases: all of it, if it lacks its key."""
    return str([row[name] for name in key] if all(name in row for name in key) else row)


def _rev(row: Row) -> str:
    return str(row["rev"])


def _kind(facts: Facts, table: str, official: Row | None, ours: Row | None) -> str | None:
    """Return the kind of a difference; None for a row that is not there."""
    row = official or ours
    assert row is not None
    for uri in filter(None, (row.get("uri"), row.get("postUri"), row.get("recordUri"))):
        if uri in facts.lost and (official is None or uri in facts.edited):
            return facts.lost[uri]
        if official and ours and uri in facts.marked:
            seen = {"indexedAt", "sortAt"} if uri in facts.fetched else set()
            if _changed(official, _unmarked(ours)) <= seen:
                return MARK
    if official and not ours and {row.get("creator"), row.get("did")} & set(facts.gone):
        return DELETED
    if official is None:
        about = {row.get(name) for name in ("uri", "postUri", "recordUri")}
        if about & set(facts.lenient) & facts.refused.keys():
            return READABLE
    if any(row.get(name) in facts.unmoved for name in ("uri", "duplicateOf")):
        return MOVED
    if facts.unserved is not None and (kind := _of_history(facts, table, official, ours)):
        return kind
    rule = _RULES.get(table, _reaction if table in REACTIONS else None)
    kind = rule(facts, official, ours) if rule else None
    if kind is None and official and ours and _changed(official, ours) <= {"indexedAt", "sortAt"}:
        return FETCHED if row.get("uri") in facts.fetched else None
    return kind


def _of_history(facts: Facts, table: str, official: Row | None, ours: Row | None) -> str | None:
    """Return the kind of a difference that only rows from history have."""
    assert facts.unserved is not None
    if official and not ours:
        if table == "notification":
            return NO_NEWS
        if table in PRIVATE and not facts.reads_bsync:
            return PRIVATELY
        authors = {official.get(name) for name in ("creator", "did", "originatorDid")}
        authors |= {
            official[name].split("/")[2]
            for name in ("uri", "postUri", "duplicateOf")
            if str(official.get(name, "")).startswith("at://")
        }
        if authors & set(facts.unserved):
            return UNSERVED
        if table == "op_thread_reply" and official["deletedAt"]:
            return NEVER_SEEN
        if official.get("uri") in facts.refused or official.get("postUri") in facts.refused:
            return NEVER_VALID
    if ours and not official and table in ("quote", "feed_item"):
        about = ours["subject"] if table == "quote" else ours["postUri"]
        return NEVER_SEEN if about not in facts.posts else None
    if official and ours and table == "post":
        judged = {"violatesThreadGate", "violatesEmbeddingRules", "invalidReplyRoot",
                  "hasThreadGate", "hasPostGate"}  # fmt: skip
        return JUDGED if _changed(official, ours) <= judged else None
    return None


def _unmarked(row: Row) -> Row:
    return {name: _without_mark(value) for name, value in row.items()}


def _without_mark(value: Any) -> Any:
    if isinstance(value, str):
        return value.removeprefix(_MARK)
    if isinstance(value, list):
        return [_without_mark(each) for each in value]
    if isinstance(value, dict):
        return {name: _without_mark(each) for name, each in value.items()}
    return value


def _changed(official: Row, ours: Row) -> set[str]:
    """Return the columns in which two rows differ."""
    return {name for name in official if official[name] != ours.get(name)}


def _actor(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    if official and ours:
        changed = _changed(official, ours) - {"indexedAt"}
        if official["did"] in facts.moved and not ours["upstreamStatus"]:
            changed -= {"upstreamStatus"}
            return AT_HOME if not changed else None
        return None if changed else LATER
    return DELETED if official and official["did"] in facts.gone else None


def _actor_sync(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    if official and not ours:
        if official["did"] in facts.gone:
            return DELETED
        return None if official["did"] in facts.newest_revs else UNSTORED
    if official and ours:
        newest = facts.newest_revs.get(official["did"], "")
        return UNSTORED if newest <= ours["repoRev"] < official["repoRev"] else None
    return None


def _actor_state(_facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    return SEEN if ours else None


def _reaction(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    if official and official["creator"] in facts.gone:
        return DELETED
    if ours and not official:
        waits = {row["uri"]: row["duplicateOf"] for row in facts.official["duplicate_record"]}
        waits_for = waits.get(ours["uri"])
        if waits_for and ours["uri"] < waits_for and waits_for in facts.waiting:
            return SMALLEST
        if waits_for in facts.edited or waits_for not in facts.standing_officially:
            return PROMOTED if ours["uri"] in waits else None
    if official and official["uri"] in facts.waiting and official["uri"] in facts.edited:
        return MOVED
    if official and not ours and official["uri"] in facts.waiting:
        return SMALLEST
    return None


def _is_newer(facts: Facts, uri: str) -> bool:
    """Return whether a record is of a type that this release does not index."""
    opt_out = uri.split("/")[3].endswith(".referencelistoptout")
    return opt_out and "reference_list_opt_out" not in facts.official


def _duplicate(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    if ours and not official:
        if _is_newer(facts, ours["uri"]):
            return NEWER
        if ours["duplicateOf"] not in facts.standing:
            return None
        if ours["uri"] in facts.standing_officially and ours["duplicateOf"] < ours["uri"]:
            return SMALLEST
        return MOVED if ours["uri"] in facts.edited else None
    if official and official["duplicateOf"] not in facts.standing:
        return WAITS
    if official and official["uri"] in facts.standing:
        return PROMOTED
    return None


def _feed_item(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    if official and not ours:
        if official["originatorDid"] in facts.gone:
            return DELETED
        if official["type"] == "repost" and official["uri"] in facts.waiting:
            return ONE_ITEM
        if official["type"] == "repost" and official["uri"] not in facts.records:
            return ONE_ITEM
        if official["type"] == "repost" and official["postUri"] not in facts.posts:
            return GONE_POST
    if ours and not official and ours["type"] == "repost" and ours["uri"] in facts.standing:
        return KEPT if ours["postUri"] in facts.edited else PROMOTED
    return None


def _post(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    if official and ours and _changed(official, ours) <= {"hasThreadGate", "hasPostGate"}:
        return KEPT if official["uri"] in facts.edited else None
    if official and ours and _changed(official, ours) <= {"invalidReplyRoot", "indexedAt"}:
        above = (facts.lost.get(official[name]) for name in ("replyParent", "replyRoot"))
        if kind := next(filter(None, above), None):
            return kind
    verdicts = {"invalidReplyRoot", "violatesThreadGate"}
    if official and ours and _changed(official, ours) <= verdicts:
        undecided = ours["invalidReplyRoot"] is None and ours["replyParent"] not in facts.posts
        return AWAITED if undecided else None
    return None


def _quote(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    if ours and not official:
        return KEPT if ours["subject"] in facts.edited else None
    if official and not ours:
        author, subject = official["uri"].split("/")[2], official["subject"].split("/")[2]
        if author in facts.gone or subject in facts.gone:
            return DELETED
        return GONE_POST if official["subject"] not in facts.posts else None
    return None


_REASONS = {"likeCount": "like", "repostCount": "repost", "quoteCount": "quote"}


_POST_COUNTS = (*_REASONS, "replyCount")
_PROFILE_COUNTS = ("followersCount", "followsCount", "postsCount")
Counts = dict[str, dict[str, int]]


def _post_counts(database: Database) -> Counts:
    """Return the counts of all posts as the rows have them."""
    counts: Counts = {}
    for column, table in _REASONS.items():
        for row in database[table]:
            _add(counts, row["subject"], column, _POST_COUNTS)
    for row in database["post"]:
        if not row["violatesThreadGate"]:
            _add(counts, row["replyParent"], "replyCount", _POST_COUNTS)
    return counts


def _profile_counts(database: Database) -> Counts:
    counts: Counts = {}
    for row in database["follow"]:
        _add(counts, row["subjectDid"], "followersCount", _PROFILE_COUNTS)
        _add(counts, row["creator"], "followsCount", _PROFILE_COUNTS)
    for row in database["post"]:
        _add(counts, row["creator"], "postsCount", _PROFILE_COUNTS)
    return counts


def _add(counts: Counts, subject: str | None, column: str, columns: tuple[str, ...]) -> None:
    if subject is not None:
        counts.setdefault(subject, dict.fromkeys(columns, 0))[column] += 1


def _count_kind(
    row: Row | None, ours: Row | None, counted: Mapping[str, int], columns: tuple[str, ...]
) -> str | None:
    """Return the kind of a difference in counts; ours have to be those of our rows."""
    first, mine = ({name: each[name] if each else 0 for name in columns} for each in (row, ours))
    if any(mine[name] != counted.get(name, 0) for name in columns):
        return None
    return ZEROS if first == mine else COUNTED


def _post_agg(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    uri = (official or ours or {})["uri"]
    if (official or {}).get("bookmarkCount", 0) != (ours or {}).get("bookmarkCount", 0):
        if facts.unserved is None or facts.reads_bsync:
            return None
        counted = _count_kind(official, ours, facts.post_counts.get(uri, {}), _POST_COUNTS)
        return PRIVATELY if counted else None
    return _count_kind(official, ours, facts.post_counts.get(uri, {}), _POST_COUNTS)


def _profile_agg(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    did = (official or ours or {})["did"]
    return _count_kind(official, ours, facts.profile_counts.get(did, {}), _PROFILE_COUNTS)


def _profile(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    if official and ours and _changed(official, ours) <= {"createdAt"}:
        undated = '"createdAt"' not in facts.texts[ours["uri"]]
        return CLOCK if undated else FORM
    return None


def _verification(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    if official and not ours and official["creator"] in facts.gone:
        return DELETED
    return _reaction(facts, official, ours)


def _record(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    if official and ours and official["uri"] in facts.edited and official["uri"] in facts.waiting:
        return MOVED
    if ours and not official and _is_newer(facts, ours["uri"]):
        return NEWER
    if ours and not official and ours["uri"] in facts.refused:
        without_table = ours["uri"].split("/")[3] in {each.nsid for each in RECORD_ONLY}
        return CORRECTED if without_table and ours["uri"] in facts.edited else None
    return None


def _notification(facts: Facts, official: Row | None, ours: Row | None) -> str | None:
    if official and ours:
        dated = _changed(official, ours) == {"sortAt"} and ours["reason"] == "unverified"
        if dated and ours["recordUri"] not in facts.records:
            return CLOCK
    if official:
        if official["author"] in facts.imported and not ours:
            return NO_NEWS
        if official["recordUri"] in facts.fetched:
            return FETCHED
        if official["recordUri"] not in facts.records:
            return NEWS
        if official["recordUri"] in facts.waiting or official["recordUri"] in facts.edited:
            return NEWS
        if official["reason"] in ("unverified", "verified"):
            return UNVERIFIED
    if ours and not official and ours["recordUri"] in facts.standing:
        return NEWS
    return None


_RULES: dict[str, Callable[[Facts, Row | None, Row | None], str | None]] = {
    "actor": _actor, "actor_state": _actor_state, "actor_sync": _actor_sync,
    "duplicate_record": _duplicate, "feed_item": _feed_item, "notification": _notification,
    "post": _post, "post_agg": _post_agg,
    "profile": _profile, "profile_agg": _profile_agg, "quote": _quote, "record": _record,
    "verification": _verification,
}  # fmt: skip
