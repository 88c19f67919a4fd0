"""Judges whether this version can work with a database; read-only.

The measure is whether our statements work, and whether the AppView can read what they write: not
whether the catalogues are equal. Expected are the AppView's tables as the official migrations leave
them that the database has recorded. A part that we do not write, or a type that takes the same
values, is no error.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Literal

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.database.errors import DatabaseError, SchemaMismatchError
from rsky_pipeline.database.forms import ACCOUNT_TIME, LISTS, NOTIFICATION_KEY
from rsky_pipeline.database.schema.catalogue import (
    Catalogue,
    Interference,
    Table,
    from_json,
    read_catalogue,
    read_interferences,
)
from rsky_pipeline.database.schema.migrate import PIPELINE_SCHEMA, migrations
from rsky_pipeline.database.schema.official import (
    STAND_IN,
    later_migrations,
    names_of_others,
    official_names,
    oldest_migrations,
    read_migrations,
    release_of,
)
from rsky_pipeline.database.server import check_server

# The catalogues of databases made by `initialise`; a test keeps it up to date.
EXPECTED_FILE = "expected.json"

_INITIALISE = "run `rsky-pipeline db init`"
_OFFICIAL = "let the official data plane migrate the database (its migrations, not ours, own this)"
_OFFICIAL_LATER = f"the pipeline works without it; {_OFFICIAL}"
# Written only where bsync is read (`bsync_url`), or passes on what accounts have seen.
OF_BSYNC = frozenset({
    "activity_subscription", "actor_state", "bookmark", "draft", "list_mute", "mute",
    "private_data",
})  # fmt: skip
_COLUMNS_OF_BSYNC = {
    "actor": frozenset({
        "ageAssuranceStatus", "ageAssuranceLastInitiatedAt", "ageAssuranceAccess",
        "ageAssuranceCountryCode", "ageAssuranceRegionCode",
    }),
    "thread_mute": frozenset({"createdAt"}),
}  # fmt: skip
# Used only by the AppView or its operators: the pipeline works without them, and newer official
# migrations change some of them.
_OF_OTHERS = frozenset({
    "algo_whats_hot_view", "blob_takedown", "did_cache", "kysely_migration",
    "kysely_migration_lock", "moderation_action", "moderation_action_subject_blob",
    "moderation_event", "moderation_report", "moderation_report_resolution",
    "moderation_subject_status", "notification_push_token", "subscription", "suggested_feed",
    "suggested_follow", "tagged_suggestion", "view_param",
})  # fmt: skip
_COLUMNS_OF_OTHERS = {
    "actor": frozenset({"trustedVerifier"}),
    "actor_state": frozenset({"lastSeenPriorityNotifs"}),
}
_HARMLESS = "nothing: it does no harm"
_SLOWER = "the pipeline works without it, statements may be slow"
_NOT_OURS = "the pipeline works without it, the AppView may not"
# Columns that may be NULL officially and that we always fill.
_ALWAYS_FILLED = {"record": {"rev"}}
# Unique indexes of others to which our statements adapt, and keys that none of ours relies on.
_RESPECTED = {"notification": {NOTIFICATION_KEY}}
_NOT_RELIED_ON = {"notification": {frozenset({"id"})}}
_AS_ARRAYS = "nothing: lists are written as arrays"
_PUSHED = (
    "each notification that is written here fires it: make sure that whatever listens may send "
    "them, or disable it while history is brought in"
)
_REFUSES = "rows of the official schema may be refused: drop it, or relax it"
_HANDED_OVER = (
    "nothing, as long as the AppView of that fork reads; the official one refuses the database: "
    "docs/migrating-from-rsky.md"
)
_OUR_ADDITIONS = {"record": {"rev"}, "op_thread_reply": {"op_thread_reply_uri_idx"}}

# The pipeline works in spite of a warning. A note is what somebody else has added, or does.
Severity = Literal["error", "warning", "note"]
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Difference:
    """A deviation from the expected schema, and the advice for it."""

    severity: Severity
    subject: str  # "column bsky.record.rev"
    expected: str | None  # a definition; None if there should be nothing
    found: str | None
    advice: str

    def __str__(self) -> str:
        return f"{self.subject}, expected: {self.expected}, found: {self.found}"

    @property
    def keeps_rows_unique(self) -> bool:
        """Whether it is a missing constraint, without which rows could be written twice."""
        wanted = self.expected or ""
        return wanted.startswith(("PRIMARY KEY", "UNIQUE", "CREATE UNIQUE")) and self.found is None


@dataclass(frozen=True, slots=True)
class Expected:
    """The schema of this version.

    `appview` has each official table, by the migration since which it is so; "" is the oldest
    release.
    """

    appview: Mapping[str, Mapping[str, Table]]
    pipeline: Catalogue

    def tables(self, names: Collection[str]) -> Catalogue:
        """Return the AppView's tables as these official migrations leave them."""
        found = {}
        for table, forms in self.appview.items():
            known = [since for since in sorted(forms) if not since or since in names]
            if known:
                found[table] = forms[known[-1]]
        return found


