"""Whole records of strangers on their way into the real tables: each costs at most itself."""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rsky_pipeline.configuration.settings import Validation
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.values import Put as State
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import Reading, read_entry
from rsky_pipeline.indexer.core.labels import apply_labels, read_labels
from rsky_pipeline.indexer.core.rejected import RejectionFilter, list_rejections
from rsky_pipeline.observability.indexer import REFUSALS
from tests.integration.indexer.kit import (
    Network,
    Put,
    Tables,
    cid_of,
    did_of,
    mention,
    time_of,
)
from tests.integration.indexer.snapshot import clear

Path = tuple[str | int, ...]

POST = f"at://{did_of('ann')}/app.bsky.feed.post/3jzfcijpj2z2a"
LIST = f"at://{did_of('ann')}/app.bsky.graph.list/3jzfcijpj2z2a"
REFERENCE = {"uri": POST, "cid": cid_of("post")}
RAW = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
BLOB = {"$type": "blob", "ref": {"$link": RAW}, "mimeType": "image/png", "size": 1}
IMAGE = {"image": BLOB, "alt": "alt", "aspectRatio": {"width": 1, "height": 1}}
EXTERNAL = {"uri": "https://a.test", "title": "t", "description": "d", "thumb": BLOB}
SHOWN = {"$type": "app.bsky.embed.external", "external": EXTERNAL}
PROFILE = {"displayName": "n", "description": "d", "avatar": BLOB, "banner": BLOB,
           "joinedViaStarterPack": REFERENCE, "pinnedPost": REFERENCE}  # fmt: skip
NAMED = {"description": "d", "descriptionFacets": mention("bob"), "avatar": BLOB}


def embedding(kind: str, **fields: Any) -> dict[str, Any]:
    """Return a post with everything that posts can have, and one kind of embed."""
    return {
        "text": "hello", "langs": ["en"], "tags": ["t"], "facets": mention("bob", "cyd"),
        "reply": {"root": REFERENCE, "parent": REFERENCE},
        "embed": {"$type": f"app.bsky.embed.{kind}", **fields},
    }  # fmt: skip


GALLERY = {**IMAGE, "$type": "app.bsky.embed.gallery#image"}
MEDIA = {"$type": "app.bsky.embed.images", "images": [IMAGE]}
WHOLE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("feed.post", embedding("images", images=[IMAGE, IMAGE])),
    ("feed.post", embedding("gallery", items=[GALLERY])),
    ("feed.post", embedding("video", video={**BLOB, "mimeType": "video/mp4"}, alt="a")),
    ("feed.post", embedding("external", external=EXTERNAL)),
    ("feed.post", embedding("record", record=REFERENCE)),
    ("feed.post", embedding("recordWithMedia", record={"record": REFERENCE}, media=MEDIA)),
    ("feed.like", {"subject": REFERENCE, "via": REFERENCE}),
    ("feed.repost", {"subject": REFERENCE, "via": REFERENCE}),
    ("graph.follow", {"subject": did_of("bob")}),
    ("graph.block", {"subject": did_of("bob")}),
    ("actor.profile", PROFILE),
    ("graph.list", {"name": "l", "purpose": "p", **NAMED}),
    ("graph.listitem", {"list": LIST, "subject": did_of("bob")}),
    ("graph.listblock", {"subject": LIST}),
    ("graph.referencelistoptout", {"subject": LIST}),
    ("feed.generator", {"did": "did:web:f.test", "displayName": "n", **NAMED}),
    ("graph.starterpack", {"name": "s", "list": LIST, "feeds": [{"uri": POST}]}),
    ("labeler.service", {"policies": {"labelValues": ["spam"]}, "reasonTypes": ["x"]}),
    ("feed.threadgate", {"post": POST, "allow": [], "hiddenReplies": [POST]}),
    ("feed.postgate", {"post": POST, "embeddingRules": [], "detachedEmbeddingUris": [POST]}),
    ("graph.verification", {"subject": did_of("bob"), "handle": "b.test", "displayName": "b"}),
    ("actor.status", {"status": "live", "embed": SHOWN, "durationMinutes": 5}),
    ("notification.declaration", {"allowSubscriptions": "none"}),
)

