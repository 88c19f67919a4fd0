"""Rows that another indexer is known to have left wrong: counted, and how each kind is repaired.

A kind is a condition on the rows of one table. All kinds of a table are counted in one pass: over
the whole table while it is small, otherwise over a sample of its blocks, from which the number in
the table is estimated. Reads only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from rsky_pipeline.database.connection import Database, quote_schema
from rsky_pipeline.operations.recount import POST_AGG, PROFILE_AGG, drifts_of

EXACT_ROWS = 200_000  # of a table that is read as a whole
SAMPLE_ROWS = 20_000
SAMPLE_KEYS = 1_000  # whose counts are recounted

# A datetime as the AppView compares it: text of one length, in UTC, with milliseconds.
_NORMAL = r"'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$'"
_RECORD = "SELECT FROM record r WHERE r.uri = x.uri"
_UNRECORDED = f"NOT EXISTS ({_RECORD})"

Repair = Literal["rebuild", "handles", "deletions", "recount", "labels", "sql"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of wrong rows: the condition for a row `x` of the table.

    Of a table without `column` there are none; `index` has to begin an index.
    """

    name: str
    table: str
    text: str
    condition: str
    repair: Repair = "rebuild"
    column: str = "uri"
    index: str = ""


@dataclass(frozen=True, slots=True)
class WrongRows:
    """How many rows of a kind there are; of a sample, `wrong` of `seen` rows, and the estimate."""

    name: str
    table: str
    text: str
    repair: Repair
    seen: int
    wrong: int
    exact: bool
    estimate: int  # in the whole table


# No repair by account finds rows of one that has none itself.
_OF_ACCOUNT = 'EXISTS (SELECT FROM actor a WHERE a.did = x."originatorDid")'


def _dates(table: str) -> Kind:
    condition = f'(x."createdAt" !~ {_NORMAL} OR x."indexedAt" !~ {_NORMAL})'
    return Kind(f"dates_{table}", table, "times in another form, which sort wrongly", condition)


def _skipped(table: str) -> Kind:
    text = "rows without their record, which the AppView does not show"
    return Kind(f"unrecorded_{table}", table, text, _UNRECORDED)


def _lost(table: str, nsid: str) -> Kind:
    condition = (
        f"(split_part(x.uri, '/', 4) = '{nsid}' "
        f'AND NOT EXISTS (SELECT FROM "{table}" t WHERE t.uri = x.uri) '
        "AND NOT EXISTS (SELECT FROM duplicate_record d WHERE d.uri = x.uri))"
    )
    text = f"records without a row in {table}, nor waiting as a duplicate of another one"
    return Kind(f"lost_{table}", "record", text, condition)


def _embed(nsid: str, table: str) -> str:
    found = f'EXISTS (SELECT FROM {table} e WHERE e."postUri" = x.uri)'
    return f"(r.json LIKE '%\"{nsid}\"%' AND NOT {found})"


def _left_behind(table: str, owner: str) -> Kind:
    condition = f'NOT EXISTS (SELECT FROM post p WHERE p.uri = x."{owner}")'
    return Kind(f"left_{table}", table, "rows of posts that are gone", condition, "sql", owner)


_EMBEDS = " OR ".join([
    _embed("app.bsky.embed.external", "post_embed_external"),
    _embed("app.bsky.embed.record", "post_embed_record"),
    _embed("app.bsky.embed.gallery", "post_embed_gallery_image"),
])  # fmt: skip

