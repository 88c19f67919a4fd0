"""Inputs as the network sends them: recorded ones where there are some, else the simulator's."""

import os
from functools import cache
from pathlib import Path

import orjson

from rsky_pipeline.atproto import car, cbor
from rsky_pipeline.atproto.dagjson import to_json
from rsky_pipeline.atproto.frame import CommitMessage, LabelsMessage, Message, decode_frame
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.ingester.frames import FrameCounters, RawDeadLetters
from rsky_pipeline.ingester.labels import LabelConverter
from tests.data_frames import corpus_documents, corpus_frames, split_frames
from tests.unit.ingester.support import Converting
from tests.unit.simulator.networks import small_world

DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
PDS = "https://pds.example-host.com"
MOST = 40  # of a kind
MOST_BYTES = 20_000  # of one: larger ones are slow, and not different

_TEXTS = [
    DID, "did:web:example.com", "example.bsky.social", "app.bsky.feed.post", "3mptbypluud2a",
    f"at://{DID}/app.bsky.feed.post/3mptbypluud2a", "app.bsky.feed.post/3mptbypluud2a",
    "2026-07-04T14:38:08.999Z", "2026-07-04T14:38:08+02:00", "en-US",
    "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm",
]  # fmt: skip


def _recorded(name: str) -> Path | None:
    path = Path(os.environ.get("RSKY_TEST_DATA") or "/nonexistent", name)
    return path if path.exists() else None


@cache
def _world() -> World:
    return small_world()


@cache
def _messages() -> list[tuple[bytes, Message]]:
    corpus, window = _recorded("fixtures/jetstream/corpus"), _recorded("recorded/firehose.frames")
    raws = [_world().step() for _ in range(300)]
    if corpus is not None and window is not None:
        raws = corpus_frames(corpus) + split_frames(window.read_bytes(), ">I")[:2_000] + raws[:20]
    return [(raw, decode_frame(raw)) for raw in raws if len(raw) < MOST_BYTES]


