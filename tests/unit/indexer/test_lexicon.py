"""Validation of records, lenient and strict, and what the official indexer did to the same ones."""

from typing import Any

import orjson
import pytest

from rsky_pipeline.atproto import cbor, dagjson
from rsky_pipeline.configuration.settings import Validation
from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.fields import InvalidRecordError
from rsky_pipeline.indexer.core.entries import read_entry
from rsky_pipeline.indexer.lexicon.check import (
    checker,
    is_language,
    is_lenient_at_uri,
    is_lenient_datetime,
    is_uri,
)
from tests.data import test_data
from tests.integration.indexer.recorded import payloads, refused_uris

POST = "app.bsky.feed.post"
NOW = "2026-01-01T00:00:00.000Z"
CID = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
# Official defects, not rules: a NUL character, and an embed without images.
DEFECTS = ("0x00", 'syntax error at or near ")"')


def post(**fields: Any) -> dict[str, Any]:
    return {"$type": POST, "text": "hello", "createdAt": NOW, **fields}


def blob(kind: str = "image/png", size: int = 1_000) -> dict[str, Any]:
    return {"$type": "blob", "ref": {"$link": CID}, "mimeType": kind, "size": size}


def images(count: int = 1, **fields: Any) -> dict[str, Any]:
    image = {"image": blob(), "alt": "", **fields}
    return {"$type": "app.bsky.embed.images", "images": [image] * count}


def facet(**feature: Any) -> list[dict[str, Any]]:
    return [{"index": {"byteStart": 0, "byteEnd": 3}, "features": [feature]}]


def reason(record: dict[str, Any], validation: Validation, nsid: str = POST) -> str | None:
    check = checker(nsid, validation)
    assert check is not None
    try:
        check(record)
    except InvalidRecordError as error:
        return error.reason
    return None


LINK = "app.bsky.richtext.facet#link"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (post(text=None), "wrong_type"),
        ({"$type": POST, "createdAt": NOW}, "missing_field"),
        (post(text="é" * 301), "too_long"),
        (post(text="x" * 3_001), "too_long"),
        (post(createdAt="2024-05-05 10:00:00Z"), "invalid_datetime"),
        (post(createdAt="2024-05-05t10:00:00z"), "invalid_datetime"),
        (post(createdAt="0000-01-01T00:00:00+01:00"), "invalid_datetime"),
        (post(createdAt="2024-05-05T10:00:60Z"), "invalid_datetime"),
        (post(createdAt="yesterday"), "invalid_datetime"),
        (post(reply=None), "wrong_type"),
        (post(langs=["not a lang!"]), "invalid_language"),
        (post(langs=["en"] * 4), "too_many_items"),
        (post(embed=images(5)), "too_many_items"),
        (post(embed={"images": []}), "missing_field"),
        (post(embed={"$type": "app.bsky.embed.images", "images": [{"image": blob()}]}),
         "missing_field"),
        (post(facets=facet(**{"$type": LINK, "uri": "no uri"})), "invalid_uri"),
        (post(embed=images(aspectRatio={"width": 0, "height": 1})), "out_of_range"),
        (post(tags=["x" * 65]), "too_long"),
    ],
)  # fmt: skip
def test_what_neither_mode_lets_through(record: dict[str, Any], why: str) -> None:
    assert reason(record, "lenient") == reason(record, "strict") == why


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (post(createdAt="2024-05-05T10:00:00"), "invalid_datetime"),
        (post(embed=images(image=blob("application/pdf"))), "invalid_blob"),
        (post(embed=images(image=blob(size=2_000_001))), "invalid_blob"),
        (post(embed=images(image=blob(size=-1))), "invalid_blob"),
        (post(embed=images(image={"cid": CID, "mimeType": "image/png"})), "invalid_blob"),
        (post(reply={
            "root": {"uri": f"at://did:plc:a/{POST}/a b", "cid": CID},
            "parent": {"uri": f"at://did:plc:a/{POST}/a b", "cid": CID},
        }), "invalid_uri"),
    ],
)  # fmt: skip
def test_what_only_the_read_path_accepts(record: dict[str, Any], why: str) -> None:
    assert reason(record, "lenient") is None
    assert reason(record, "strict") == why


@pytest.mark.parametrize(
    "record",
    [
        post(text=""),
        post(text="👩‍👩‍👧‍👦" * 100),  # 25 bytes and one grapheme each
        post(text="e\u0301" * 300),
        post(createdAt="2024-02-30T10:00:00.123456Z"),
        post(embed={"$type": "com.example.new"}),
        post(embed=images(0)),
        post(embed={"$type": "app.bsky.embed.gallery", "items": []}),
        post(embed={"$type": "app.bsky.embed.record#main",
                    "record": {"uri": "at://a.test/app.bsky.feed.post/1", "cid": CID}}),
        post(embed={"$type": "app.bsky.embed.record",
                    "record": {"uri": "at://did:plc:a", "cid": CID}}),
        post(facets=facet(**{"$type": "com.example#new"})),
        post(langs=["en-US", "i-klingon", "zh-Hant-TW", "x-private"], unknown=[1])
        | {"langs": ["en-US", "i-klingon", "zh-Hant-TW"]},
        post(labels={"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "nudity"}]}),
    ],
)  # fmt: skip
def test_what_both_modes_let_through(record: dict[str, Any]) -> None:
    assert reason(record, "lenient") is None
    assert reason(record, "strict") is None


def test_formats() -> None:
    assert is_lenient_datetime("2024-05-05T10:00:00.1234567")
    assert not is_lenient_datetime("2024-05-05")
    assert is_lenient_at_uri("at://did:plc:a/app.bsky.feed.post/" + "x" * 600)
    assert not is_lenient_at_uri("at://x/y/z")
    assert is_uri("mailto:a@b.test")
    assert not is_uri("https:// a.test")
    assert not is_language("en_US")


def test_every_collection_is_validated_but_the_one_that_officially_is_not() -> None:
    without = {nsid for nsid, collection in registry.load().items() if collection.check is None}
    assert without == {"chat.bsky.actor.declaration"}
    assert len(registry.load()) == 19


def test_strict_refuses_exactly_what_the_official_indexer_refuses() -> None:
    folder = test_data("recorded")
    official = refused_uris(folder, without=DEFECTS)
    prefixes = ("app.bsky.", "chat.bsky.", "com.germnetwork.")
    found: dict[str, set[str]] = {"strict": set(), "lenient": set()}
    for payload in payloads(folder, prefixes):
        for mode, uris in found.items():
            collections = registry.load("strict" if mode == "strict" else "lenient")
            reading = read_entry({b"event": payload}, collections)
            if reading.refused is not None:
                uris.add(reading.refused.uri)
    assert found["strict"] == official
    assert found["lenient"] < official


def test_records_of_the_simulated_network_are_valid() -> None:
    world = World(5, 30, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(20)
    for _ in range(500):
        world.step()
    checked = 0
    for account in world.by_did.values():
        for path, stored in account.repo.items():
            nsid = path.partition("/")[0]
            check = checker(nsid, "lenient")
            if check is not None:
                check(orjson.loads(dagjson.to_json(cbor.decode(stored.block))))
                checked += 1
    assert checked > 100
