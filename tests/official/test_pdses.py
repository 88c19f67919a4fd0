"""Beside the official network, after everything else: what becomes of accounts and their PDSes."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from rsky_pipeline.demo.simulator import mix
from tests.official import rows
from tests.official.hosts import Crowd, join_with_own_did, lift_limits, limit_rates, lose_sequencer
from tests.official.kinds import Database, Facts
from tests.official.network import wait_until
from tests.official.pipeline import Following, following
from tests.official.test_official import kept, nothing_unexplained
from tests.official.world import TIMES_SEEN, World

pytestmark = [pytest.mark.official, pytest.mark.timeout(3_600)]
IMPORTED = 24_000
OFFICIALLY_INDEXED = 2_000  # some 15 ms each
NOT_INDEXED = frozenset({mix.UNKNOWN, *mix.FOREIGN})
ABOUT_POSTS = {"quote": "subject", "feed_item": "postUri"}
NOT_OF_RECORDS = frozenset({"label", "notification", "post_agg"})
NOT_OF_RECORD = frozenset({
    *TIMES_SEEN, "rev", "violatesThreadGate", "violatesEmbeddingRules", "invalidReplyRoot",
    "hasThreadGate", "hasPostGate",
})  # fmt: skip
NOTICED_SECONDS = 60.0
REPAIRED = {("cursor_refused", "repaired")}


def test_accounts_of_did_web(world: World, figures: dict[str, Any]) -> None:
    """They live like others: their keys change, and they move to the other PDS."""
    people, (first, second) = world.people, world.network.pdses
    before = people.counts.copy()
    persons = [join_with_own_did(people, pds) for pds in (first, second, first)]
    for person in persons:
        for _ in range(6):
            people.act_as(person)
    for person, announced in zip(persons[:2], (True, False), strict=True):
        people.rotate_key(person, announced=announced)
        people.act_as(person)
    people.migrate(persons[2], second)
    people.deactivate(persons[0])
    people.reactivate(persons[0])
    for person in persons:
        for _ in range(3):
            people.act_as(person)
    for _ in range(40):
        people.act()  # the others, about them as well
    world.settle()
    facts = kept(world, "web", world.facts(world.live))
    figures["did:web"] = dict(people.counts - before)
    figures["live, with did:web"] = compared(facts)
    nothing_unexplained(facts)
    ours = {row["did"]: row["handle"] for row in facts.ours["actor"]}
    assert {each.did: each.account.handle for each in persons}.items() <= ours.items()


def test_an_import(world: World, figures: dict[str, Any]) -> None:
    """A large repo comes into an account at once, which its PDS announces only afterwards.

    The official indexer leaves it out, so it is compared with what was imported, live and from
    history, and is deleted before anything else happens.
    """
    people = world.people
    person = people.join(world.network.pdses[0])
    people.import_repo(person, IMPORTED)
    people.deactivate(person)
    people.reactivate(person)
    world.settle()
    found = rows.read(world.live.url, world.live.schema)
    posts = {row["uri"] for row in found["post"]}
    live = of_account(found, person.did, posts)
    with history_alone(world, "large") as history:
        fetched = of_account(rows.read(history.url, history.schema), person.did, posts)
    figures["imported"] = {
        "records": len(person.records), "rows live": sum(map(len, live.values())),
        "rows from history": sum(map(len, fetched.values())),
    }  # fmt: skip
    expected = {
        person.account.uri(path) for path in person.records
        if path.partition("/")[0] not in NOT_INDEXED
    }  # fmt: skip
    for database in (live, fetched):
        assert {json.loads(each)["uri"] for each in database["record"]} == expected
    assert not {table for table in live if live[table] != fetched[table]}
    people.delete(person)
    world.settle()
    left = of_account(rows.read(world.live.url, world.live.schema), person.did, posts)
    assert not any(left.values())


def of_account(database: Database, did: str, posts: set[str]) -> dict[str, Counter[str]]:
    """Return the rows that come from the records of an account, without the times they were seen.

    What differs in history is left out: whether a post keeps to gates, quotes and reposts of others
    than these posts, notifications.
    """
    found = {}
    for table, each in database.items():
        columns = [name for name in ("uri", "postUri") if each and name in each[0]]
        if columns and table not in NOT_OF_RECORDS:
            found[table] = Counter(
                json.dumps({name: row[name] for name in row.keys() - NOT_OF_RECORD}, sort_keys=True)
                for row in each
                if str(row[columns[0]]).startswith(f"at://{did}/")
                and (table not in ABOUT_POSTS or row[ABOUT_POSTS[table]] in posts)
            )
    return found


def test_a_smaller_import(world: World, figures: dict[str, Any]) -> None:
    """The official indexer indexes a whole repo, where somebody asks it to."""
    people = world.people
    person = people.join(world.network.pdses[0])
    people.import_repo(person, OFFICIALLY_INDEXED)
    people.deactivate(person)
    people.reactivate(person)
    world.settle()
    indexed = world.indexer.index_repo(person.did)
    for _ in range(20):
        people.act_as(person)
    world.settle()
    facts = kept(world, "imported", world.facts(world.live))
    figures["imported"]["indexed officially as well"] = indexed
    figures["live, with an import"] = compared(facts)
    nothing_unexplained(facts)


def test_a_lost_sequencer(world: World, figures: dict[str, Any]) -> None:
    """A PDS numbers its events anew; of those before, some had not been read by us."""
    people, pds = world.people, world.network.pdses[1]
    host = pds.relay.removeprefix("ws://")
    here = [each for each in people.active() if each.pds is pds]
    people.deactivate(here[0])
    world.settle()
    world.live.command("stop", "--role", "ingester")
    before = people.counts.copy()
    people.deactivate(here[1])
    people.take_down(here[2])
    for _ in range(8):
        for person in here[3:]:
            people.act_as(person)
    world.indexer.wait(pds)
    last = lose_sequencer(world.network, pds)
    world.indexer.begin_anew(pds)
    people.reactivate(here[0])
    people.take_down(here[2], applied=False)
    for person in here[:1] + here[2:5]:
        people.act_as(person)
    world.live.command("start", "--role", "ingester")
    wait_until(
        lambda: f"cursor_refused {host}" in world.live.findings(),
        lambda: str(world.live.findings()), NOTICED_SECONDS,
    )  # fmt: skip
    assert pds.last_seq() < last
    world.live.command("cursor", "set", host, "0")  # as the finding advises
    for person in here[3:6]:
        people.act_as(person)
    world.settle()
    wait_until(
        lambda: {(each["kind"], each["status"]) for each in gaps(world, host)} == REPAIRED,
        lambda: str(gaps(world, host)), NOTICED_SECONDS,
    )  # fmt: skip
    world.settle()
    facts = kept(world, "renumbered", world.facts(world.live))
    figures["lost sequencer"] = {
        "events before": last, "events after": pds.last_seq(), **(people.counts - before),
        "gaps repaired": len(gaps(world, host)),
    }  # fmt: skip
    figures["live, after a lost sequencer"] = compared(facts)
    nothing_unexplained(facts)


def gaps(world: World, host: str) -> list[dict[str, Any]]:
    """Return the recorded gaps of a host."""
    found: list[dict[str, Any]] = json.loads(world.live.command("gaps", "list", "--json"))["gaps"]
    return [each for each in found if each["host"] == host]


def test_rate_limits(world: World, figures: dict[str, Any]) -> None:
    """History comes in completely from PDSes that refuse most requests for a while."""
    world.settle()
    log = limit_rates(world.network)
    somebody = world.people.active()[0]
    with Crowd(world.network, somebody.did) as crowd, history_alone(world, "limited") as history:
        answers = Counter(log.read_text().split()) - crowd.answers
        figures["rate limits"] = dict(sorted(answers.items()))
        lift_limits(world.network)
        facts = kept(world, "limited", world.facts(history, history=True))
    figures["history, with rate limits"] = compared(facts)
    nothing_unexplained(facts)
    assert figures["rate limits"]["refused"]


@contextlib.contextmanager
def history_alone(world: World, name: str) -> Iterator[Following]:
    """Run a pipeline that fetches all repos, until it has them."""
    settings = {"enumerate_repos": "true", "initial_cursor": "live", "validation": "strict"}
    with following(world.network, world.folder / name, **settings) as history:
        history.command("db", "init", "--appview", world.installation.release)
        history.wait()
        yield history


def compared(facts: Facts) -> dict[str, Any]:
    """Return how many rows all tables have, and how many differ by kind."""
    kinds: Counter[str] = sum(facts.kinds.values(), Counter())
    return {
        "official": sum(len(facts.official[table]) for table in facts.kinds),
        "ours": sum(len(facts.ours.get(table, ())) for table in facts.kinds),
        "kinds": dict(sorted(kinds.items())),
    }