KINDS: tuple[Kind, ...] = (
    Kind("rev_unknown", "record", "records without a rev, which count as older than everything",
         "x.rev IS NULL", column="rev"),
    Kind("padded_bytes", "record", "records whose numbers or links became bytes",
         r"""x.json ~ '"\$bytes": ?"[^"]*="'"""),
    *(_lost(table, nsid) for table, nsid in (
        ("like", "app.bsky.feed.like"), ("repost", "app.bsky.feed.repost"),
        ("follow", "app.bsky.graph.follow"), ("actor_block", "app.bsky.graph.block"),
        ("list_item", "app.bsky.graph.listitem"))),
    Kind("edited", "post", "posts that were edited: their rows are of the version before",
         f"EXISTS ({_RECORD} AND r.cid <> x.cid)"),
    Kind("embeds", "post", "posts whose embed has no row", f"EXISTS ({_RECORD} AND ({_EMBEDS}))"),
    Kind("gate_verdicts", "post", "replies by others that a thread gate forbids to all, not marked",
         """(x."replyRoot" IS NOT NULL AND x."violatesThreadGate" IS NOT TRUE AND EXISTS
         (SELECT FROM thread_gate g JOIN record r ON r.uri = g.uri WHERE g."postUri" = x."replyRoot"
         AND g.creator <> x.creator AND r.json LIKE '%"allow":[]%'
         AND g."createdAt" < x."sortAt"))"""),
    Kind("gate_flags", "post", "posts that do not show their thread gate or post gate",
         """((x."hasThreadGate" IS NOT TRUE AND EXISTS
         (SELECT FROM thread_gate g WHERE g."postUri" = x.uri AND g.creator = x.creator))
         OR (x."hasPostGate" IS NOT TRUE AND EXISTS
         (SELECT FROM post_gate g WHERE g."postUri" = x.uri AND g.creator = x.creator)))"""),
    Kind("own_threads", "post", "replies to oneself that are in no thread of the author",
         """(split_part(x."replyRoot", '/', 3) = x.creator AND NOT EXISTS
         (SELECT FROM op_thread_reply o
         WHERE o."rootUri" = x."replyRoot" AND o.uri = x.uri))"""),
    *(_dates(table) for table in ("post", "like", "repost", "follow")),
    *(_skipped(table) for table in ("like", "repost", "follow", "actor_block")),
    Kind("left_feed_item", "feed_item", "items of posts or reposts that are gone",
         f"({_UNRECORDED} AND {_OF_ACCOUNT})"),
    Kind("joined", "profile", "profiles that do not show the starter pack by which they joined",
         f"""(x."joinedViaStarterPackUri" IS NULL AND EXISTS
         ({_RECORD} AND r.json LIKE '%"joinedViaStarterPack"%'))"""),
    Kind("profile_keys", "profile", "profiles with another key than self",
         "x.uri NOT LIKE '%/self'"),
    Kind("labeler_keys", "labeler", "labelers with another key than self",
         "x.uri NOT LIKE '%/self'"),
    *(Kind(f"foreign_{table}", table, "gates on posts of others, or under another key",
           """(split_part(x."postUri", '/', 3) <> x.creator
           OR split_part(x."postUri", '/', 5) <> split_part(x.uri, '/', 5))""")
      for table in ("thread_gate", "post_gate")),
    Kind("foreign_list_item", "list_item", "items in lists of others",
         """split_part(x."listUri", '/', 3) <> x.creator"""),
    Kind("actor_sync", "actor", "accounts with records whose newest rev is unknown",
         """(NOT EXISTS (SELECT FROM actor_sync s WHERE s.did = x.did)
         AND EXISTS (SELECT FROM record r WHERE r.did = x.did))""", column="did"),
    Kind("handles", "actor", "accounts that were never looked up, or whose handle nobody verified",
         f'x."indexedAt" !~ {_NORMAL}', "handles", "did"),
    Kind("deleted", "actor", "deleted accounts with their records",
         """(x."upstreamStatus" = 'deleted'
         AND EXISTS (SELECT FROM record r WHERE r.did = x.did))""", "deletions", "did"),
    Kind("orphaned_feed_item", "feed_item", "items of accounts that are gone",
         f"({_UNRECORDED} AND NOT {_OF_ACCOUNT})", "sql"),
    _left_behind("post_embed_image", "postUri"),
    _left_behind("post_embed_video", "postUri"),
    _left_behind("quote", "uri"),
    Kind("left_notification", "notification", "notifications of records that are gone; the AppView "
         "leaves them out", """(x.reason NOT IN ('verified', 'unverified')
         AND NOT EXISTS (SELECT FROM record r WHERE r.uri = x."recordUri"))""",
         "sql", "recordUri"),
    Kind("repeated", "notification", "notifications that are there more than once",
         """EXISTS (SELECT FROM notification n WHERE n."recordUri" = x."recordUri"
         AND n.did = x.did AND n.reason = x.reason AND n.ctid < x.ctid)""",
         "sql", "recordUri", "recordUri"),
    Kind("expiries", "label", "labels with a time in another form", f"x.exp !~ {_NORMAL} "
         f"OR x.cts !~ {_NORMAL}", "labels"),
)  # fmt: skip