@cache
def expected() -> Expected:
    """Return the schema that this version expects."""
    document = json.loads(resources.files(__package__).joinpath(EXPECTED_FILE).read_text("utf-8"))
    return Expected(
        {name: from_json(forms) for name, forms in document["appview"].items()},
        from_json(document["pipeline"]),
    )


def check(
    url: str, schema: str = "bsky", *, bsync: bool = False, statement_timeout_ms: int = 60_000
) -> list[Difference]:
    """Return all differences, errors first; [] if the database is as expected.

    `bsync` is whether bsync is read: without it nobody writes its tables, and one that is missing
    is a warning. Needs only the privileges to connect and to read the catalogue and the bookkeeping
    tables.
    """
    with (
        Database.connect(
            url, schema=schema, name="db", statement_timeout_ms=statement_timeout_ms
        ) as db,
        db.transaction() as tx,
    ):
        return _differences(tx, schema, bsync=bsync)


def appview_release(url: str, schema: str = "bsky") -> str | None:
    """Return the oldest official AppView that need not migrate the database; None if unknown."""
    with (
        Database.connect(url, schema=schema, name="db") as db,
        db.transaction() as tx,
    ):
        if "kysely_migration" not in read_catalogue(tx, schema):
            return None
        return release_of({name for name, _ in read_migrations(tx, schema)})


# Errors of a statement that the schema may explain: 42 names and types, 0A operations that the kind
# of relation does not support, 23502 a column that must have a value and is not ours.
_OF_SCHEMA = ("42", "0A", "23502")
_PARTS = ("table ", "column ", "index ", "constraint ", "extension ", "schema ")


def differing_parts(database: Database, *, bsync: bool) -> list[Difference]:
    """Return the errors in tables and what belongs to them; those of rules for rows first.

    `bsync` is as for `check`.

    A unique constraint that is missing raises no error by itself: rows would be there twice.
    """
    with database.transaction() as tx:
        found = _differences(tx, database.schema, bsync=bsync)
    parts = [each for each in found if each.severity == "error" and each.subject.startswith(_PARTS)]
    return sorted(parts, key=lambda each: not each.keeps_rows_unique)


@contextmanager
def blamed_on_schema(database: Database) -> Iterator[None]:
    """Raise SchemaMismatchError where a difference of the schema explains why a statement failed.

    Somebody may change tables while we write to them. No data is at fault then, and what waits
    succeeds once the tables are as expected again.
    """
    try:
        yield
    except SchemaMismatchError:
        raise
    except DatabaseError as error:
        if not (error.sqlstate or "").startswith(_OF_SCHEMA):
            raise
        # Operations of bsync are in the stream whether this process' settings name it or not.
        for each in differing_parts(database, bsync=True):
            text = f"{error}; the schema differs: {each}"
            raise SchemaMismatchError(text, sqlstate=error.sqlstate) from error
        raise


