"""Every field that a stranger fills, with every odd value: no worker ends, nobody else waits.

Each case is one frame, document, answer or job, or one of its fields. All cases of a kind are met
in one run, with what is good among and behind them, on real stores.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
from trio_websocket import WebSocketConnection

from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.database.connection import Database
from rsky_pipeline.streams.connection import connect
from tests.integration.backfiller.hosts import FakeHosts, Reply
from tests.integration.backfiller.kit import (
    backfiller,
    document,
    eventually,
    make_repo,
    output,
    queue,
    quick_settings,
    settled,
)
from tests.integration.indexer.worker import indexing
from tests.integration.ingester.relay import KEY, TIME, Behaviour, Relay, like, rev, running
from tests.integration.ingester.worker import ingesting, value
from tests.stores import redis_client

GOOD = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
BAD = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"

# --- values -----------------------------------------------------------------------------------


def _long_text(length: int) -> bytes:
    return b"\x7a" + length.to_bytes(4, "big") + b"a" * length


# As CBOR, since no encoder makes most of them.
CBOR = {
    "empty": b"\x60",
    "nul": b"\x63a\0b",
    "only_nul": b"\x61\0",
    "bidi": encode("\u202egnp.\u2066x"),
    "escapes": encode("\x1b]0;x\x07\r\n"),
    "astral": encode("\U0001f600\ufffe"),
    "surrogate": b"\x63\xed\xa0\x80",
    "no_utf8": b"\x62\xff\xfe",
    "long": _long_text(200_000),
    "beyond_an_index": _long_text(3_000),
    "path": encode("../../../etc/passwd"),
    "uri": encode(f"at://{GOOD}/app.bsky.feed.post/3jzfcijpj2z2a#/x?y"),
    "placeholder": encode("%s %b {0} $1 '; DROP TABLE record; --"),
    "web_dots": encode("did:web:a..b"),
    "web_root": encode("did:web:odd.invalid."),
    "web_port": encode("did:web:odd.invalid%3A99999"),
    "web_label": encode(f"did:web:{'a' * 64}.invalid"),
    "web_nul": encode("did:web:a\0b.invalid"),
    "other_method": encode("did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme"),
    "long_did": encode("did:plc:" + "a" * 2_030),
    "short_rev": encode("3jzfcijpj2z2"),
    "first_rev": encode("2222222222222"),
    "no_day": encode("2026-02-30T00:00:00Z"),
    "first_day": encode("0000-01-01T00:00:00.000Z"),
    "zero": b"\x00",
    "negative": b"\x20",
    "int64": b"\x1b\x7f\xff\xff\xff\xff\xff\xff\xff",
    "beyond_int64": b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff",
    "below_int64": b"\x3b\xff\xff\xff\xff\xff\xff\xff\xff",
    "bignum": b"\xc2\x4a" + b"\xff" * 10,
    "nan": b"\xfb\x7f\xf8\0\0\0\0\0\0",
    "infinity": b"\xfb\x7f\xf0\0\0\0\0\0\0",
    "fraction": b"\xfb\x3f\xf8\0\0\0\0\0\0",
    "null": b"\xf6",
    "undefined": b"\xf7",
    "true": b"\xf5",
    "bytes": b"\x43abc",
    "no_bytes": b"\x40",
    "list": b"\x80",
    "list_of_null": b"\x81\xf6",
    "map": b"\xa0",
    "map_without_text": b"\xa1\x00\x00",
    "deep_list": b"\x81" * 3_000 + b"\x00",
    "deep_map": b"\xa1\x61a" * 3_000 + b"\x00",
    "link": encode(Cid.of(b"link")),
    "link_to_nothing": b"\xd8\x2a\x41\x00",
    "link_of_v0": b"\xd8\x2a\x58\x23\x00\x12\x20" + bytes(32),
    "unknown_tag": b"\xd9\xff\xff\x00",
    "cut": b"\x1b\x00",
    "indefinite": b"\x9f\x00\xff",
}
MISSING = None  # in place of a value: the field is left out

LONG = "a" * 1_000_000
JSON: dict[str, Any] = {
    "empty": "", "nul": "a\0b", "bidi": "\u202egnp.\u2066x", "surrogate": "\ud800",
    "escapes": "\x1b]0;x\x07\r\n", "long": LONG[:200_000], "beyond_an_index": LONG[:3_000],
    "zero": 0, "negative": -1, "beyond_int64": 2**70, "nan": float("nan"),
    "infinity": float("inf"), "null": None, "true": True, "list": [], "list_of_null": [None],
    "map": {}, "odd_map": {"": {"": None}}, "url": "https://a\0b.com", "port": "https://x:99999",
    "brackets": "https://[::1", "userinfo": "https://a:b@c@d", "handle": "at://..",
    "did": "did:web:%00", "unicode_host": "https://xn--\u202e.com", "script": "javascript:x",
    "placeholder": "%s %b {0} $1 '; --",
}  # fmt: skip


def frame(kind: str, body: Mapping[str, bytes], header: Mapping[str, bytes] | None = None) -> bytes:
    """Return a frame whose values are encoded already."""
    return _map(header or {"op": b"\x01", "t": encode(kind)}) + _map(body)


def _map(fields: Mapping[str, bytes]) -> bytes:
    keys = sorted(fields, key=lambda key: (len(key), key))
    return bytes([0xA0 + len(keys)]) + b"".join(encode(key) + fields[key] for key in keys)


def bodies(seq: int) -> dict[str, dict[str, bytes]]:
    """Return a good body of each kind of message."""
    about = {"seq": encode(seq), "did": encode(BAD), "time": encode(TIME)}
    op = {"action": encode("create"), "path": encode("app.bsky.feed.like/a"),
          "cid": encode(Cid.of(b"x")), "prev": encode(None)}  # fmt: skip
    label = {"src": encode(BAD), "uri": encode(BAD), "val": encode("spam"), "cts": encode(TIME),
             "cid": encode(str(Cid.of(b"x"))), "ver": encode(1), "neg": encode(False),
             "exp": encode(TIME), "sig": encode(b"x" * 64)}  # fmt: skip
    return {
        "#commit": {
            "seq": encode(seq), "repo": encode(BAD), "time": encode(TIME), "rev": encode(rev(seq)),
            "since": encode(None), "commit": encode(Cid.of(b"c")), "blocks": encode(b""),
            "ops": b"\x81" + _map(op), "prevData": encode(Cid.of(b"d")), "tooBig": encode(False),
            "rebase": encode(False), "blobs": b"\x80",
        },
        "op": op,
        "#sync": about | {"rev": encode(rev(seq)), "blocks": encode(b"")},
        "#identity": about | {"handle": encode("a.test")},
        "#account": about | {"active": encode(False), "status": encode("takendown")},
        "#tombstone": about,
        "#handle": about | {"handle": encode("a.test")},
        "#info": {"name": encode("OutdatedCursor?"), "message": encode("m")},
        "#labels": {"seq": encode(seq), "labels": b"\x81" + _map(label)},
        "label": label,
    }  # fmt: skip


def made(kind: str, fields: Mapping[str, bytes], seq: int) -> bytes:
    """Return the frame of a message, or of one whose operation or label has these fields."""
    if kind == "op":
        return frame("#commit", bodies(seq)["#commit"] | {"ops": b"\x81" + _map(fields)})
    if kind == "label":
        return frame("#labels", bodies(seq)["#labels"] | {"labels": b"\x81" + _map(fields)})
    return frame(kind, fields)


def odd_frames(kinds: Mapping[str, Any], first: int) -> Iterator[tuple[int, bytes]]:
    """Yield a frame for each field and value, with rising sequence numbers."""
    seq = first
    for kind, fields in kinds.items():
        for field in fields:
            for odd in (*CBOR.values(), MISSING):
                body = dict(bodies(seq)[kind])
                if odd is MISSING:
                    del body[field]
                else:
                    body[field] = odd
                yield seq, made(kind, body, seq)
                seq += 1
    for field in ("op", "t"):
        for odd in CBOR.values():
            header = {"op": b"\x01", "t": encode("#identity")} | {field: odd}
            yield seq, frame("", bodies(seq)["#identity"], header)
            seq += 1
    for kind in kinds:  # cut anywhere
        whole = made(kind, bodies(seq)[kind], seq)
        for end in range(0, len(whole), 7):
            yield seq, whole[:end]
            seq += 1


# --- frames of relays and labelers ------------------------------------------------------------


@pytest.mark.parametrize("verify", ["none", "full"])
async def test_fields_of_frames(clean_redis: str, schema_database: str, verify: str) -> None:
    """From the socket to the rows: what is odd and written is read by the indexer as well."""
    of_relay = {kind: body for kind, body in bodies(0).items() if kind not in ("#labels", "label")}
    of_labeler = {kind: bodies(0)[kind] for kind in ("#labels", "label", "#info")}
    relays = list(odd_frames(of_relay, 2))
    labels = list(odd_frames(of_labeler, 2))
    # What cannot be read has no number: three good ones confirm the step.
    behind = [(relays[-1][0] + more, like(relays[-1][0] + more, repo=GOOD)) for more in (1, 2, 3)]
    relay = Relay([(1, like(1, repo=GOOD)), *relays, *behind])
    last_labels = [labels[-1][0] + more for more in (1, 2, 3)]
    labeler = Relay([*labels, *((seq, made("label", bodies(seq)["label"], seq))
                                for seq in last_labels)])  # fmt: skip
    with FakeHosts() as hosts:
        for did in (GOOD, BAD):
            hosts.add(did, document(did, KEY), b"")
        options: dict[str, Any] = {
            "verify": verify, "plc_url": hosts.url, "label_signatures": "check",
        }  # fmt: skip
        async with (
            running(relay),
            running(labeler),
            ingesting(clean_redis, relay.url, labeler_hosts=(labeler.url,), **options) as ingester,
        ):
            cursors = {
                f"firehose_live:cursor:127.0.0.1:{relay.port}": behind[-1][0],
                f"label_live:cursor:127.0.0.1:{labeler.port}": last_labels[-1],
            }
            await eventually(
                lambda: all(value(clean_redis, key) == str(seq) for key, seq in cursors.items()),
                120,
            )
            assert not ingester.ended.is_set()
            assert ingester.metric("ingester_error_reasons_total", reason="internal_error") == 0
            assert (len(relay.cursors), len(labeler.cursors)) == (1, 1)
        async with indexing(
            clean_redis, schema_database, plc_url=hosts.url, allow_private_hosts=True
        ) as indexer:
            await eventually(lambda: not waiting_entries(clean_redis), 120)
            assert not indexer.ended.is_set()
            assert indexer.metric("indexer_refused_total", reason="internal_error") == 0
    with Database.connect(schema_database, name="test") as database:
        query = 'SELECT count(*) FROM "like" WHERE creator = %s'
        expected = 4 if verify == "none" else 0  # no tree is in these commits
        assert database.query(query, [GOOD]) == [(expected,)]
        assert database.query("SELECT count(*) FROM label WHERE src = %s", [BAD]) != [(0,)]


def waiting_entries(redis_url: str) -> int:
    """Return how many entries the indexer has not finished."""
    with redis_client(redis_url) as client:
        return sum(client.xlen(name) for name in ("firehose_live", "label_live"))


async def test_error_frames_and_reasons_for_closing(clean_redis: str) -> None:
    """They end the connection of their host, which is made again; another relay goes on."""

    def ending(odd: bytes) -> Behaviour:
        async def behave(relay: Relay, socket: WebSocketConnection, cursor: int | None) -> None:
            if len(relay.cursors) == 1:
                error = frame("", {"error": odd, "message": odd}, {"op": b"\x20"})
                await socket.send_message(error)
                await socket.aclose(4_321, odd[3:].decode("utf-8", "replace")[:40])
            else:
                await relay.replay(socket, cursor)

        return behave

    relays = [Relay([(1, like(1, repo=GOOD))])]
    relays += [
        Relay([(1, like(1, repo=BAD))], behaviour=ending(CBOR[name]))
        for name in ("nul", "bidi", "escapes", "long", "surrogate", "null", "map")
    ]
    await all_are_read(clean_redis, relays, relays)


async def test_headers_of_a_refused_upgrade(clean_redis: str) -> None:
    good, bad = Relay([(1, like(1, repo=GOOD))]), []
    for status in (302, 429, 503):
        for name, text in (
            *(("Retry-After", text) for text in ("9" * 400, "-1", "nan", "1e308", "1 Jan 99999")),
            *(("Location", text) for text in ("\x80" * 2_000, "http://[::1", "//")),
            ("Content-Type", "\xff"), ("Date", "1 Jan 99999"),
        ):  # fmt: skip
            bad.append(Relay(reject_with=(status, [(name.encode(), text.encode("latin-1"))])))
    await all_are_read(clean_redis, [good, *bad], [good])
    assert all(relay.cursors for relay in bad)


async def all_are_read(redis_url: str, relays: Sequence[Relay], expected: Sequence[Relay]) -> None:
    """Follow relays until the only event of some is read."""
    async with AsyncExitStack() as stack:
        for relay in relays:
            await stack.enter_async_context(running(relay))
        async with ingesting(redis_url, *(relay.url for relay in relays)) as ingester:
            keys = [f"firehose_live:cursor:127.0.0.1:{relay.port}" for relay in expected]
            await eventually(lambda: all(value(redis_url, key) == "1" for key in keys), 120)
            await eventually(lambda: all(relay.cursors for relay in relays), 120)
            assert not ingester.ended.is_set()
            reason = "internal_error"
            assert ingester.metric("ingester_error_reasons_total", reason=reason) == 0


# --- documents, answers and jobs --------------------------------------------------------------


def bad_did(number: int) -> str:
    """Return the DID of an account by its number."""
    name = "".join(ascii_lowercase[number // 26**place % 26] for place in range(3))
    return f"did:plc:{f'z{name}' * 6}"


def odd_documents() -> dict[str, Any]:
    """Return documents by DID: each field, and each field of its parts, with each odd value."""
    found: dict[str, Any] = {}

    def add(document: Any) -> None:
        found[bad_did(len(found))] = document

    base = document(BAD)
    service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer",
               "serviceEndpoint": "https://pds.invalid"}  # fmt: skip
    base["service"] = [service]
    for odd in JSON.values():
        add(odd)
        for field in base:
            add(base | {field: odd})
        for field in service:
            add(base | {"service": [service | {field: odd}]})
        for field in base["verificationMethod"][0]:
            add(base | {"verificationMethod": [base["verificationMethod"][0] | {field: odd}]})
        add(base | {"alsoKnownAs": [odd]})
    return found


def completed(did: str, document: Any) -> Any:
    """Return a document that names its own DID, where it has a text that named one."""
    if isinstance(document, dict) and document.get("id") == BAD:
        return document | {"id": did}
    return document


@pytest.mark.long  # most of the time is pauses between tries
@pytest.mark.timeout(900)
async def test_documents_of_accounts(
    clean_redis: str, schema_database: str, tmp_path: Path
) -> None:
    """Asked for by the backfiller, and by the indexer for handles and deletions."""
    documents = odd_documents()
    with FakeHosts() as hosts, closing(connect(clean_redis, name="test")) as store:
        hosts.add(GOOD, document(GOOD), make_repo(GOOD, 3)[0])
        for did, odd in documents.items():
            hosts.documents[did] = completed(did, odd)
        settings = replace(
            quick_settings(clean_redis, schema_database, hosts, tmp_path),
            backfiller_retry_max_ms=20, allow_private_hosts=True,
        )  # fmt: skip
        async with backfiller(settings) as running_one:
            queue(store, *list(documents)[:200], GOOD, *list(documents)[200:])
            await settled(store, 400)
        assert running_one.value("failures_total", reason="internal_error") == 0
        assert {event["did"] for event in output(store)} == {GOOD}
        with Database.connect(schema_database, name="test") as database:
            outcomes = "SELECT count(*) FROM rsky_pipeline.backfill_repo"
            assert database.query(outcomes) == [(len(documents) + 1,)]
            for table in ("handle_check", "deletion_check"):
                database.execute(
                    f"INSERT INTO rsky_pipeline.{table} (did) SELECT * FROM unnest(%b::text[])",
                    [[*documents, GOOD]],
                )
            ready = "SELECT count(*) FROM rsky_pipeline.{} WHERE requested_at <= now()"
            async with indexing(
                clean_redis, schema_database, plc_url=hosts.url, allow_private_hosts=True
            ) as indexer:
                for table in ("handle_check", "deletion_check"):
                    await eventually(
                        lambda table=table: database.query(ready.format(table)) == [(0,)],  # type: ignore[misc]
                        400,
                    )
                assert not indexer.ended.is_set()
                assert indexer.metric("indexer_refused_total", reason="internal_error") == 0


def answers() -> dict[str, Reply]:
    """Return odd answers of a PDS by name: statuses, headers and bodies."""
    found: dict[str, Reply] = {}
    for name, odd in JSON.items():
        body = json.dumps({"error": odd, "message": odd}).encode()
        found[f"error {name}"] = (400, {}, body)
        found[f"body {name}"] = (200, {}, json.dumps(odd).encode())
    texts = ["", "\x00", "-1", "nan", "1e308", "9" * 300, "Mon, 01 Jan 0001 00:00:00 -0000",
             "1 Jan 99999", "\xff\xfe", "a" * 7_000]  # fmt: skip
    for header in ("Retry-After", "Date", "Content-Type", "Content-Encoding", "Location",
                   "RateLimit", "RateLimit-Reset", "RateLimit-Remaining"):  # fmt: skip
        for text in texts:
            for status in (200, 302, 400):
                found[f"{header} {text[:20]!r} {status}"] = (status, {header: text}, b"{}")
    return found


async def test_answers_of_hosts(clean_redis: str, schema_database: str, tmp_path: Path) -> None:
    found = answers()
    bad = {bad_did(number): reply for number, reply in enumerate(found.values())}
    with (
        FakeHosts() as hosts,
        FakeHosts() as others,
        closing(connect(clean_redis, name="test")) as store,
    ):
        hosts.add(GOOD, document(GOOD), make_repo(GOOD, 3)[0])
        for did, reply in bad.items():
            others.add(did, document(did), b"")
            hosts.documents[did] = others.documents[did]
            others.replies[did] = [lambda reply=reply: reply] * 99  # type: ignore[misc]
        settings = replace(
            quick_settings(clean_redis, schema_database, hosts, tmp_path),
            backfiller_retry_max_ms=20,
        )
        async with backfiller(settings) as running_one:
            queue(store, *bad, GOOD)
            await eventually(lambda: bool(output(store)), 120)
            await eventually(lambda: not running_one.value("repos_running"), 120)
        assert running_one.value("failures_total", reason="internal_error") == 0
        assert {event["did"] for event in output(store)} == {GOOD}


async def test_fields_of_jobs_and_events(clean_redis: str, schema_database: str) -> None:
    """As other programs may write them: each field of each entry, with each odd value."""
    payloads: dict[str, list[bytes]] = {"event": [], "labels": []}
    event = {"type": "create", "seq": 1, "time": TIME, "did": BAD, "commit": str(Cid.of(b"c")),
             "rev": rev(1), "collection": "app.bsky.feed.like", "rkey": "a",
             "cid": str(Cid.of(b"x")), "record": {"$type": "app.bsky.feed.like"}}  # fmt: skip
    account = {"type": "account", "seq": 1, "time": TIME, "did": BAD, "active": False,
               "status": "takendown", "relay": "relay.test"}  # fmt: skip
    identity = {"type": "identity", "seq": 1, "time": TIME, "did": BAD, "handle": "a.test"}
    label = {"src": BAD, "uri": BAD, "cid": "", "val": "x", "neg": False, "cts": TIME, "exp": TIME}
    for odd in JSON.values():
        for base in (event, account, identity):
            payloads["event"] += [json.dumps(base | {field: odd}).encode() for field in base]
        payloads["labels"] += [
            json.dumps({"seq": 1, "labels": [label | {field: odd}]}).encode() for field in label
        ]
        payloads["labels"].append(json.dumps({"seq": odd, "labels": odd}).encode())
    subject = {"uri": f"at://{GOOD}/app.bsky.feed.post/x", "cid": str(Cid.of(b"p"))}
    record = {"$type": "app.bsky.feed.like", "createdAt": TIME, "subject": subject}
    good = event | {"did": GOOD, "record": record}
    payloads["event"].append(json.dumps(good).encode())
    with redis_client(clean_redis) as client, client.pipeline(transaction=False) as pipeline:
        for field, stream in (("event", "firehose_live"), ("labels", "label_live")):
            for payload in payloads[field]:
                pipeline.xadd(stream, {field: payload})
        pipeline.execute()
    async with indexing(clean_redis, schema_database) as indexer:
        await eventually(lambda: not waiting_entries(clean_redis), 120)
        assert not indexer.ended.is_set()
        assert indexer.metric("indexer_refused_total", reason="internal_error") == 0
    with Database.connect(schema_database, name="test") as database:
        query = 'SELECT count(*) FROM "like" WHERE creator = %s'
        assert database.query(query, [GOOD]) == [(1,)]
