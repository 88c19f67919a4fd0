"""Golden cases of what is accepted as a post and what is not, by the official rules."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import read_entry
from tests.integration.indexer.golden import Note, expect, note_row
from tests.integration.indexer.kit import (
    Deletion,
    Network,
    Put,
    Tables,
    cid_of,
    did_of,
    rev_of,
    time_of,
)
from tests.unit.indexer.test_lexicon import LINK, blob, facet, images

POST = "app.bsky.feed.post"
HANDLE = {"uri": f"at://ann.test/{POST}/1", "cid": cid_of("post")}
BARE = {"uri": f"at://{did_of('ann')}", "cid": cid_of("repo")}


def apply_strictly(tables: Tables, puts: Sequence[Put]) -> list[str | None]:
    """Apply with the official validation; return why each was refused."""
    collections = registry.load("strict")
    readings = [read_entry({b"event": put.payload}, collections) for put in puts]
    apply_batch(tables.database, readings, collections)
    return [reading.refused.reason if reading.refused else None for reading in readings]


def quoting(reference: dict[str, str]) -> dict[str, Any]:
    return {"$type": "app.bsky.embed.record", "record": reference}


def test_accepted_posts_are_whole_rows(tables: Tables, net: Network) -> None:
    """A reference by handle is taken as it is: the handle is whom it tells and counts for."""
    odd = net.put("bob", POST, {"text": "rkey"}, "not-a-tid")
    quote, bare = net.post("bob", embed=quoting(HANDLE)), net.post("bob", embed=quoting(BARE))
    like = net.put("bob", "app.bsky.feed.like", {"subject": HANDLE})
    puts = [
        net.post("bob", ""), net.post("bob", embed={"$type": "com.example.new"}),
        net.post("bob", facets=facet(**{"$type": "com.example#new"})), odd,
        net.post("bob", embed={"$type": "app.bsky.embed.gallery", "items": []}),
        quote, bare, like,
    ]  # fmt: skip
    assert apply_strictly(tables, puts) == [None] * len(puts)
    told = [
        {**note_row((put, "ann", reason, None)), "did": "ann.test", "reasonSubject": HANDLE["uri"]}
        for put, reason in ((quote, "quote"), (like, "like"))
    ]
    counted = {"uri": HANDLE["uri"], "likeCount": 1, "replyCount": 0, "repostCount": 0,
               "quoteCount": 1, "bookmarkCount": 0}  # fmt: skip
    expect(tables, puts, people={"bob": (0, 0, 7)},
           besides={"notification": told, "post_agg": [counted]})  # fmt: skip


REJECTED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"createdAt": "2024-05-05T10:00:00"}, "invalid_datetime"),
    ({"createdAt": "2024-05-05 10:00:00Z"}, "invalid_datetime"),
    ({"createdAt": "0000-01-01T00:00:00+01:00"}, "invalid_datetime"),
    ({"createdAt": "2024-05-05T10:00:60Z"}, "invalid_datetime"),
    ({"reply": None}, "wrong_type"),
    ({"text": "é" * 301}, "too_long"),
    ({"text": "x" * 3_001}, "too_long"),
    ({"langs": ["not a lang!"]}, "invalid_language"),
    ({"langs": ["en"] * 4}, "too_many_items"),
    ({"embed": images(image=blob("application/pdf"))}, "invalid_blob"),
    ({"embed": images(image=blob(size=2_000_001))}, "invalid_blob"),
    ({"embed": {"$type": "app.bsky.embed.images", "images": [{"image": blob()}]}},
     "missing_field"),
    ({"embed": images(image={"cid": cid_of("x"), "mimeType": "image/png"})}, "invalid_blob"),
    ({"embed": images(5)}, "too_many_items"),
    ({"embed": {"images": []}}, "missing_field"),
    ({"text": None}, "missing_field"),
    ({"facets": facet(**{"$type": LINK, "uri": "no uri"})}, "invalid_uri"),
)  # fmt: skip


def test_rejected_posts_leave_nothing_and_spoil_nothing(tables: Tables, net: Network) -> None:
    post = net.post("ann")
    wrong = [net.post("ann", **fields) for fields, _ in REJECTED]
    update = net.update(post, {"text": 1})  # the state that stood goes on standing
    reasons = apply_strictly(tables, [post, *wrong, update])
    assert reasons == [None, *(reason for _, reason in REJECTED), "wrong_type"]
    came_and_went = [event for put in wrong for event in (put, Deletion(put, put.number))]
    seen = {"repoRev": rev_of(update.number), "commitCid": cid_of(update.number)}
    expect(tables, [post, *came_and_went], people={"ann": (0, 0, 1)},
           changed={did_of("ann"): seen})  # fmt: skip


def test_a_nul_character_is_left_out_and_costs_no_post(tables: Tables, net: Network) -> None:
    """Officially the post is lost."""
    post = net.post("ann", "a\0b")
    assert apply_strictly(tables, [post]) == [None]
    expect(tables, [post], people={"ann": (0, 0, 1)}, changed={post.uri: {"text": "ab"}})


@pytest.mark.parametrize(
    ("created", "stored"),
    [("2023-01-02T21:21:06+09:00", "2023-01-02T12:21:06.000Z"), (None, None)],
)
def test_the_time_of_a_profile_has_the_one_form(
    tables: Tables, net: Network, created: str | None, stored: str | None
) -> None:
    """Officially it is stored as it came; without one it is the indexer's clock."""
    profile = net.put("ann", "app.bsky.actor.profile", {"displayName": "a"}, "self")
    record = {name: value for name, value in profile.record.items() if name != "createdAt"}
    profile = replace(profile, record=record | ({"createdAt": created} if created else {}))
    assert apply_strictly(tables, [profile]) == [None]
    time = {"createdAt": stored or time_of(profile.number)}
    expect(tables, [profile], changed={profile.uri: time})


@pytest.mark.parametrize("history", [False, True])
def test_history_and_live_differ_in_whom_they_tell(tables: Tables, history: bool) -> None:
    net = Network(history=history)
    post = net.post("ann")
    like = net.like("bob", post)
    tables.apply(post, like)
    told: list[Note] = [] if history else [(like, "ann", "like", post)]
    expect(tables, [post, like], told=told, counts=[(post, (1, 0, 0, 0))],
           people={"ann": (0, 0, 1)})  # fmt: skip
