"""Validation of records, lenient and strict, and what the official indexer did to the same ones."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from rsky_pipeline.atproto import cbor, dagjson
from rsky_pipeline.atproto.datetimes import is_readable_datetime
from rsky_pipeline.configuration.settings import Validation
from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.fields import InvalidRecordError
from rsky_pipeline.indexer.collections.values import Put
from rsky_pipeline.indexer.core.entries import Reading, read_entry
from rsky_pipeline.indexer.lexicon.check import (
    checker,
    is_cid,
    is_language,
    is_lenient_language,
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


def quoting(uri: str, cid: str = CID, **fields: Any) -> dict[str, Any]:
    reference = {"uri": uri, "cid": cid, **fields}
    return post(embed={"$type": "app.bsky.embed.record", "record": reference})


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
        (post(createdAt="2024-05-05T10:00:00-00:00"), "invalid_datetime"),
        (post(createdAt="2024-05-05T10:00"), "invalid_datetime"),
        (post(createdAt="2024-05-05T10:00Z"), "invalid_datetime"),
        (post(createdAt="2024-05-05"), "invalid_datetime"),
        (post(createdAt="2024-02-30T10:00:00"), "invalid_datetime"),
        (post(createdAt=f"2024-05-05T10:00:00.{'1' * 45}Z"), "invalid_datetime"),
        (quoting(f"at://did:plc:a/{POST}/1#here"), "invalid_uri"),
        (quoting(f"at://did:plc:a/{POST}/a b"), "invalid_uri"),
        (quoting(f"at://did:plc:a/{POST}/ü"), "invalid_uri"),
        (quoting(f"at://did:plc:a/{POST}/1/2"), "invalid_uri"),
        (quoting("at://did:plc:a", cid="abcdefgh12345678"), "invalid_cid"),
        (quoting("at://did:plc:a", cid=CID[:-1] + "b"), "invalid_cid"),
        (quoting("at://did:plc:a", **{"$type": "com.example.ref"}), "wrong_type"),
        (post(facets=facet(**{"$type": LINK, "uri": "a:/b"})), "invalid_uri"),
        (post(embed=images(image=blob("image"))), "invalid_blob"),
        (post(embed=images(image=blob(size=2**53))), "invalid_blob"),
        (post(embed=images(image=blob() | {"more": 1})), "invalid_blob"),
        (post(embed=images(aspectRatio={"width": 2**53, "height": 1})), "out_of_range"),
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
            "root": {"uri": f"at://did:plc:a/{POST}/a@b", "cid": CID},
            "parent": {"uri": f"at://did:plc:a/{POST}/a@b", "cid": CID},
        }), "invalid_uri"),
        (quoting(f"at://did:plc:a/{POST}/1/"), "invalid_uri"),
        (quoting(f"at://did:plc:a/{POST}/1?a=b"), "invalid_uri"),
        (quoting(f"at://did:plc:a/{POST}/1#/%ff"), "invalid_uri"),
        (post(createdAt="20240505T100000Z"), "invalid_datetime"),
        (post(createdAt="0000-01-01T00:00:00+01:00"), "invalid_datetime"),
        (post(createdAt="2024-12-31T23:59:60Z"), "invalid_datetime"),
        (post(createdAt="2024-05-05T10:00:00+0530"), "invalid_datetime"),
        (post(createdAt="2024-05-05T24:00:00Z"), "invalid_datetime"),
        (post(langs=["EN"]), "invalid_language"),
        (post(langs=["sl-rozaj-rozaj"]), "invalid_language"),
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
        post(createdAt="2024-05-05T10:00:00.123456789012345678901234567890Z"),
        post(createdAt=f"2024-05-05T10:00:00.{'1' * 43}Z"),
        quoting(f"at://did:plc:a/{POST}/1#/text"),
        quoting("at://did:plc:a", cid="QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG"),
        quoting("at://did:plc:a", **{"$type": "com.atproto.repo.strongRef"}),
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


@pytest.mark.parametrize(
    ("is_valid", "good", "bad"),
    [
        (is_language, ("en", "zh-min-nan", "en-GB-oed", "de-CH-1996", "x-own", "en-a-bbb-x-a-b"),
         ("en_US", "i-own", "abcd", "en-a-bb-A-cc", "en-", "toolonglang", "en\n")),
        (is_lenient_language, ("EN", "abcd", "sl-rozaj-rozaj", "en-a-bb-a-cc"),
         ("e", "i-own", "en_US", "abcd-efg-hij")),
        (is_uri, ("mailto:a@b.test", "https://ü.test", "x:y", "1a:b", "https://" + "a" * 9_000),
         ("https:// a.test", "a:/b", "a://", "a-b:c", "a:b\u2003c", "a:b\n", "no uri")),
        (is_cid, (CID, "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
                  "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG"),
         ("", "b", "bafy", CID.upper(), CID + "a", "Qm" + "1" * 44,
          "zb2rhk6GMPQF3hfzwXTaNYFLKomMeC6UXdUt6jZKPpeVirLtV")),
        (is_readable_datetime, ("2024-05-05T10:00:00.1234567", "2024-02-29T1000Z"),
         ("2024-05-05", "2023-02-29T10:00:00", "2024-05-05T10:00:00-00:00")),
    ],
)  # fmt: skip
def test_formats(
    is_valid: Callable[[str], bool], good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    assert [text for text in good if not is_valid(text)] == []
    assert [text for text in bad if is_valid(text)] == []


@pytest.mark.parametrize("kind", ["images", "gallery", "video", "external", "record"])
def test_an_embed_of_another_type_gives_no_rows(kind: str) -> None:
    """`#main` belongs to no $type: officially that is an embed of an unknown kind."""
    contents: dict[str, dict[str, Any]] = {
        "images": {"images": [{"image": blob(), "alt": ""}]},
        "gallery": {"items": [{"$type": "app.bsky.embed.gallery#image", "image": blob(),
                               "alt": "", "aspectRatio": {"width": 1, "height": 1}}]},
        "video": {"video": blob("video/mp4")},
        "external": {"external": {"uri": "https://a.test", "title": "", "description": ""}},
        "record": {"record": {"uri": f"at://did:plc:a/{POST}/1", "cid": CID}},
    }  # fmt: skip
    for embed_type, count in ((kind, 1), (f"{kind}#main", 0), (f"{kind}#view", 0)):
        embed = contents[kind] | {"$type": f"app.bsky.embed.{embed_type}"}
        nested = {"$type": "app.bsky.embed.recordWithMedia", "media": embed,
                  "record": {"record": {"uri": "at://did:plc:a", "cid": CID}}}  # fmt: skip
        for embedding in (embed, nested) if kind != "record" else (embed,):
            change = read(post(embed=embedding)).change
            assert isinstance(change, Put)
            tables = {name for name, rows in change.rows.side.items() if rows}
            assert tables.intersection({
                "post_embed_images", "post_embed_image", "post_embed_gallery_image",
                "post_embed_video", "post_embed_external", "quote",
            }) == ({table_of(kind)} if count else set())  # fmt: skip


def table_of(kind: str) -> str:
    names = {"images": "post_embed_image", "gallery": "post_embed_gallery_image", "record": "quote"}
    return names.get(kind, f"post_embed_{kind}")


def read(record: dict[str, Any], nsid: str = POST) -> Reading:
    body = {
        "type": "create", "seq": 1, "time": NOW, "did": "did:plc:a", "commit": CID,
        "rev": "3l3qo2vutsw2b", "collection": nsid, "rkey": "self", "cid": CID, "record": record,
    }  # fmt: skip
    return read_entry({b"event": orjson.dumps(body)}, registry.load())


def test_a_record_has_the_type_of_its_collection() -> None:
    record = post()
    assert read(record).refused is None
    for wrong in ({}, {"$type": None}, {"$type": f"{POST}#main"}, {"$type": "app.bsky.feed.like"}):
        without = {name: value for name, value in record.items() if name != "$type"}
        refused = read(without | wrong).refused
        assert refused is not None
        assert refused.reason == "wrong_type"


def test_every_collection_is_validated() -> None:
    assert all(collection.check is not None for collection in registry.load().values())
    assert len(registry.load()) == 20
    nsid = "chat.bsky.actor.declaration"
    refused = read({"$type": nsid, "allowIncoming": []}, nsid).refused
    assert refused is not None
    assert refused.reason == "wrong_type"
    assert read({"$type": nsid, "allowIncoming": "all"}, nsid).refused is None


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
