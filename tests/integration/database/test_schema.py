"""The schema against what the official migrations make, and upgrades of what is there."""

import json
import os
import re
import threading
from dataclasses import replace
from importlib import resources
from pathlib import Path

import psycopg
import pytest

import rsky_pipeline
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError, SchemaMismatchError
from rsky_pipeline.database.schema import (
    RELEASES,
    appview_release,
    check,
    initialise,
    name_releases,
    pending,
)
from rsky_pipeline.database.schema.catalogue import Catalogue, Table, read_catalogue, to_json
from rsky_pipeline.database.schema.compare import _OF_OTHERS, OF_BSYNC, expected
from rsky_pipeline.database.schema.migrate import Migration, migrations
from rsky_pipeline.database.schema.official import later_migrations, oldest_migrations
from tests.data import test_data
from tests.stores import execute

OFFICIAL = "appview_truth"
FUNCTION = """
CREATE FUNCTION bsky.push() RETURNS trigger LANGUAGE plpgsql AS 'begin return new; end'"""


@pytest.fixture
def official_database(clean_database: str) -> str:
    """A database that the official migrations made, up to those that the recording has."""
    lines = test_data("recorded/appview-schema.sql").read_text().splitlines()
    script = "\n".join(line for line in lines if not line.startswith("\\"))
    execute(clean_database, "CREATE EXTENSION pg_trgm SCHEMA public")
    with psycopg.connect(clean_database, autocommit=True) as connection:
        connection.execute(script.encode())
    array = "{" + ",".join(oldest_migrations()) + "}"
    execute(
        clean_database,
        f"INSERT INTO {OFFICIAL}.kysely_migration "
        f"SELECT unnest('{array}'::text[]), '2026-08-25T00:00:00.000Z'",
    )
    return clean_database


def catalogue(url: str, schema: str) -> Catalogue:
    with (
        Database.connect(url, schema=schema, name="test") as database,
        database.transaction() as tx,
    ):
        return read_catalogue(tx, schema)


def view_definition(url: str, schema: str) -> str:
    with Database.connect(url, schema=schema, name="test") as database:
        sql = "SELECT pg_get_viewdef('algo_whats_hot_view'::regclass)"
        return str(database.query(sql)[0][0])


def test_it_equals_the_official_one_but_for_the_listed_additions(
    official_database: str, schema_database: str
) -> None:
    official = catalogue(official_database, OFFICIAL)
    ours = catalogue(schema_database, "bsky")
    assert ours["record"].columns.pop("rev") == "character varying"
    assert ours["op_thread_reply"].indexes.pop("op_thread_reply_uri_idx")
    assert ours == official
    order = {name: list(table.columns) for name, table in ours.items()}
    assert order == {name: list(table.columns) for name, table in official.items()}
    assert len(ours) == 53 + 2 + 1
    assert view_definition(schema_database, "bsky") == view_definition(official_database, OFFICIAL)


@pytest.mark.parametrize("made_without_data", [False, True])
def test_the_view_of_hot_posts_can_be_read(clean_database: str, made_without_data: bool) -> None:
    if made_without_data:  # as the first step did once
        first, *rest = migrations()
        empty = replace(first, sql=re.sub(r"(whats_hot_like_threshold'\s+\));", r"\1 WITH NO DATA;",
                                          first.sql))  # fmt: skip
        assert empty != first
        names = [step.name for step in rest]
        initialise(clean_database, steps=[empty, *rest[: names.index("populated_view")]])
        with (
            Database.connect(clean_database, name="test") as database,
            pytest.raises(DatabaseError),
        ):
            database.query("SELECT uri FROM algo_whats_hot_view")
    initialise(clean_database)
    with Database.connect(clean_database, name="test") as database:
        assert database.query("SELECT uri, score FROM algo_whats_hot_view") == []
        database.execute("REFRESH MATERIALIZED VIEW CONCURRENTLY algo_whats_hot_view")