DATES = (
    "", "now", "2024-01-01", "2024-02-30T00:00:00Z", "2024-01-01T00:00:00", "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59-23:59",
    "10000-01-01T00:00:00Z", "-0001-01-01T00:00:00Z", "2024-01-01T24:00:00Z", "2024-13-01T00:00Z",
    "2024-01-01T00:00:60Z", "٢٠٢٤-01-01T00:00:00Z", "2024-01-01T00:00:00.123456789123Z", "\0",
    "2024-01-01T00:00:00Z\0", "1" * 5_000, "2024-01-01 00:00:00 UTC",
)  # fmt: skip
TEXTS = (
    "", "\0", "nul\0 inside", "\ud800", "lone \udfff", "\U0001f600" * 400, "x" * 700, "x" * 4_000,
    "at://", f"at://{'x' * 3_000}", f"{POST}\0", f"{POST}{'é' * 1_000}", "https://" + "a" * 9_000,
    "did:plc:" + "z" * 3_000, "did:plc:\0", "did:", did_of("ann"), POST, LIST,
    "{}", "null", "NaN", "'; DROP TABLE record", "\\", "\\u0000",
)  # fmt: skip
hostile = st.recursive(
    st.none() | st.booleans() | st.sampled_from((0, -1, 2**31, 2**53, 2**63 - 1, -(2**63)))
    | st.sampled_from((0.5, 1e308, -0.0)) | st.sampled_from(TEXTS) | st.sampled_from(DATES),
    lambda inner: st.lists(inner, max_size=6)
    | st.dictionaries(st.sampled_from(("", "$type", "uri", "cid", "\0", "\ud800", "$link")), inner),
    max_leaves=6,
)  # fmt: skip
RKEYS = (
    "self",
    "3jzfcijpj2z2a",
    "",
    ".",
    "..",
    "a/b",
    "\0",
    "\ud800",
    "x" * 512,
    "x" * 513,
    "é",
    "a b",
)


