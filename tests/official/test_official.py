"""Beside the official network: what people do there becomes the same rows here and there."""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rsky_pipeline.database.schema.official import missing_migrations, oldest_migrations
from rsky_pipeline.demo.processes import clean_environment
from tests import stores
from tests.official.appview import AppView
from tests.official.installation import Installation
from tests.official.kinds import Facts
from tests.official.network import wait_until
from tests.official.pipeline import following
from tests.official.private import PrivateLife
from tests.official.questions import Tokens, compare_answers
from tests.official.rows import PRIVATE
from tests.official.world import OFFICIAL_SCHEMA, World, copy_labels
from tests.pipelines import command_succeeds

pytestmark = [pytest.mark.official, pytest.mark.timeout(3_600)]
SHOWN = 40
PRIVATE_ACTS = 200
KEPT = Path(__file__).parents[2] / ".pytest_cache" / "official"


def test_live_rows(world: World, figures: dict[str, Any]) -> None:
    facts = kept(world, "live", world.facts(world.live))
    figures["events"] = dict(world.people.counts)
    figures["refused by the indexer"] = len(world.indexer.refused())
    figures["kills"] = dict(sorted(world.live.kills.items()))
    figures["live"] = tables(facts)
    nothing_unexplained(facts)


def test_history_rows(world: World, figures: dict[str, Any]) -> None:
    settings = {"enumerate_repos": "true", "initial_cursor": "live", "validation": "strict"}
    with following(world.network, world.folder / "history", **settings) as history:
        history.command("db", "init", "--appview", world.installation.release)
        history.wait()
        facts = kept(world, "history", world.facts(history, history=True))
    figures["history"] = tables(facts)
    nothing_unexplained(facts)


def test_the_official_migrator_finds_its_own(
    world: World, figures: dict[str, Any], database_server: str
) -> None:
    """`db init` makes the state of a release, of which its own migrator changes nothing."""
    release = world.installation.release
    later = [each.name for each in missing_migrations(oldest_migrations(), release)]
    plans = {"default": ([], later), release: (["--appview", release], []), "official": ([], [])}
    figures["migrations"] = {}
    for name, (words, expected) in plans.items():
        with stores.fresh_database(database_server) as url:
            environ = clean_environment() | {"RSKY_PIPELINE_DATABASE_URL": url}
            if name == "official":
                migrated(world, url)
            command_succeeds(environ, "db", "init", *words)
            command_succeeds(environ, "db", "check")
            assert migrated(world, url) == expected
            assert migrated(world, url) == []
            command_succeeds(environ, "db", "init")
            command_succeeds(environ, "db", "check")
            figures["migrations"][name] = len(expected)


def migrated(world: World, url: str) -> list[str]:
    """Let the official migrator bring a database up to date; return what it did."""
    process = world.network.service("migrate", databaseUrl=url, schema="bsky")
    world.network.end(process)
    names: list[str] = process.ready["migrated"]
    return names


def test_answers(world: World, figures: dict[str, Any]) -> None:
    facts = world.facts(world.live)
    copy_labels(world.live, world.network)
    url = world.live.command("config", "url").strip()
    official = AppView.start(world.network, world.indexer.database_url, OFFICIAL_SCHEMA)
    ours = AppView.start(world.network, url, world.live.schema)
    answers = compare_answers(world.people, facts, official, ours, seed=world.seed)
    for each in (official, ours):
        each.end()
    figures["answers"] = {
        name: {
            "asked": asked, "equal errors": answers.errors[name],
            "kinds": dict(sorted(answers.kinds.get(name, Counter()).items())),
        }
        for name, asked in sorted(answers.asked.items())
    }  # fmt: skip
    figures["questions"] = answers.asked.total()
    assert not answers.unexplained, "\n".join(answers.unexplained[:SHOWN])
    assert answers.errors.total() < answers.asked.total() / 5  # inactive accounts


def test_private_rows(world: World, figures: dict[str, Any]) -> None:
    """What people do in private becomes the rows that the official reader of bsync writes."""
    world.settle()
    url = world.live.command("config", "url").strip()
    appview = AppView.start(world.network, url, world.live.schema, world.bsync.ready["url"])
    choose = random.Random(world.seed)
    life = PrivateLife(world.people, appview, choose)
    for number in range(PRIVATE_ACTS):
        life.act()
        if number % 70 == 35:
            world.live.kill_one(choose, stores=False)  # the AppView needs the database
        if number == PRIVATE_ACTS // 2:
            world.restart_bsync()
    places = ((world.network.database_url, OFFICIAL_SCHEMA), (world.live.url, world.live.schema))

    def rows_of(table: str) -> list[list[Any]]:
        return [private_rows(*place, table) for place in places]

    def differ() -> list[str]:
        return [table for table in PRIVATE if (found := rows_of(table))[0] != found[1]]

    wait_until(lambda: not differ(), lambda: str({each: rows_of(each) for each in differ()}), 120)
    appview.end()
    figures["private"] = dict(sorted(life.counts.items()))
    figures["private rows"] = {table: len(rows_of(table)[0]) for table in PRIVATE}
    assert not [each for each in life.refused if not each.endswith(" 400")], life.refused
    assert all(figures["private rows"].values())