def _differences(tx: Transaction, schema: str, *, bsync: bool) -> list[Difference]:
    tx.execute("SET TRANSACTION READ ONLY")
    found = read_catalogue(tx, schema)
    own = read_catalogue(tx, PIPELINE_SCHEMA)
    if not own and not found.keys() & expected().appview.keys():
        return [_missing(f"schema {schema}", "the AppView's and our tables", _INITIALISE)]
    names = read_migrations(tx, schema) if "kysely_migration" in found else []
    known = official_names([name for name, _ in names])
    behind = not known.issuperset(oldest_migrations())
    newer = any(name > later_migrations()[-1].name for name in known)
    official = _compare_official(names)
    wanted = expected().tables(known)
    differences = _compare(schema, wanted, found, behind=behind)
    differences = _without_others(schema, differences, newer=newer, bsync=bsync)
    written = wanted.keys() - _OF_OTHERS - (frozenset() if bsync else OF_BSYNC)
    differences += _compare_tables_of_others(schema, written, found)
    differences += _compare_interferences(schema, written, read_interferences(tx, schema))
    ours = dict(expected().pipeline)
    if STAND_IN in found and STAND_IN not in own:
        del ours[STAND_IN]
    differences += _compare(PIPELINE_SCHEMA, ours, own, behind=False)
    differences += _compare_extension(tx) + official + _compare_server(tx)
    if "schema_version" in own:
        differences += _compare_version(tx, schema)
    return sorted(differences, key=lambda difference: _SEVERITIES.index(difference.severity))


def _compare(schema: str, wanted: Catalogue, found: Catalogue, *, behind: bool) -> list[Difference]:
    """Compare a schema; `behind` is whether official migrations are missing in it."""
    differences: list[Difference] = []
    for name, table in wanted.items():
        if name in found:
            differences += _compare_table(f"{schema}.{name}", table, found[name], behind)
        else:
            advice = _OFFICIAL if behind else f"{_INITIALISE}; if it remains, restore the table"
            differences.append(_missing(f"table {schema}.{name}", "a table", advice))
    return differences


def _without_others(
    schema: str, differences: list[Difference], *, newer: bool, bsync: bool
) -> list[Difference]:
    """Reduce differences in parts used by others to warnings; drop them if migrations are newer."""
    judged: list[Difference] = []
    for item in differences:
        kind, _, path = item.subject.partition(" ")
        table, _, part = path.removeprefix(f"{schema}.").partition(".")
        of_others = table in _OF_OTHERS or (not bsync and table in OF_BSYNC)
        if kind == "column":
            of_others |= part in _COLUMNS_OF_OTHERS.get(table, ())
            of_others |= not bsync and part in _COLUMNS_OF_BSYNC.get(table, ())
        if not of_others or item.severity == "note":
            judged.append(item)
        elif not newer:
            advice = item.advice if item.expected is None else f"{_NOT_OURS}: {item.advice}"
            judged.append(replace(item, severity="warning", advice=advice))
    return judged


def _compare_table(name: str, wanted: Table, found: Table, behind: bool) -> list[Difference]:
    table = name.partition(".")[2]
    additions = _OUR_ADDITIONS.get(table, ())
    wanted_keys, found_keys = _keys(wanted), _keys(found)
    differences: list[Difference] = []
    for kind, expected_parts, found_parts in (
        ("column", wanted.columns, found.columns),
        ("constraint", wanted.constraints, found.constraints),
        ("index", wanted.indexes, found.indexes),
    ):
        for part in expected_parts | found_parts:
            should, is_ = expected_parts.get(part), found_parts.get(part)
            subject = f"{kind} {name}.{part}"
            if should == is_:
                continue
            if should is None:
                if _key(str(is_)) not in wanted_keys:
                    differences.append(_additional(kind, table, subject, str(is_)))
            elif key := _key(should):
                # ON CONFLICT names columns: which constraint or index keeps them unique is free.
                if key not in found_keys:
                    advice = _OFFICIAL if behind else _recreate(kind, should)
                    needed = key not in _NOT_RELIED_ON.get(table, ())
                    severity: Severity = "error" if needed else "warning"
                    differences.append(Difference(severity, subject, should, is_, advice))
            elif kind == "index":
                advice = _OFFICIAL_LATER if behind else f"{_SLOWER}; {_recreate(kind, should)}"
                differences.append(Difference("warning", subject, should, is_, advice))
            elif is_ is None:
                later = behind and part not in additions
                advice = _OFFICIAL if later else _recreate(kind, should)
                differences.append(_missing(subject, should, advice))
            elif kind == "column" and _is_array(table, part, is_):
                differences.append(Difference("note", subject, should, is_, _AS_ARRAYS))
            elif kind == "column" and _takes(table, part, is_, should):
                differences.append(Difference("note", subject, should, is_, _HARMLESS))
            elif kind == "column" and _lacks_number(is_, should):
                advice = f"new rows have no {part}: ALTER TABLE {name} ALTER {part} SET DEFAULT ..."
                differences.append(Difference("warning", subject, should, is_, advice))
            else:
                advice = f"change it to: {should}"
                differences.append(Difference("error", subject, should, is_, advice))
    return differences