def test_the_bookkeeping_of_the_official_migrator_is_complete(schema_database: str) -> None:
    with Database.connect(schema_database, name="test") as database:
        rows = database.query('SELECT name, "timestamp" FROM kysely_migration ORDER BY name')
        lock = database.query("SELECT id, is_locked FROM kysely_migration_lock")
        parameters: dict[str, str] = dict(database.query("SELECT name, value FROM view_param"))
    assert [name for name, _ in rows] == list(oldest_migrations())
    assert len(rows) == 58
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time) for _, time in rows)
    assert lock == [("migration_lock", 0)]
    assert parameters == {"whats_hot_like_threshold": "2", "whats_hot_interval": "1day"}


def test_the_expected_schema_is_the_one_that_is_made(clean_database: str) -> None:
    initialise(clean_database)
    forms: dict[str, dict[str, Table]] = {}
    pipeline = to_json(catalogue(clean_database, "rsky_pipeline"))
    for since in ["", *(one.name for one in later_migrations())]:
        apply_migration(clean_database, since)
        for name, table in catalogue(clean_database, "bsky").items():
            so_far = forms.setdefault(name, {})
            if table not in list(so_far.values())[-1:]:
                so_far[since] = table
    document = {
        "appview": {name: to_json(tables) for name, tables in sorted(forms.items())},
        "pipeline": pipeline,
    }
    text = json.dumps(document, indent=1) + "\n"
    file = Path(str(resources.files("rsky_pipeline.database.schema").joinpath("expected.json")))
    if os.environ.get("RSKY_TEST_UPDATE"):  # after a new migration
        file.write_text(text)
    assert file.read_text() == text, "run this test again with RSKY_TEST_UPDATE=1"


def apply_migration(url: str, name: str) -> None:
    """Apply one migration, also of a release that has several."""
    with Database.connect(url, name="test") as database, database.transaction() as tx:
        for one in later_migrations():
            if one.name == name:
                tx.execute(one.recorded_sql())


def test_steps_are_reported_once_and_repeating_changes_nothing(clean_database: str) -> None:
    done = initialise(clean_database)
    assert done == [
        "created the schema rsky_pipeline",
        "created the schema bsky",
        "created the extension pg_trgm in public",
        "created the AppView's tables in bsky",
        *(f"applied {step.version:04}_{step.name}" for step in migrations()[1:]),
    ]
    assert check(clean_database) == []
    assert initialise(clean_database) == []


def test_an_official_database_gets_only_what_is_ours(official_database: str) -> None:
    before = catalogue(official_database, OFFICIAL)
    assert initialise(official_database, OFFICIAL) == [
        "created the schema rsky_pipeline",
        f"found the AppView's tables in {OFFICIAL} (58 official migrations)",
        *(f"applied {step.version:04}_{step.name}" for step in migrations()[1:]),
    ]
    after = catalogue(official_database, OFFICIAL)
    del after["record"].columns["rev"]
    del after["op_thread_reply"].indexes["op_thread_reply_uri_idx"]
    assert after == before
    assert check(official_database, OFFICIAL) == []


def test_an_official_database_that_is_too_old_is_an_error(official_database: str) -> None:
    execute(official_database, f"DELETE FROM {OFFICIAL}.kysely_migration WHERE name > '_20260113'")
    execute(official_database, f"DROP TABLE {OFFICIAL}.draft")
    execute(official_database, f'ALTER TABLE {OFFICIAL}."like" DROP COLUMN via')
    for refusing in (pending, initialise):
        with pytest.raises(SchemaMismatchError, match=r"55 of the 58 .* 0\.0\.275"):
            refusing(official_database, OFFICIAL)
    found = {item.subject: item for item in check(official_database, OFFICIAL)}
    lacks = [found[name] for name in found if name.startswith(f"column {OFFICIAL}.like")]
    assert [(item.severity, item.subject) for item in lacks] == [
        ("error", f"column {OFFICIAL}.like.via")
    ]
    assert "official data plane" in lacks[0].advice
    assert found[f"table {OFFICIAL}.draft"].severity == "warning"  # only the AppView uses it