def private_rows(url: str, schema: str, table: str) -> list[str]:
    """Return the rows of a table without the times of whoever wrote them, in an order."""
    with psycopg.connect(url) as connection:
        found = connection.execute(f"SELECT row_to_json(t) FROM {schema}.{table} t").fetchall()
    return sorted(
        json.dumps({name: value for name, value in row.items() if name not in PRIVATE[table]},
                   sort_keys=True) for (row,) in found
    )  # fmt: skip


def test_seen(world: World, figures: dict[str, Any]) -> None:
    """`updateSeen` of an AppView reaches our rows, since 0.0.278 by way of bsync."""
    world.settle()
    url = world.live.command("config", "url").strip()
    appview = AppView.start(world.network, url, world.live.schema, world.bsync.ready["url"])
    tokens = Tokens(world.people, appview.did)
    now, query = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()), (
        f'SELECT "lastSeenNotifs" FROM {world.live.schema}.actor_state WHERE did = %s')  # fmt: skip
    unread = "app.bsky.notification.getUnreadCount"
    before = 0
    for person in world.people.active():
        token = tokens.token(person, unread)
        before += (found := appview.ask(unread, {}, token)["count"])
        method = "app.bsky.notification.updateSeen"
        headers = {"authorization": f"Bearer {tokens.token(person, method)}"}
        world.network.call(appview.url, method, json={"seenAt": now}, headers=headers)
        with psycopg.connect(world.live.url) as connection:
            assert connection.execute(query, [person.did]).fetchall() == [(now,)]
        if found:
            assert appview.ask(unread, {}, token) == {"count": 0}
    appview.end()
    figures["notifications seen"] = before
    assert before


def test_labels(world: World, figures: dict[str, Any]) -> None:
    """The statements of the labeler, of which the newest about a subject and a value stands.

    Ozone has a row for each version of a record that it labelled, and in it the newest statement
    about that version. Ours has the same rows; the newest of them all is the state of each.
    """
    people = world.people
    people.label_versions()
    people.rotate_labeler_key()
    for _ in range(20):
        people.label()
    people.label_versions()
    world.live.wait()
    said = labels(world.network.database_url, "ozone")
    newest: dict[tuple[str, str, str], tuple[Any, ...]] = {}
    for src, uri, _, val, *state in sorted(said, key=lambda each: (each[-1], each[-2])):
        newest[src, uri, val] = tuple(state)
    expected = {(src, uri, cid, val, *newest[src, uri, val]) for src, uri, cid, val, *_ in said}
    found = labels(world.live.url, world.live.schema)
    figures["labels"] = {
        "official": len(said), "ours": len(found), "of older versions": len(expected - said),
    }  # fmt: skip
    assert found == expected
    assert expected - said  # else no older version was labelled before a newer one


def labels(url: str, schema: str) -> set[tuple[Any, ...]]:
    """Return the rows: source, subject, version, value, whether it is taken back, time."""
    with psycopg.connect(url) as connection:
        return set(connection.execute(
            "SELECT src, uri, coalesce(cid, ''), val, coalesce(neg, false), cts "
            f"FROM {schema}.label"
        ))  # fmt: skip


def test_account_life(world: World, figures: dict[str, Any]) -> None:
    """Keys change, accounts move between the PDSes, and people go on living."""
    people, (first, second) = world.people, world.network.pdses
    before = Counter(people.counts)
    here, there = ([each for each in people.active() if each.pds is pds] for pds in (first, second))
    for person, announced in zip(here[:4], (True, False, True, False), strict=True):
        people.rotate_key(person, announced=announced)
        people.act_as(person)
    for person, pds in ((here[4], second), (there[0], first), (here[5], second)):
        people.migrate(person, pds)
        for _ in range(3):
            people.act_as(person)
    for _ in range(150):
        people.act()
    world.settle()
    facts = kept(world, "moved", world.facts(world.live))
    figures["account life"] = dict(people.counts - before)
    figures["live, after moves"] = tables(facts)
    nothing_unexplained(facts)


def kept(world: World, name: str, facts: Facts) -> Facts:
    """Keep the rows, so that differences can be looked into when the network is gone."""
    return keep(world.installation, name, facts)


def keep(installation: Installation, name: str, facts: Facts) -> Facts:
    """Keep the rows of a release; see `kept`."""
    KEPT.mkdir(parents=True, exist_ok=True)
    document = {
        "official": facts.official, "ours": facts.ours, "refused": facts.refused,
        "gone": sorted(facts.gone), "edited": sorted(facts.edited),
        "moved": sorted(facts.moved),
        "unserved": sorted(facts.unserved or ()),
    }  # fmt: skip
    (KEPT / f"{installation.release}-{name}.json").write_text(json.dumps(document))
    return facts


def tables(facts: Facts) -> dict[str, Any]:
    """Return the rows of each table, and the kinds of differences in it."""
    return {
        table: {
            "official": len(facts.official[table]),
            "ours": len(facts.ours.get(table, ())),
            "kinds": dict(sorted(kinds.items())),
        }
        for table, kinds in facts.kinds.items()
        if facts.official[table] or facts.ours.get(table)
    }


def nothing_unexplained(facts: Facts) -> None:
    """Fail on a difference of no documented kind."""
    found = [f"{table}, {side}: {json.dumps(row)}" for table, side, row in facts.unexplained]
    assert not found, "\n".join([f"{len(found)} differences:", *found[:SHOWN]])