_UNIQUE = re.compile(r"(?:PRIMARY KEY|UNIQUE|CREATE UNIQUE INDEX .* USING btree) \(([^()]*)\)")


def _key(definition: str) -> frozenset[str]:
    """Return the columns that a constraint or an index keeps unique in all rows; else none."""
    match = _UNIQUE.fullmatch(definition)
    return frozenset(match[1].split(", ")) if match else frozenset()


def _keys(table: Table) -> set[frozenset[str]]:
    definitions = (*table.constraints.values(), *table.indexes.values())
    return {key for key in map(_key, definitions) if key}


# Types that take all values of the first one, and give them back the same.
_WIDER = {
    "character varying": {"text"},
    "text": {"character varying"},
    "smallint": {"integer", "bigint"},
    "integer": {"bigint"},
}


def _is_array(table: str, column: str, found: str) -> bool:
    """Tell whether it is a column of a JSON list that another writer has made an array of texts."""
    return column in LISTS.get(table, ()) and found in {"character varying[]", "text[]"}


def _takes(table: str, column: str, found: str, wanted: str) -> bool:
    """Tell whether a column takes whatever one of the wanted definition takes."""
    has_type, has_not_null, has_value = _column(found)
    type_, not_null, value = _column(wanted)
    fits = has_type == type_ or has_type in _WIDER.get(type_, ())
    filled = (
        has_value == value
        or (not value and has_value.startswith("default "))
        or (_is_number(value) and _is_number(has_value))
    )
    always = column in _ALWAYS_FILLED.get(table, ())
    return fits and filled and (not_null or always or not has_not_null)


def _lacks_number(found: str, wanted: str) -> bool:
    """Tell whether a column is no longer numbered, and takes rows without a number."""
    has_type, has_not_null, has_value = _column(found)
    type_, _, value = _column(wanted)
    return has_type == type_ and _is_number(value) and not has_value and not has_not_null


def _is_number(value: str) -> bool:
    """Tell whether a default is the next number of a sequence, whatever its name."""
    return value.startswith("default nextval(") or value == "default identity"


def _column(definition: str) -> tuple[str, bool, str]:
    """Take a definition apart: type, whether it is NOT NULL, `default X` or `generated X` or ''."""
    match = re.fullmatch(
        r"(.*?)( not null)?(?: ((?:default|generated) .*))?", definition, re.DOTALL
    )
    assert match is not None
    return match[1], match[2] is not None, match[3] or ""


def _recreate(kind: str, definition: str) -> str:
    """Return the advice for a missing part: run `db init`, else create it by hand."""
    how = f"execute: {definition}" if kind == "index" else f"add it as: {definition}"
    return f"{_INITIALISE}; if it remains, {how}"


def _additional(kind: str, table: str, subject: str, found: str) -> Difference:
    required = False
    if kind == "column":
        _, not_null, value = _column(found)
        required = not_null and not value
    if _key(found) in _RESPECTED.get(table, ()):
        return Difference("note", subject, None, found, "nothing: rows that are there stay")
    if subject.endswith(f"{table}.{ACCOUNT_TIME}"):
        return Difference("note", subject, None, found, "nothing: older account events stay out")
    if required or kind == "constraint" or found.startswith("CREATE UNIQUE"):
        return Difference("error", subject, None, found, _REFUSES)
    return Difference("note", subject, None, found, _HARMLESS)


_REFERENCE = re.compile(r"REFERENCES \"?(\w+)\"?\(.*\)(?! .*ON DELETE (?:CASCADE|SET))")


def _compare_tables_of_others(
    schema: str, written: Collection[str], found: Catalogue
) -> Iterator[Difference]:
    """Yield tables that are not official, and keys by which they hold on to rows of ours."""
    others = sorted(found.keys() - expected().appview.keys())
    if others:
        names = ", ".join(others)
        yield Difference("note", f"tables of others in {schema}", None, names, _HARMLESS)
    for table in others:
        for name, definition in found[table].constraints.items():
            match = _REFERENCE.search(definition)
            if match and match[1] in written:
                subject = f"constraint {schema}.{table}.{name}"
                advice = f"rows of {match[1]} cannot be deleted: drop it, or add ON DELETE CASCADE"
                yield Difference("error", subject, None, definition, advice)