@cache
def frames() -> list[bytes]:
    """Frames of a relay, as many of each kind."""
    kinds: dict[type, list[bytes]] = {}
    for raw, message in _messages():
        kinds.setdefault(type(message), []).append(raw)
    return [raw for kind in kinds.values() for raw in kind[:: len(kind) // 12 + 1]]


@cache
def label_frames() -> list[bytes]:
    """Frames of a labeler."""
    recorded = _recorded("recorded/labels.frames")
    if recorded is None:
        return [_world().labeler.step() for _ in range(20)]
    return split_frames(recorded.read_bytes(), ">I")[:MOST]


@cache
def labels() -> list[bytes]:
    """Labels of these frames."""
    messages = [decode_frame(raw) for raw in label_frames()]
    found = [it for one in messages if isinstance(one, LabelsMessage) for it in one.labels]
    return [cbor.encode(label) for label in found[:MOST]]


@cache
def documents() -> list[bytes]:
    """DID documents."""
    corpus = _recorded("fixtures/jetstream/corpus")
    if corpus is not None:
        return [orjson.dumps(it) for it in list(corpus_documents(corpus).values())[:MOST]]
    world = _world()
    found = [world.document(account.did, PDS, PDS) for account in world.accounts]
    return [orjson.dumps(it) for it in [*found, world.labeler.document(PDS)]]


@cache
def dids() -> list[bytes]:
    """DIDs of both methods."""
    return [DID.encode(), b"did:web:example.com", b"did:web:localhost%3A2583"]


@cache
def urls() -> list[bytes]:
    """URLs, and paths that redirects name."""
    return [
        PDS.encode(), b"http://localhost:2583/xrpc/a.b.c?did=did:plc:a&since=b", b"/xrpc/a.b.c",
        b"//other.host/path", b"wss://[2606:4700::1111]:443/", b"https://93.184.216.34:8443/a#b",
    ]  # fmt: skip


@cache
def handles() -> list[bytes]:
    """Handles, and TXT records."""
    return [b"example.bsky.social", b"xn--bcher-kva.example.com", b"did=" + DID.encode() + b"\na=b"]


@cache
def headers() -> list[bytes]:
    """Heads of responses."""
    return [
        b"ratelimit-limit: 3000\nratelimit-remaining: 2999\nratelimit-reset: 1783175900",
        b'ratelimit: "default";r=50;t=30\nratelimit-policy: "default";q=100;w=60',
        b"retry-after: 120", b"Retry-After: Wed, 21 Oct 2026 07:28:00 GMT",
    ]  # fmt: skip


@cache
def _commits() -> list[CommitMessage]:
    found = [it for _, it in _messages() if isinstance(it, CommitMessage) and it.ops]
    return found[:: len(found) // MOST + 1]


@cache
def cars() -> list[bytes]:
    """The CARs of commits, and small repos as a whole."""
    world = _world()
    repos = [world.car(account.did) for account in world.accounts if account.born]
    return [it.blocks for it in _commits()] + [car for car in repos if len(car) < MOST_BYTES]


@cache
def _blocks() -> list[tuple[bytes, str]]:
    found: list[tuple[bytes, str]] = []
    for message in _commits():
        blocks = car.read_car(message.blocks).blocks
        named = {op.cid for op in message.ops} & blocks.keys()
        for cid, block in blocks.items():
            kind = "commit" if cid == message.commit else "record" if cid in named else "node"
            found.append((block, kind))
    return found


@cache
def commits() -> list[bytes]:
    """Commit objects."""
    return [block for block, kind in _blocks() if kind == "commit"]


@cache
def nodes() -> list[bytes]:
    """Nodes of trees."""
    return [block for block, kind in _blocks() if kind == "node"][: 2 * MOST]


@cache
def records() -> list[bytes]:
    """Records."""
    return [block for block, kind in _blocks() if kind == "record"]


@cache
def pages() -> list[bytes]:
    """Pages of listRepos."""
    repos = [
        {"did": it.did, "head": str(it.commit), "rev": it.rev, "active": True} for it in _commits()
    ]
    repos.append({"did": DID, "rev": "3mptbypluud2a", "active": False, "status": "takendown"})
    return [orjson.dumps({"cursor": "1001", "repos": repos}), b'{"repos": []}']


@cache
def _entries(field: bytes) -> list[bytes]:
    made = Converting()
    labeler = LabelConverter("labeler.test", FrameCounters(), RawDeadLetters("raw"))
    written = [made.convert(raw) for raw in frames()]
    written += [labeler.convert(raw) for raw in label_frames()]
    return [entry.payload for one in written for entry in one.entries if entry.field == field]


@cache
def events() -> list[bytes]:
    """Entries of `firehose_live`, and a record of each kind that was seen."""
    return _entries(b"event")


@cache
def label_entries() -> list[bytes]:
    """Entries of `label_live`."""
    return _entries(b"labels")


@cache
def repo_jobs() -> list[bytes]:
    """Entries of `repo_backfill`."""
    job = {
        "did": DID, "host": PDS, "rev": "3mptbypluud2a", "status": None, "active": True,
        "deleted": ["app.bsky.feed.like/3mptbypluud2a"], "reason": "gap", "attempts": 2,
        "settles": 1,
    }  # fmt: skip
    return [to_json(job), *_entries(b"repo")[:MOST]]


@cache
def texts() -> list[bytes]:
    """Identifiers."""
    return [text.encode() for text in _TEXTS]


def seen() -> list[bytes]:
    """Bodies of UpdateNotificationSeen, as the official bsync sends them."""
    time = b"\x08\xd9\xd1\xeb\xcf\x06\x10\xc0\xa9\xd3:"
    bodies = []
    for account in (DID, "did:web:example.com"):
        message = b"\n" + bytes([len(account)]) + account.encode() + b"\x12\x0b" + time
        bodies.append(b"\0" + len(message).to_bytes(4, "big") + message)
    return bodies