def paths(value: Any, above: Path = ()) -> Iterator[Path]:
    """Yield the place of every value inside a record."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inside:
        yield (*above, key)
        if isinstance(item, dict | list):
            yield from paths(item, (*above, key))


@st.composite
def hostile_puts(draw: st.DrawFn) -> tuple[str, dict[str, Any], str | None, str]:
    """Return collection, record, rkey (None: one like any other) and time of an event."""
    nsid, whole = draw(st.sampled_from(WHOLE))
    record = copy.deepcopy({"createdAt": time_of(1), **whole})
    for path in draw(st.lists(st.sampled_from(list(paths(record))), min_size=1, max_size=2)):
        _set(record, path, draw(hostile), gone=draw(st.integers(0, 9)) == 0)
    rkey = draw(st.none() | st.none() | st.sampled_from(RKEYS))
    return f"app.bsky.{nsid}", record, rkey, draw(st.just(time_of(2)) | st.sampled_from(DATES))


def _set(record: Any, path: Path, value: Any, *, gone: bool) -> None:
    for key in path[:-1]:
        record = record[key] if _holds(record, key) else None
    if not _holds(record, path[-1]):
        return  # what was there has been replaced before
    if gone and isinstance(record, dict):
        del record[path[-1]]
    else:
        record[path[-1]] = value


def _holds(value: Any, key: str | int) -> bool:
    if isinstance(value, dict):
        return key in value
    return isinstance(value, list) and isinstance(key, int) and key < len(value)


def entry(net: Network, put: tuple[str, dict[str, Any], str | None, str]) -> bytes:
    """Return an event as it may stand in a stream: JSON with escapes for what has no UTF-8."""
    nsid, record, rkey, time = put
    event = json.loads(net.put("eve", nsid, {}).payload)
    event |= {"record": {"$type": nsid, **record}, "time": time}
    event |= {} if rkey is None else {"rkey": rkey}
    return json.dumps(event).encode()


@pytest.mark.parametrize("validation", ["lenient", "strict"])
def test_what_is_spoilt_here_is_good_before(validation: Validation) -> None:
    for nsid, record in WHOLE:
        own = {"post": POST.replace("ann", "eve")} if nsid.endswith("gate") else {}
        own |= {"list": LIST.replace("ann", "eve")} if nsid == "graph.listitem" else {}
        rkey = POST[-13:] if "post" in own else None
        put = (f"app.bsky.{nsid}", {"createdAt": time_of(1), **record, **own}, rkey, time_of(2))
        reading = read_entry({b"event": entry(Network(), put)}, registry.load(validation))
        assert reading.refused is None, reading.refused


@pytest.mark.slow
@pytest.mark.parametrize("validation", ["lenient", "strict"])
@settings(
    max_examples=30, deadline=None, print_blob=True, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                           HealthCheck.data_too_large],
)  # fmt: skip
@given(puts=st.lists(hostile_puts(), min_size=5, max_size=25))
def test_a_hostile_record_costs_at_most_itself(
    tables: Tables,
    validation: Validation,
    puts: Sequence[tuple[str, dict[str, Any], str | None, str]],
) -> None:
    clear(tables)
    net = Network()
    good = [net.post("ann"), net.follow("ann", "bob")]
    payloads = [entry(net, put) for put in puts]
    payloads.insert(len(payloads) // 2, good[0].payload)
    payloads.append(good[1].payload)
    collections = registry.load(validation)
    readings = [read_entry({b"event": item}, collections) for item in payloads]
    apply_batch(tables.database, readings, collections)
    _check_rows(tables, readings, good)
    _check_times(tables)


def _check_rows(tables: Tables, readings: Sequence[Reading], good: Sequence[Put]) -> None:
    stored = {row[0] for row in tables.rows("record", "uri")}
    assert {put.uri for put in good} <= stored
    written = {reading.change.uri for reading in readings if isinstance(reading.change, State)}
    assert stored == written
    refused = [reading.refused for reading in readings if reading.refused is not None]
    assert {item.reason for item in refused} <= set(REFUSALS)
    listed = {
        item.rejection.uri for item in list_rejections(tables.database, RejectionFilter(), 1_000)
    }
    assert listed <= {item.uri for item in refused}
    assert {item.uri for item in refused if item.uri} - listed <= stored, "a newer state stands"


TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_TIME_COLUMNS = """
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = 'bsky' AND table_name !~ 'kysely|view'
    AND (column_name ~ '(At|edAt)$' OR column_name IN ('cts', 'exp'))
    AND data_type = 'character varying'
"""


def _check_times(tables: Tables) -> None:
    columns = tables.database.query(_TIME_COLUMNS)
    assert {("post", "sortAt"), ("verification", "sortedAt"), ("label", "exp")} <= set(columns)
    for table, column in columns:
        for (value,) in tables.database.query(f'SELECT DISTINCT "{column}" FROM "{table}"'):
            assert value is None or TIME.fullmatch(value), (table, column, value)


hostile_labels = st.fixed_dictionaries(
    {},
    optional={
        "src": st.just("did:plc:lab") | hostile, "uri": st.just(POST) | hostile,
        "val": st.just("spam") | hostile, "cid": hostile, "neg": hostile, "exp": hostile,
        "cts": st.just(time_of(1)) | st.sampled_from(DATES),
    },
)  # fmt: skip


@settings(
    max_examples=25, deadline=None, print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(labels=st.lists(hostile_labels, min_size=1, max_size=20))
def test_a_hostile_label_costs_at_most_itself(
    tables: Tables, labels: Sequence[dict[str, Any]]
) -> None:
    clear(tables)
    good = {"src": did_of("lab"), "uri": did_of("ann"), "val": "spam", "cts": time_of(1)}
    readings = []
    for some in ([*labels, good], labels):
        payload = json.dumps({"seq": 1, "labels": some}).encode()
        readings.append(read_labels({b"labels": payload}))
    apply_labels(tables.database, [label for reading in readings for label in reading.labels])
    refused = {error.reason for reading in readings for error in reading.refused}
    assert refused <= set(REFUSALS)
    if "invalid_json" not in refused:  # a lone surrogate makes all of an entry unreadable
        assert (did_of("lab"), did_of("ann")) in tables.rows("label", "src, uri")
    _check_times(tables)