# The planner's way: the density of the last analysis, and the size of now.
_SIZES = """
SELECT c.relname::text, pg_table_size(c.oid),
    pg_relation_size(c.oid) / current_setting('block_size')::int8,
    CASE WHEN c.reltuples > 0 AND c.relpages > 0 THEN c.reltuples::float8 / c.relpages END,
    ARRAY(SELECT a.attname::text FROM pg_attribute a
        WHERE a.attrelid = c.oid AND NOT a.attisdropped),
    ARRAY(SELECT a.attname::text FROM pg_index x
        JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0]
        WHERE x.indrelid = c.oid AND x.indisvalid AND x.indpred IS NULL)
FROM pg_class c WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p')
"""
_COUNTED_PAGES = 1_000  # of a table that was never analysed


@dataclass(frozen=True, slots=True)
class TableSize:
    """A table: an estimate of its rows, its size, its columns, and those that begin an index."""

    name: str
    rows: int
    bytes: int
    columns: frozenset[str]
    indexed: frozenset[str]


def table_sizes(database: Database, schema: str) -> dict[str, TableSize]:
    """Return the tables of a schema by name."""
    found = {}
    for name, size, pages, density, columns, indexed in database.query(
        _SIZES, [quote_schema(schema)]
    ):
        if density is None:
            counted = max(1, min(pages, _COUNTED_PAGES))
            sql = f"SELECT count(*) FROM \"{name}\" WHERE ctid < '({counted},1)'"
            density = database.query(sql)[0][0] / counted
            pages = max(1, pages)
        rows = round(density * pages)
        found[name] = TableSize(name, rows, size, frozenset(columns), frozenset(indexed))
    return found


def count_wrong_rows(
    database: Database, sizes: dict[str, TableSize], progress: Callable[[str], object]
) -> Iterator[WrongRows]:
    """Yield every kind that has rows, by table. Raises DatabaseError."""
    by_table: dict[str, list[Kind]] = {}
    for kind in KINDS:
        size = sizes.get(kind.table)
        if size is None or kind.column not in size.columns:
            continue
        if not kind.index or kind.index in size.indexed:
            by_table.setdefault(kind.table, []).append(kind)
    for table, kinds in by_table.items():
        size = sizes[table]
        progress(f"looking at {table}: about {size.rows:,} rows")
        exact = size.rows <= EXACT_ROWS
        sample = "" if exact else f"TABLESAMPLE SYSTEM ({100 * SAMPLE_ROWS / size.rows:.8f})"
        limit = "" if exact else f"LIMIT {SAMPLE_ROWS}"
        chosen = ", ".join(f"count(*) FILTER (WHERE {kind.condition})" for kind in kinds)
        sql = f'SELECT count(*), {chosen} FROM (SELECT *, ctid FROM "{table}" {sample} {limit}) x'
        ((seen, *counts),) = database.query(sql)
        for kind, wrong in zip(kinds, counts, strict=True):
            if wrong:
                estimate = wrong if exact else round(wrong / seen * size.rows)
                yield WrongRows(
                    kind.name, table, kind.text, kind.repair, seen, wrong, exact, estimate
                )
    for aggregate, table, column in ((POST_AGG, "post", "uri"), (PROFILE_AGG, "actor", "did")):
        progress(f"recounting {aggregate.table}")
        rows, sample = sizes[table].rows, ""
        if rows > SAMPLE_KEYS:
            sample = f"TABLESAMPLE BERNOULLI ({min(100, 200 * SAMPLE_KEYS / rows):.8f})"
        sql = f"SELECT {column} FROM {table} {sample} LIMIT {SAMPLE_KEYS}"
        keys = [row[0] for row in database.query(sql)]
        off = {drift.key for drift in drifts_of(database, aggregate, keys)}
        if off:
            yield WrongRows(
                f"counts_{aggregate.table}", aggregate.table, "counts that are not those of rows",
                "recount", len(keys), len(off), not sample,
                round(len(off) / len(keys) * max(rows, len(keys))),
            )  # fmt: skip


def clean_up_sql(kind: Kind) -> str:
    """Return the statement that removes rows of a kind that no repair by account finds."""
    chosen = f'SELECT x.ctid FROM "{kind.table}" x WHERE {kind.condition} LIMIT 10000'
    return f'DELETE FROM "{kind.table}" WHERE ctid = ANY(ARRAY({" ".join(chosen.split())}))'