def test_an_older_version_of_ours_is_upgraded(schema_database: str) -> None:
    newer = (*migrations(), Migration(9_000, "later", "CREATE TABLE rsky_pipeline.later (x int)"))
    assert initialise(schema_database, steps=newer) == ["applied 9000_later"]
    assert initialise(schema_database, steps=newer) == []
    found = [item.subject for item in check(schema_database)]
    assert found == ["schema version"]


def test_what_a_newer_version_only_added_to_can_still_be_used(schema_database: str) -> None:
    execute(schema_database, "INSERT INTO rsky_pipeline.schema_version VALUES (9000, 'x', 'bsky')")
    assert pending(schema_database) == initialise(schema_database) == []
    assert [item.severity for item in check(schema_database)] == ["warning"]


def test_what_a_newer_version_broke_is_left_alone(schema_database: str) -> None:
    breaking = Migration(9_000, "later", "-- breaks older programs\nSELECT 1")
    initialise(schema_database, steps=(*migrations(), breaking))
    for refusing in (pending, initialise):
        with pytest.raises(SchemaMismatchError, match="version 9000"):
            refusing(schema_database)


def test_what_is_pending_is_told_and_not_done(clean_database: str) -> None:
    told = pending(clean_database)
    assert told[:3] == [
        "create the schema rsky_pipeline", "create the schema bsky",
        "create the extension pg_trgm in public",
    ]  # fmt: skip
    assert pending(clean_database) == told
    assert _in_the_past(told) == initialise(clean_database)


def test_the_dry_run_on_an_official_database_lists_what_the_run_does(
    official_database: str,
) -> None:
    told = pending(official_database, OFFICIAL)
    done = initialise(official_database, OFFICIAL)
    assert _in_the_past(told) == done
    assert not any("create the AppView's tables" in each for each in told)


def _in_the_past(told: list[str]) -> list[str]:
    past = {"create": "created", "apply": "applied", "keep": "found"}
    return [f"{past[verb]} {rest}" for verb, _, rest in (each.partition(" ") for each in told)]


def test_a_failing_step_leaves_the_database_as_it_was(clean_database: str) -> None:
    broken = (*migrations(), Migration(9_000, "broken", "SELECT * FROM nothing"))
    with pytest.raises(SchemaMismatchError, match=r"step 9000_broken of the schema.*nothing"):
        initialise(clean_database, steps=broken)
    assert catalogue(clean_database, "bsky") == catalogue(clean_database, "rsky_pipeline") == {}


