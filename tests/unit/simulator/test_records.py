"""What simulated people write: every kind, odd and nevertheless valid."""

from collections import Counter

import orjson
import pytest

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.datetimes import EPOCH, normalize
from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.demo.simulator.state import state_of
from rsky_pipeline.demo.simulator.tables import canonical, json_form, utc_milliseconds
from rsky_pipeline.demo.simulator.truth import INDEXED
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.values import Put
from tests.unit.simulator.networks import small_world


@pytest.fixture(scope="module")
def world() -> World:
    world = small_world(accounts=60, history=40)
    for _ in range(6_000):
        world.step()
    return world


def test_every_kind_of_record_is_written_mostly_likes(world: World) -> None:
    kinds = Counter(uri.split("/")[3] for uri in state_of(world).records)
    assert set(kinds) == {*mix.RECORDS, mix.THREAD_GATE}
    assert kinds[mix.LIKE] > sum(kinds.values()) / 2
    assert kinds.most_common(4) == sorted(
        ((kind, kinds[kind]) for kind in (mix.LIKE, mix.POST, mix.FOLLOW, mix.REPOST)),
        key=lambda item: -item[1],
    )


def test_no_record_is_one_that_an_indexer_refuses(world: World) -> None:
    collections = registry.load()
    assert set(collections) == INDEXED
    for uri, item in state_of(world).records.items():
        did, nsid, rkey = uri[5:].split("/")
        if nsid in collections:
            record = json_form(item.block)
            put = Put(uri, did, rkey, item.cid, "3" * 13, EPOCH, False, "")
            collections[nsid].read(put, record)


def test_the_oracle_reads_records_as_the_pipeline_does(world: World) -> None:
    """Two independent readers agree, also on odd times, bytes and links."""
    from rsky_pipeline.atproto import dagjson

    odd = 0
    for item in state_of(world).records.values():
        record = json_form(item.block)
        assert canonical(record) == canonical(
            orjson.loads(dagjson.to_json(cbor.decode(item.block)))
        )
        created = record.get("createdAt")
        if created is not None:
            assert utc_milliseconds(created) == normalize(created)
            odd += utc_milliseconds(created) != created
    assert odd > 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-05T10:00:00Z", "2024-05-05T10:00:00.000Z"),
        ("2024-05-05T10:00:00.123456789Z", "2024-05-05T10:00:00.123Z"),
        ("2024-05-05T21:21:06+09:00", "2024-05-05T12:21:06.000Z"),
        ("2024-05-05T10:00:00.5-07:30", "2024-05-05T17:30:00.500Z"),
        ("0001-01-01T00:00:00.000Z", "0001-01-01T00:00:00.000Z"),
        ("yesterday", EPOCH),
        ("0001-01-01T00:00:00+10:00", EPOCH),  # before the first year
    ],
)
def test_the_oracle_normalises_times(text: str, expected: str) -> None:
    assert utc_milliseconds(text) == expected


def test_texts_are_as_odd_as_strangers_make_them(world: World) -> None:
    records = [json_form(item.block) for item in state_of(world).records.values()]
    everything = "\n".join(
        text
        for record in records
        for text in (record.get("text"), record.get("description"), record.get("displayName"))
        if isinstance(text, str)
    )
    for sign in ("\0", "🦋", "\u202e", "\\", '"', "\u200b", "日", "\U0010ffff"):
        assert sign in everything, repr(sign)
    assert any(record.get("text") == "" for record in records)