def _compare_interferences(
    schema: str, written: Collection[str], found: Sequence[Interference]
) -> Iterator[Difference]:
    """Yield triggers and rules on tables that we write."""
    for each in found:
        if each.table not in written:
            continue
        subject = f"{each.kind} {schema}.{each.table}.{each.name}"
        severity: Severity = "note"
        advice = "nothing, unless it is slow: it runs with each row that is written"
        if each.before:
            severity, advice = "error", "it can change or refuse rows: drop it"
        elif each.table == "notification" and each.on_insert:
            severity, advice = "warning", _PUSHED
        yield Difference(severity, subject, None, each.definition, advice)


def _missing(subject: str, wanted: str, advice: str) -> Difference:
    return Difference("error", subject, wanted, None, advice)


def _compare_extension(tx: Transaction) -> list[Difference]:
    rows = tx.query(
        "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'pg_trgm'"
    )
    if rows == [("public",)]:
        return []
    statement = (
        "ALTER EXTENSION pg_trgm SET SCHEMA public"
        if rows
        else "CREATE EXTENSION pg_trgm SCHEMA public"
    )
    found = f"in the schema {rows[0][0]}" if rows else None
    advice = f"execute: {statement}"
    return [Difference("error", "extension pg_trgm", "in the schema public", found, advice)]


def _compare_server(tx: Transaction) -> list[Difference]:
    return [
        Difference("error", f"setting {item.name}", item.wanted, item.found, f"{item.why}: set it")
        for item in check_server(tx)
        if item.severity == "error"
    ]


_EXAMPLE = "2026-01-31T12:00:00.000Z"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def _compare_official(rows: Sequence[tuple[str, str]]) -> list[Difference]:
    """Compare the bookkeeping of the official migrator, in its order."""
    names = [name for name, _ in rows]
    known = [*oldest_migrations(), *(one.name for one in later_migrations())]
    subject = "official migrations"
    missing = ", ".join(sorted(set(oldest_migrations()) - official_names(names)))
    theirs = names_of_others(names)
    unknown = sorted(set(names).difference(known))
    newer = ", ".join(name for name in unknown if name not in theirs)
    differences: list[Difference] = []
    if missing:
        differences.append(Difference("warning", subject, missing, None, _OFFICIAL_LATER))
    if newer:
        advice = "nothing, if the AppView is newer than this rsky-pipeline; an older one refuses it"
        differences.append(Difference("note", subject, None, newer, advice))
    if theirs:
        found = ", ".join(theirs)
        differences.append(Difference("warning", "migrations of a fork", None, found, _HANDED_OVER))
    # With names that are unknown here the order of names is all that can be judged.
    due = sorted(names) if unknown else known[: len(names)]
    for (name, time), expected_name in zip(rows, due, strict=True):
        if name != expected_name or not _TIME.fullmatch(time):
            found, wanted = f"{name} at {time}", f"{expected_name}, at a time like {_EXAMPLE}"
            advice = "the AppView refuses to start: correct kysely_migration"
            subject = "order of official migrations"
            differences.append(Difference("warning", subject, wanted, found, advice))
            break
    return differences


def _compare_version(tx: Transaction, schema: str) -> list[Difference]:
    rows = tx.query(f"SELECT version, appview_schema FROM {PIPELINE_SCHEMA}.schema_version")
    newest = migrations()[-1].version
    version = max((row[0] for row in rows), default=0)
    differences = [
        Difference(
            "error", "pipeline's AppView schema", schema, other, f"set database_schema to {other}"
        )
        for other in sorted({row[1] for row in rows} - {schema})
    ]
    if version < newest:
        differences.append(
            Difference("error", "schema version", str(newest), str(version), _INITIALISE)
        )
    elif version > newest:
        # One that must not be used is refused by `initialise`.
        advice = "an older program is running: deploy the rsky-pipeline that upgraded the database"
        differences.append(
            Difference("warning", "schema version", str(newest), str(version), advice)
        )
    return differences