def test_initialising_at_once_makes_one_schema(clean_database: str) -> None:
    results: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: results.append(initialise(clean_database)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(len(done) for done in results) == [0, 0, 0, 3 + len(migrations())]


def test_another_schema_name(clean_database: str) -> None:
    initialise(clean_database, "Other_Name")
    assert check(clean_database, "Other_Name") == []
    with pytest.raises(ValueError, match="letters"):
        initialise(clean_database, "a;b")


def test_a_second_appview_schema_in_a_database_is_refused(schema_database: str) -> None:
    with pytest.raises(SchemaMismatchError, match="belongs to the schema bsky"):
        initialise(schema_database, "other")


@pytest.mark.parametrize("table", ["record", "like", "post"])
def test_tables_of_unknown_origin_are_refused(clean_database: str, table: str) -> None:
    execute(clean_database, "CREATE SCHEMA bsky")
    execute(clean_database, f'CREATE TABLE bsky."{table}" (uri text)')
    with pytest.raises(SchemaMismatchError, match=rf"{table}.*kysely_migration"):
        initialise(clean_database)
    with pytest.raises(SchemaMismatchError, match=rf"{table}.*kysely_migration"):
        pending(clean_database)
    assert catalogue(clean_database, "rsky_pipeline") == {}


def test_an_extension_elsewhere_is_refused(clean_database: str) -> None:
    execute(clean_database, "CREATE SCHEMA extensions")
    execute(clean_database, "CREATE EXTENSION pg_trgm SCHEMA extensions")
    with pytest.raises(SchemaMismatchError, match="ALTER EXTENSION"):
        initialise(clean_database)


def test_an_empty_database_is_one_difference(clean_database: str) -> None:
    (difference,) = check(clean_database)
    assert difference.subject == "schema bsky"
    assert "db init" in difference.advice


@pytest.mark.parametrize(
    ("change", "subject", "severity", "advice"),
    [
        ("DROP INDEX bsky.like_creator_cursor_idx",
         "index bsky.like.like_creator_cursor_idx", "warning", "CREATE INDEX like_creator_c"),
        ("ALTER TABLE bsky.post ALTER COLUMN text TYPE text",
         "column bsky.post.text", "note", "no harm"),
        ("ALTER TABLE bsky.post ALTER COLUMN text DROP NOT NULL",
         "column bsky.post.text", "note", "no harm"),
        ('ALTER TABLE bsky.profile_agg ALTER COLUMN "postsCount" TYPE integer',
         "column bsky.profile_agg.postsCount", "error", "bigint"),
        ("ALTER TABLE bsky.post ALTER COLUMN text TYPE varchar(300)",
         "column bsky.post.text", "error", "character varying not null"),
        ("ALTER TABLE bsky.post ALTER COLUMN tags TYPE varchar[] USING NULL",
         "column bsky.post.tags", "note", "written as arrays"),
        ("ALTER TABLE bsky.post ALTER COLUMN tags TYPE integer[] USING NULL",
         "column bsky.post.tags", "error", "jsonb"),
        ("ALTER TABLE bsky.record ALTER COLUMN tags TYPE varchar[] USING NULL",
         "column bsky.record.tags", "error", "jsonb"),
        ("ALTER TABLE bsky.record ALTER COLUMN rev SET NOT NULL",
         "column bsky.record.rev", "note", "no harm"),
        ("ALTER TABLE bsky.actor ADD COLUMN extra int NOT NULL GENERATED ALWAYS AS IDENTITY",
         "column bsky.actor.extra", "note", "no harm"),
        ('ALTER TABLE bsky.actor ADD COLUMN "accountEventAt" timestamptz',
         "column bsky.actor.accountEventAt", "note", "older account events"),
        ('ALTER TABLE bsky.thread_mute DROP COLUMN "createdAt"',
         "column bsky.thread_mute.createdAt", "warning", "works without it"),
        ('ALTER TABLE bsky."like" ALTER COLUMN via SET NOT NULL',
         "column bsky.like.via", "error", "character varying"),
        ("""ALTER TABLE bsky."like" ALTER via SET DEFAULT '', ALTER via SET NOT NULL""",
         "column bsky.like.via", "error", "character varying"),
        ('ALTER TABLE bsky."like" ALTER COLUMN "sortAt" DROP EXPRESSION',
         "column bsky.like.sortAt", "error", "generated LEAST"),
        ('ALTER TABLE bsky.post_agg ALTER COLUMN "likeCount" SET DEFAULT 1',
         "column bsky.post_agg.likeCount", "error", "default 0"),
        ("ALTER TABLE bsky.record DROP COLUMN rev", "column bsky.record.rev", "error", "db init"),
        ("ALTER TABLE bsky.actor ADD COLUMN extra text",
         "column bsky.actor.extra", "note", "no harm"),
        ("ALTER TABLE bsky.actor ADD COLUMN extra text NOT NULL",
         "column bsky.actor.extra", "error", "drop it"),
        ('ALTER TABLE bsky.actor_state DROP COLUMN "lastSeenPriorityNotifs"',
         "column bsky.actor_state.lastSeenPriorityNotifs", "warning", "works without it"),
        ("ALTER TABLE bsky.actor_state ADD COLUMN extra text NOT NULL",
         "column bsky.actor_state.extra", "warning", "drop it"),
        ('ALTER TABLE bsky.actor DROP COLUMN "trustedVerifier"',
         "column bsky.actor.trustedVerifier", "warning", "works without it"),
        ("DROP TABLE bsky.mute", "table bsky.mute", "warning", "works without it"),
        ("CREATE UNIQUE INDEX extra ON bsky.notification (did)",
         "index bsky.notification.extra", "error", "drop it"),
        ('CREATE UNIQUE INDEX extra ON bsky.notification (reason, did, "recordUri")',
         "index bsky.notification.extra", "note", "nothing"),
        ("ALTER TABLE bsky.notification DROP CONSTRAINT notification_pkey",
         "constraint bsky.notification.notification_pkey", "warning", "PRIMARY KEY (id)"),
        ("""ALTER TABLE bsky.notification DROP CONSTRAINT notification_pkey,
         ALTER id DROP DEFAULT, ALTER id DROP NOT NULL""",
         "column bsky.notification.id", "warning", "SET DEFAULT"),
        ("ALTER TABLE bsky.notification ALTER id DROP DEFAULT",
         "column bsky.notification.id", "error", "nextval"),
        ("""CREATE SEQUENCE bsky.other;
         ALTER TABLE bsky.notification ALTER id SET DEFAULT nextval('bsky.other')""",
         "column bsky.notification.id", "note", "no harm"),
        ("ALTER TABLE bsky.post ADD CONSTRAINT extra CHECK (text <> '') NOT VALID",
         "constraint bsky.post.extra", "error", "drop it"),
        (("ALTER TABLE bsky.post ADD CONSTRAINT extra FOREIGN KEY (creator) "
         "REFERENCES bsky.actor (did)"), "constraint bsky.post.extra", "error", "drop it"),
        ("ALTER TABLE bsky.notification ADD CONSTRAINT extra EXCLUDE (did WITH =)",
         "constraint bsky.notification.extra", "error", "drop it"),
        ("CREATE TABLE bsky.extra (uri varchar REFERENCES bsky.post)",
         "constraint bsky.extra.extra_uri_fkey", "error", "cannot be deleted"),
        (("CREATE TRIGGER extra BEFORE UPDATE ON bsky.post FOR EACH ROW "
         "EXECUTE FUNCTION suppress_redundant_updates_trigger()"),
         "trigger bsky.post.extra", "error", "drop it"),
        ("CREATE RULE extra AS ON DELETE TO bsky.post DO INSTEAD NOTHING",
         "rule bsky.post.extra", "error", "drop it"),
        ((f"{FUNCTION}; CREATE TRIGGER extra AFTER INSERT ON bsky.post FOR EACH ROW "
         "EXECUTE FUNCTION bsky.push()"), "trigger bsky.post.extra", "note", "slow"),
        ((f"{FUNCTION}; CREATE TRIGGER extra AFTER INSERT OR UPDATE ON bsky.notification "
         "FOR EACH ROW EXECUTE FUNCTION bsky.push()"),
         "trigger bsky.notification.extra", "warning", "history"),
        ("CREATE TABLE bsky.extra (uri varchar REFERENCES bsky.post ON DELETE CASCADE)",
         "tables of others in bsky", "note", "no harm"),
        ("CREATE INDEX extra ON bsky.notification (did)",
         "index bsky.notification.extra", "note", "no harm"),
        ('ALTER TABLE bsky."like" DROP CONSTRAINT like_unique_subject',
         "constraint bsky.like.like_unique_subject", "error", "UNIQUE (subject, creator)"),
        ("DROP TABLE rsky_pipeline.tombstone", "table rsky_pipeline.tombstone", "error", "db init"),
        ("DROP EXTENSION pg_trgm CASCADE", "extension pg_trgm", "error", "CREATE EXTENSION"),
        ("INSERT INTO bsky.kysely_migration VALUES ('_2030', '2030-01-01T00:00:00Z')",
         "official migrations", "note", "newer"),
        ("INSERT INTO bsky.kysely_migration VALUES ('_2030', '2030-01-01T00:00:00+00')",
         "order of official migrations", "warning", "refuses to start"),
        ("UPDATE bsky.kysely_migration SET timestamp = '2030' WHERE name = '_20230309T045948368Z'",
         "order of official migrations", "warning", "refuses to start"),
        ("INSERT INTO bsky.kysely_migration VALUES ('_20260101T', '2030-01-01T00:00:00Z')",
         "migrations of a fork", "warning", "official one refuses"),
        ("DELETE FROM bsky.kysely_migration WHERE name = '_20230309T045948368Z'",
         "order of official migrations", "warning", "refuses to start"),
    ],
)  # fmt: skip
def test_differences_name_the_part_and_the_remedy(
    schema_database: str, change: str, subject: str, severity: str, advice: str
) -> None:
    execute(schema_database, change)
    found = {item.subject: item for item in check(schema_database)}
    assert found[subject].severity == severity
    assert advice in found[subject].advice


@pytest.mark.parametrize(
    "change",
    [
        f"""{FUNCTION}; CREATE TRIGGER extra AFTER INSERT ON bsky.notification FOR EACH ROW
        EXECUTE FUNCTION bsky.push(); ALTER TABLE bsky.notification DISABLE TRIGGER extra""",
        f"""{FUNCTION}; CREATE TRIGGER extra BEFORE INSERT ON bsky.bookmark FOR EACH ROW
        EXECUTE FUNCTION bsky.push()""",
        'ALTER TABLE bsky."like" RENAME CONSTRAINT like_unique_subject TO other',
        """ALTER TABLE bsky."like" DROP CONSTRAINT like_unique_subject;
        CREATE UNIQUE INDEX other ON bsky."like" (creator, subject)""",
    ],
)
def test_other_forms_of_the_same_are_no_difference(schema_database: str, change: str) -> None:
    execute(schema_database, change)
    assert check(schema_database) == []


def test_a_unique_index_that_is_partial_or_invalid_is_none(schema_database: str) -> None:
    execute(schema_database, 'ALTER TABLE bsky."like" DROP CONSTRAINT like_unique_subject')
    execute(schema_database, 'CREATE UNIQUE INDEX other ON bsky."like" (creator, subject) '
                             "WHERE via IS NULL")  # fmt: skip
    found = {item.subject: item.severity for item in check(schema_database)}
    assert found == {
        "constraint bsky.like.like_unique_subject": "error", "index bsky.like.other": "error",
    }  # fmt: skip


@pytest.mark.parametrize("release", RELEASES)
def test_a_database_is_made_for_a_release(clean_database: str, release: str) -> None:
    migrations_of = {"0.0.275": 58, "0.0.276": 59, "0.0.277": 59}
    told = pending(clean_database, appview=release)
    done = initialise(clean_database, appview=release)
    assert _in_the_past(told) == done
    assert check(clean_database) == []
    assert appview_release(clean_database) == {"0.0.277": "0.0.276"}.get(
        release, min("0.0.278", release)
    )
    assert name_releases(appview_release(clean_database) or "") == {
        "0.0.275": "release 0.0.275", "0.0.276": "releases 0.0.276 to 0.0.277",
        "0.0.277": "releases 0.0.276 to 0.0.277",
    }.get(release, "releases 0.0.278 to 0.0.280")  # fmt: skip
    assert initialise(clean_database, appview=release) == []
    with Database.connect(clean_database, name="test") as database:
        rows = database.query('SELECT name, "timestamp" FROM kysely_migration ORDER BY 2, 1')
    assert len(rows) == migrations_of.get(release, 61)
    assert [name for name, _ in rows] == sorted(name for name, _ in rows)


def test_a_database_is_migrated_step_by_step_as_the_official_migrator_does(
    clean_database: str,
) -> None:
    for release, made in (("0.0.275", 0), ("0.0.276", 1), ("0.0.280", 2)):
        done = initialise(clean_database, appview=release)
        assert len([each for each in done if "official migration _" in each]) == made
        assert check(clean_database) == []
    with pytest.raises(SchemaMismatchError, match="_20260827T200000000Z, _20260904T130000000Z"):
        initialise(clean_database, appview="0.0.277")
    assert pending(clean_database) == []


def test_no_migration_is_recorded_before_an_earlier_one(clean_database: str) -> None:
    """The clock of whoever migrated before was ahead: kysely would refuse another order."""
    initialise(clean_database, appview="0.0.276")
    execute(
        clean_database,
        """UPDATE bsky.kysely_migration SET "timestamp" = '2999-01-01T00:00:00.000Z'
        WHERE name = (SELECT max(name) FROM bsky.kysely_migration)""",
    )
    initialise(clean_database, appview="0.0.280")
    with Database.connect(clean_database, name="test") as database:
        rows = database.query('SELECT name FROM kysely_migration ORDER BY "timestamp", name')
    assert len(rows) == 61
    assert rows == sorted(rows)


@pytest.mark.parametrize("migrations", [54, 58, 59, 61])
def test_databases_of_official_appviews_are_good(clean_database: str, migrations: int) -> None:
    script = test_data(f"schemas/official-{migrations}.sql").read_text()
    with psycopg.connect(clean_database, autocommit=True) as connection:
        connection.execute(script.encode())
    if migrations == 54:  # of before some of the tables and columns that we write
        with pytest.raises(SchemaMismatchError, match=r"54 of the 58 .* 0\.0\.275"):
            initialise(clean_database)
        return
    initialise(clean_database)
    assert check(clean_database) == []
    initialise(clean_database, appview="0.0.280")
    assert check(clean_database) == []
    made = catalogue(clean_database, "bsky")
    assert made == expected().tables({one.name for one in later_migrations()})


SEEN_IN_A_FORK = {
    "warning trigger bsky.notification.notification_push_insert_notify",
    "warning migrations of a fork", "note tables of others in bsky",
    "note column bsky.actor.handleResolveTries", "note column bsky.actor_block.takedownRef",
    "note column bsky.follow.takedownRef", "note column bsky.follow.via",
    "note column bsky.follow.viaCid", "note column bsky.like.takedownRef",
    "note column bsky.repost.takedownRef",
}  # fmt: skip
SEEN_IN_WINTERMUTE = SEEN_IN_A_FORK | {
    "note column bsky.actor.accountEventAt", "note column bsky.post.langs",
    "note column bsky.post.tags",
    "note index bsky.notification.notification_did_recorduri_reason_unique_idx",
}  # fmt: skip


@pytest.mark.parametrize(
    ("dump", "seen"),
    [("blacksky-fork", SEEN_IN_A_FORK), ("blacksky-wintermute", SEEN_IN_WINTERMUTE)],
)
def test_databases_of_a_fork_are_compatible(clean_database: str, dump: str, seen: set[str]) -> None:
    script = test_data(f"schemas/{dump}.sql").read_text()
    with psycopg.connect(clean_database, autocommit=True) as connection:
        connection.execute(script.encode())
    before = catalogue(clean_database, "bsky")
    done = initialise(clean_database)
    assert done[1] == "found the AppView's tables in bsky (56 official migrations, 11 of a fork)"
    assert {f"{each.severity} {each.subject}" for each in check(clean_database)} == seen
    assert initialise(clean_database) == []
    after = catalogue(clean_database, "bsky")
    del after["op_thread_reply"].indexes["op_thread_reply_uri_idx"]
    assert after == before
    assert appview_release(clean_database) is None  # no official AppView takes it
    with pytest.raises(SchemaMismatchError, match="_20260806T000000000Z"):
        initialise(clean_database, appview="0.0.275")
    page = (Path(rsky_pipeline.__file__).parents[1] / "docs/migrating-from-rsky.md").read_text()
    handing_over = page[page.index("    UPDATE bsky.kysely_migration") :].partition("\n\n")[0]
    later = "UPDATE bsky.kysely_migration SET timestamp = '2026-10-01T00:00:00.000Z'"
    execute(clean_database, f"{later} WHERE name = '_20260807T000000000Z'")
    execute(clean_database, handing_over)
    assert appview_release(clean_database) == "0.0.275"  # which now takes it
    assert not [each for each in check(clean_database) if "migrations" in each.subject]


def test_an_official_migrator_and_we_wait_for_each_other(clean_database: str) -> None:
    initialise(clean_database)
    with psycopg.connect(clean_database) as other:
        other.execute("SELECT pg_advisory_lock(3853314791062309107)")
        waiting = threading.Thread(target=initialise, args=(clean_database,),
                                   kwargs={"appview": "0.0.280"})  # fmt: skip
        waiting.start()
        with Database.connect(clean_database, name="test") as database:
            sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            while database.query(sql) != [(1,)]:
                assert waiting.is_alive()
            assert appview_release(clean_database) == "0.0.275"
        other.execute("SELECT pg_advisory_unlock_all()")
    waiting.join(60)
    assert appview_release(clean_database) == "0.0.278"


def test_what_is_of_others_is_named_in_none_of_our_statements() -> None:
    tables = "|".join(sorted(_OF_OTHERS - {"kysely_migration", "subscription"}))
    statement = re.compile(rf"(?i)\b(from|into|update|join)\s+\"?({tables})\b")
    folder = Path(rsky_pipeline.__file__).parent
    for path in folder.rglob("*.py"):
        assert not statement.search(path.read_text()), path
    assert expected().appview.keys() >= _OF_OTHERS | OF_BSYNC


@pytest.mark.parametrize(
    ("change", "subject", "with_bsync", "without"),
    [
        *((f"DROP TABLE bsky.{table} CASCADE", f"table bsky.{table}", "error", "warning")
          for table in sorted(OF_BSYNC)),
        ("DROP TABLE bsky.thread_mute", "table bsky.thread_mute", "error", "error"),
        ('ALTER TABLE bsky.thread_mute DROP COLUMN "createdAt"',
         "column bsky.thread_mute.createdAt", "error", "warning"),
        ('ALTER TABLE bsky.actor DROP COLUMN "ageAssuranceStatus"',
         "column bsky.actor.ageAssuranceStatus", "error", "warning"),
        ("ALTER TABLE bsky.bookmark DROP CONSTRAINT bookmark_pkey",
         "constraint bsky.bookmark.bookmark_pkey", "error", "warning"),
        ("ALTER TABLE bsky.draft ADD COLUMN size integer NOT NULL",
         "column bsky.draft.size", "error", "warning"),
        (f"""{FUNCTION}; CREATE TRIGGER extra BEFORE INSERT ON bsky.draft FOR EACH ROW
        EXECUTE FUNCTION bsky.push()""", "trigger bsky.draft.extra", "error", None),
        ('ALTER TABLE bsky.actor_state DROP COLUMN "lastSeenPriorityNotifs"',
         "column bsky.actor_state.lastSeenPriorityNotifs", "warning", "warning"),
        ("DROP TABLE bsky.suggested_follow", "table bsky.suggested_follow", "warning", "warning"),
    ],
)  # fmt: skip
def test_tables_of_bsync_have_to_be_there_where_it_is_read(
    schema_database: str, change: str, subject: str, with_bsync: str, without: str | None
) -> None:
    execute(schema_database, change)
    for bsync, severity in ((True, with_bsync), (False, without)):
        found = {item.subject: item.severity for item in check(schema_database, bsync=bsync)}
        assert found.get(subject) == severity


def test_checking_needs_no_right_to_write(schema_database: str) -> None:
    execute(schema_database, "DROP ROLE IF EXISTS reader")
    execute(schema_database, "CREATE ROLE reader LOGIN")
    for schema in ("bsky", "rsky_pipeline"):
        execute(schema_database, f"GRANT USAGE ON SCHEMA {schema} TO reader")
        execute(schema_database, f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO reader")
    try:
        assert check(schema_database.replace("postgres@", "reader@")) == []
        assert initialise(schema_database.replace("postgres@", "reader@")) == []
    finally:
        execute(schema_database, "DROP OWNED BY reader")
        execute(schema_database, "DROP ROLE reader")
