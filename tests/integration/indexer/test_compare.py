"""`db compare` names what the records do not say; after events of all kinds there is nothing."""

import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.labels import LabelRow
from rsky_pipeline.operations.compare_repo import EXAMPLES, compare_stored
from rsky_pipeline.operations.derived_rows import compare_rows, snapshot
from tests.data import test_data
from tests.integration.indexer.kit import Network, Tables, did_of
from tests.integration.indexer.story import Story, Threads
from tests.integration.indexer.test_recorded import feed, read_all


@pytest.fixture
def folder() -> Path:
    return test_data("recorded")


def accounts(tables: Tables) -> list[str]:
    sql = "SELECT did FROM actor UNION SELECT did FROM record ORDER BY 1"
    return [row[0] for row in tables.database.query(sql)]


def differences(tables: Tables, dids: Iterable[str], limit: int | None = EXAMPLES) -> list[object]:
    """Return the differences that are named; without a limit all of them."""
    found: list[object] = []
    if limit is None:
        for did in dids:
            read = partial(snapshot, tables.database)
            found += [one for _, page in compare_rows(read, did, registry.load()) for one in page]
            found += compare_stored(tables.database, did, registry.load()).counts
        return found
    for did in dids:
        compared = compare_stored(tables.database, did, registry.load())
        found += [one for of in compared.rows.values() for one in of.examples]
        found += compared.counts
        assert bool(compared.differences) == bool(compared.remedies)
    return found


@pytest.mark.parametrize("size", [1, 1_000])
def test_the_recorded_network_is_what_its_records_say(
    tables: Tables, folder: Path, size: int
) -> None:
    feed(tables, read_all(folder), size)
    assert not (found := differences(tables, accounts(tables))), "\n".join(map(str, found))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [1, 1_000])
def test_stories_of_all_kinds_are_what_their_records_say(
    tables: Tables, seed: int, size: int
) -> None:
    chance = random.Random(seed)
    teller = Story(chance, ("ann", "bob", "cyd", "dan")) if seed % 2 else Threads(chance)
    events = [event for event in teller.tell(150) if not isinstance(event, LabelRow)]
    for start in range(0, len(events), size):
        tables.apply_any(*events[start : start + size])
    found = differences(tables, accounts(tables))
    if isinstance(teller, Threads):  # posts that are deleted and made again
        found = [one for one in found if "feed_item" not in str(one)]
    assert not found, "\n".join(map(str, found))


def test_history_that_notified_nobody_is_no_difference(tables: Tables) -> None:
    net, history = Network(), Network(history=True)
    post = net.post("ann")
    tables.apply(post)
    tables.apply(history.like("bob", post), history.reply("bob", post))
    assert tables.notified() == []
    assert differences(tables, [did_of("bob")]) == []
