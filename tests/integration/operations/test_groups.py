"""Repairing consumer groups as incidents left them."""

import json

from click.testing import CliRunner, Result

from rsky_pipeline.cli import main
from rsky_pipeline.configuration.expectations import expected_groups
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.operations.groups import GroupRepair, repair
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consumer import trim
from tests.integration.operations.entries import LIVE, consumer, fill, left, phantoms, post
from tests.integration.streams.support import own_pending, pending_count

GROUP = "firehose_group"


def repaired(store: Store, *, idle: float = 3600, dry_run: bool = False) -> list[GroupRepair]:
    return repair(store, {LIVE: GROUP}, idle_seconds=idle, dry_run=dry_run)


def test_every_consumed_stream_has_a_group() -> None:
    groups = expected_groups(Settings(indexer_group="i", backfiller_group="b"))
    assert groups[LIVE] == groups["label_live"] == "i"
    assert groups["repo_backfill"] == "b"


def test_groups_of_other_programs_are_named_and_removed_on_request(
    store: Store, clean_redis: str
) -> None:
    """Also one whose name is no UTF-8; entries that it alone had not read are trimmed then."""

    def remove(*words: str) -> Result:
        url = ("--redis-url", clean_redis, "--json")
        return CliRunner().invoke(main, ["streams", "groups", "remove", *words, *url])

    fill(store, [post(number) for number in range(3)])
    reader = consumer(store)
    for name in (b"first", b"\xff1"):
        store.call("XGROUP", "CREATE", LIVE, name, "0")
    store.call("HSET", "rsky_pipeline:installation", "first", "an id", GROUP, "another")
    reader.acknowledge([item.id for item in reader.read_new(10, 0)])
    found = {item.group: item for item in repaired(store)}
    assert set(found) == {"first", "\\xff1"}
    assert {(item.what, item.count, item.done) for item in found.values()} == {
        ("other_group", 3, False)
    }
    assert "streams groups remove first`" in found["first"].detail
    assert remove("second").exit_code == 2
    assert remove("first").exit_code == 2, "it asks"
    assert remove(GROUP, "--yes").exit_code == 1
    assert "of this configuration" in remove(GROUP, "--yes").stderr
    store.call("XREADGROUP", "GROUP", "first", "c", "COUNT", 1, "STREAMS", LIVE, ">")
    assert "in the last minute" in remove("first", "--yes").stderr
    planned = remove("first", "--dry-run")
    assert planned.exit_code == 0
    assert len(repaired(store)) == 2
    (gone,) = json.loads(remove("first", LIVE, "--yes", "--force").stdout)["removed"]
    assert (gone["unread"], gone["pending"], gone["consumers"]) == (2, 1, 1)
    assert store.call("HGETALL", "rsky_pipeline:installation") == [GROUP.encode(), b"another"]
    assert remove("\\xff1", "--yes").exit_code == 0
    store.call("XGROUP", "CREATE", LIVE, b"red\x1b[31m", "0")
    assert remove(r"red\x1b[31m", "--yes").exit_code == 0, "by the name that is shown"
    assert repaired(store) == []
    trim(store, LIVE)
    assert left(store) == []


def test_good_groups_are_left_alone(store: Store) -> None:
    assert repaired(store) == []
    fill(store, [post(1)])
    consumer(store).read_new(1, 0)
    assert repaired(store) == []


def test_pending_entries_without_a_body_are_forgotten_and_others_kept(store: Store) -> None:
    fill(store, [post(number) for number in range(1_205)])
    reader = consumer(store)
    ids = [item.id for item in reader.read_new(1_205, 0)]
    store.call("XTRIM", LIVE, "MAXLEN", "=", 5)  # as the original indexer did

    (looked,) = repaired(store, dry_run=True)
    assert (looked.what, looked.count, looked.done) == ("phantom_entries", 1_200, False)
    assert pending_count(reader) == 1_205
    (found,) = repaired(store)
    assert (found.what, found.count, found.done) == ("phantom_entries", 1_200, True)
    assert found.detail.endswith(f"{ids[0]} to {ids[1_199]}")
    assert phantoms(store) == 0
    assert [item.id for item in own_pending(reader)] == ids[-5:]


def test_a_position_behind_the_end_is_set_back(store: Store) -> None:
    fill(store, [post(1)])
    reader = consumer(store)
    reader.acknowledge([item.id for item in reader.read_new(10, 0)])
    store.call("XGROUP", "SETID", LIVE, GROUP, "9999999999999-0")
    fill(store, [post(2), post(3)])
    assert reader.read_new(10, 0) == []
    (found,) = repaired(store)
    assert (found.what, found.done) == ("position_past_end", True)
    assert [item.fields for item in reader.read_new(10, 0)] == [
        {b"event": post(2)},
        {b"event": post(3)},
    ]


def test_a_missing_group_begins_at_the_first_entry(store: Store) -> None:
    fill(store, [post(1)])
    (found,) = repaired(store)
    assert found.what == "missing_group"
    assert len(consumer(store).read_new(10, 0)) == 1


def test_dead_consumers_go_only_when_they_hold_nothing(store: Store) -> None:
    fill(store, [post(1), post(2)])
    consumer(store, "holds").read_new(1, 0)
    empty = consumer(store, "empty")
    empty.acknowledge([item.id for item in empty.read_new(1, 0)])
    found = {item.what: item for item in repaired(store, idle=0)}
    assert found["idle_consumer"].detail.endswith("empty")
    assert not found["dead_consumer"].done
    assert "holds was idle" in found["dead_consumer"].detail
    assert left(store) == [post(1)]
    assert pending_count(consumer(store, "holds")) == 1


def test_a_group_whose_name_is_no_text_is_named_and_left_alone(store: Store) -> None:
    fill(store, [post(1)])
    consumer(store).read_new(1, 0)
    store.call("XGROUP", "CREATE", LIVE, b"\xff\xfe", "0")
    store.call("XREADGROUP", "GROUP", GROUP, b"\xfd", "STREAMS", LIVE, ">")
    assert [item.what for item in repaired(store)] == ["other_group"]
    found = {item.what for item in repaired(store, idle=0)}
    assert found <= {"idle_consumer", "dead_consumer", "other_group"}
