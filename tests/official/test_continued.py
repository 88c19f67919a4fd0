"""The official indexer goes on from our rows, and we go on from its rows: nobody can see where.

One official indexer follows alone from the first event to the last one. The rows of two other
databases are compared with its rows: of one that we fill, then the official indexer, then we; and
of one that the official indexer fills before we adopt it.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from tests import leftovers, stores
from tests.official import rows
from tests.official.appview import AppView
from tests.official.installation import Installation
from tests.official.kinds import Facts
from tests.official.network import Network, Pds, official_network
from tests.official.people import People
from tests.official.pipeline import Following, following
from tests.official.questions import compare_answers
from tests.official.test_official import SHOWN, keep, nothing_unexplained, tables
from tests.official.world import OFFICIAL_SCHEMA, Indexer

pytestmark = [pytest.mark.official, pytest.mark.timeout(2_400)]
ACCOUNTS = 14
ACTS = 150  # of each of the three times
SEED = 31
OURS, THEIRS = "handed_over", "adopted"  # databases, by what happens to them
SCHEMA = "bsky"


@dataclass
class Story:
    """The network when all is done, the reference, and the two databases."""

    network: Network
    people: People
    reference: Indexer
    urls: dict[str, str]
    refused: dict[str, str]

    def facts(self, name: str) -> Facts:
        """Compare a database with that of the indexer that was alone."""
        people = self.people
        facts = Facts(
            rows.read(self.reference.database_url, OFFICIAL_SCHEMA),
            rows.read(self.urls[name], SCHEMA), self.refused, people.gone,
            people.edited, people.moved,
        )  # fmt: skip
        for difference in rows.differences(facts.official, facts.ours):
            facts.explain(difference)
        return facts


@pytest.fixture(scope="module")
def story(installation: Installation, database_server: str) -> Iterator[Story]:
    """Let people live three times: followed by us, by the official indexer, and by us again."""
    with ExitStack() as stack:
        database = stack.enter_context(stores.fresh_database(database_server))
        urls = {
            name: stack.enter_context(stores.fresh_database(database_server))
            for name in (OURS, THEIRS)
        }
        folder = stack.enter_context(stores.scratch_directory())
        stack.enter_context(leftovers.ended_with_us(folder))
        network = stack.enter_context(official_network(installation, folder, database))
        reference = Indexer.start(network, folder, None)
        theirs = Indexer.start(network, folder, None, database_url=urls[THEIRS], schema=SCHEMA)
        people = People(network, SEED)
        indexers, pipelines = [reference, theirs], list[Following]()

        def indexed(pds: Pds) -> None:
            for indexer in indexers:
                indexer.wait(pds)

        def settle() -> None:
            for pds in network.pdses:
                indexed(pds)
            for pipeline in pipelines:
                pipeline.wait()

        people.before = indexed
        settings = {
            "DATABASE_URL": urls[OURS], "EMBEDDED_DATABASE_PORT": "0", "ENUMERATE_REPOS": "false",
            "INITIAL_CURSOR": "oldest", "VALIDATION": "strict",
            "DATA_DIR": str(folder / "first" / "data"),
        }  # fmt: skip

        with following(network, folder / "first", **settings) as ours:
            for number in range(ACCOUNTS):
                people.join(network.pdses[number % 4 == 3])
            pipelines.append(ours)
            for _ in people.live(ACTS, settle):
                pass
            settle()
            pipelines.clear()
        cursors = {pds.relay: pds.last_seq() for pds in network.pdses}
        continued = Indexer.start(
            network, folder, None, database_url=urls[OURS], schema=SCHEMA, cursors=cursors
        )
        indexers.append(continued)
        for _ in people.live(ACTS, settle):
            pass
        settle()
        refused = dict(theirs.refused()) | continued.refused()
        for each in (continued, theirs):
            indexers.remove(each)
            network.end(each.process)
        adopting = settings | {
            "DATABASE_URL": urls[THEIRS],
            "DATA_DIR": str(folder / "third" / "data"),
        }
        with (
            following(network, folder / "second", **settings) as ours,
            following(network, folder / "third", **adopting) as adopted,
        ):
            choose = random.Random(SEED)
            pipelines += [ours, adopted]
            for number in people.live(ACTS, settle):
                if number % 60 == 30:
                    ours.kill_one(choose)
            settle()
            repair(ours)
            repair(adopted)
            settle()
            yield Story(
                network, people, reference, urls,
                reference.refused() | refused,
            )  # fmt: skip


def repair(adopted: Following) -> None:
    """Bring the rows of the official indexer to what the repos say, as the documentation has it.

    But for inactive accounts, whose repos nobody serves.
    """
    words = ["db", "adopt", "--apply", "--repair"]
    result = subprocess.run(
        [sys.executable, "-P", "-m", "rsky_pipeline", *words], env=adopted.environ,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "damaged records: 0" in result.stdout, result.stdout + result.stderr
    for step in left_to_operators(adopted):
        with psycopg.connect(adopted.url, autocommit=True) as connection:
            connection.execute(f"SET search_path = {adopted.schema}, public".encode())
            while connection.execute(step["sql"].encode()).rowcount:
                pass
    adopted.command("db", "recount", "--all")


def left_to_operators(adopted: Following) -> list[dict[str, Any]]:
    """Return the steps of the report that are SQL about rows."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "rsky_pipeline", "db", "adopt", "--dry-run", "--json"],
        env=adopted.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    steps: list[dict[str, Any]] = json.loads(result.stdout)["steps"]
    return [each for each in steps if each["sql"].startswith("DELETE")]


@pytest.mark.parametrize("name", [OURS, THEIRS])
def test_rows(story: Story, name: str, installation: Installation, figures: dict[str, Any]) -> None:
    facts = keep(installation, name, story.facts(name))
    figures[f"{name}: rows"] = tables(facts)
    nothing_unexplained(facts)


def test_answers(story: Story, figures: dict[str, Any]) -> None:
    """Of the database that went there and back; the other one has the same rows."""
    name = OURS
    facts = story.facts(name)
    official = AppView.start(story.network, story.reference.database_url, OFFICIAL_SCHEMA)
    ours = AppView.start(story.network, story.urls[name], SCHEMA)
    answers = compare_answers(story.people, facts, official, ours, seed=SEED)
    for each in (official, ours):
        each.end()
    figures[f"{name}: questions"] = answers.asked.total()
    assert not answers.unexplained, "\n".join(answers.unexplained[:SHOWN])
    assert answers.asked.total() > 500
