"""Beside the official network: what people do there becomes the same rows here and there."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.official.appview import AppView
from tests.official.kinds import Facts
from tests.official.questions import compare_answers
from tests.official.world import OFFICIAL_SCHEMA, World, copy_labels

pytestmark = [pytest.mark.official, pytest.mark.timeout(3_600)]
SHOWN = 40
KEPT = Path(__file__).parents[2] / ".pytest_cache" / "official"


def test_live_rows(world: World, figures: dict[str, Any]) -> None:
    facts = kept(world, "live", world.facts(world.live))
    figures["events"] = dict(world.people.counts)
    figures["refused by the indexer"] = len(world.indexer.refused())
    figures["kills"] = dict(sorted(world.live.kills.items()))
    figures["live"] = tables(facts)
    nothing_unexplained(facts)


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
    assert answers.errors.total() < answers.asked.total() / 10


def kept(world: World, name: str, facts: Facts) -> Facts:
    """Keep the rows, so that differences can be looked into when the network is gone."""
    KEPT.mkdir(exist_ok=True)
    document = {
        "official": facts.official, "ours": facts.ours, "refused": facts.refused,
        "gone": sorted(facts.gone), "edited": sorted(facts.edited),
    }  # fmt: skip
    (KEPT / f"{world.installation.release}-{name}.json").write_text(json.dumps(document))
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
