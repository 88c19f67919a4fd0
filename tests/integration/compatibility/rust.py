"""Small models of the Rust services: what they write, and how they read.

Reading follows serde: unknown keys are ignored, a missing or null key is an error unless its type
is an Option (or has a default), a key must not come twice, types are exact.
"""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

LIVE, BACKFILL, REPOS, LABELS = "firehose_live", "firehose_backfill", "repo_backfill", "label_live"
FIREHOSE_GROUP, REPO_GROUP = "firehose_group", "repo_backfill_group"
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_TID = re.compile(r"[234567abcdefghij][234567abcdefghijklmnopqrstuvwxyz]{12}")
_OP = {"seq": int, "time": "time", "did": str, "commit": str, "rev": str, "collection": str,
       "rkey": str}  # fmt: skip
_VARIANTS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # required keys, and those that may be missing or null
    "create": (_OP | {"cid": str, "record": dict}, {}),
    "update": (_OP | {"cid": str, "record": dict}, {}),
    "delete": (_OP, {}),
    "repo": ({"time": "time", "did": str, "commit": str, "rev": str}, {"seq": int}),
    "account": ({"time": "time", "did": str, "active": bool}, {"seq": int, "status": str}),
    "identity": ({"time": "time", "did": str}, {"seq": int, "handle": str}),
}
_JOB = ({"did": str, "host": str, "rev": str, "active": bool}, {"status": str})
_LABEL = ({"src": str, "uri": str, "val": str, "cts": str}, {"cid": str, "neg": bool})


class Refused(ValueError):
    """The Rust services could not read this."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Refused("duplicate field")
    return found


def _struct(body: Any, shape: tuple[Mapping[str, Any], Mapping[str, Any]]) -> dict[str, Any]:
    if type(body) is not dict:
        raise Refused(f"expected a struct, found {body!r}")
    required, optional = shape
    for name in required:
        if body.get(name) is None:
            raise Refused(f"missing field {name}")
    for name, wanted in {**required, **optional}.items():
        value = body.get(name)
        if value is None:
            continue
        if type(value) is not (str if wanted == "time" else wanted):
            raise Refused(f"{name}: {value!r}")
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise Refused(f"{name} is no i64")
        if wanted == "time" and not _RFC3339.fullmatch(value):
            raise Refused(f"{name}: {value!r} is not RFC 3339")
    return body


def read_event(payload: bytes) -> dict[str, Any]:
    """Read the field `event`. Raises Refused."""
    body = json.loads(payload, object_pairs_hook=_unique)
    if not isinstance(body, dict) or body.get("type") not in _VARIANTS:
        raise Refused(f"unknown variant {body!r}")
    event = _struct(body, _VARIANTS[body["type"]])
    if "rev" in event and not _TID.fullmatch(event["rev"]):
        raise Refused(f"rev: {event['rev']!r}")
    return event


def read_job(payload: bytes) -> dict[str, Any]:
    """Read the field `repo`. Raises Refused."""
    return _struct(json.loads(payload, object_pairs_hook=_unique), _JOB)


def read_labels(payload: bytes) -> dict[str, Any]:
    """Read the field `labels`. Raises Refused."""
    shape = ({"seq": int, "labels": list}, dict[str, Any]())
    body = _struct(json.loads(payload, object_pairs_hook=_unique), shape)
    for label in body["labels"]:
        _struct(label, _LABEL)
    return body


def like_event(seq: int, did: str, rev: str, cid: str) -> bytes:
    """Return what rsky-ingester writes for a like: its own time, with nanoseconds."""
    subject = {"cid": cid, "uri": f"at://{did}/app.bsky.feed.post/{seq}"}
    record = {"$type": "app.bsky.feed.like", "createdAt": "2025-11-04T01:02:03.456Z",
              "subject": subject}  # fmt: skip
    body = {
        "type": "create", "seq": seq, "time": "2025-11-04T01:02:03.456789012+00:00", "did": did,
        "commit": cid, "rev": rev, "collection": "app.bsky.feed.like", "rkey": f"k{seq}",
        "cid": cid, "record": record,
    }  # fmt: skip
    return json.dumps(body, separators=(",", ":")).encode()


def job(did: str) -> bytes:
    """Return what rsky-ingester's enumeration writes for a repo."""
    body = {"did": did, "host": "https://bsky.network", "rev": "3jzfcijpj2z2a", "status": None,
            "active": True}  # fmt: skip
    return json.dumps(body, separators=(",", ":")).encode()


class Ingester:
    """Appends events and the cursor that covers them in one MULTI."""

    def __init__(self, client: Redis, host: str) -> None:
        self._client = client
        self._key = f"{LIVE}:cursor:{host}"

    def cursor(self) -> int:
        """Return where it would subscribe; an absent key means 0."""
        found: Any = self._client.get(self._key)
        return int(found or 0)

    def write(self, events: Mapping[int, bytes]) -> None:
        """Write what follows the stored cursor."""
        after = self.cursor()
        fresh = {seq: payload for seq, payload in events.items() if seq > after}
        with self._client.pipeline(transaction=True) as pipeline:
            for payload in fresh.values():
                pipeline.xadd(LIVE, {"event": payload})
            pipeline.set(self._key, max(fresh))
            pipeline.execute()


@dataclass
class Consumer:
    """Reads a stream as rsky-indexer and rsky-backfiller do: own pending, then new; ack, delete."""

    client: Redis
    stream: str
    group: str
    name: str
    key: str
    processed: list[dict[str, Any]] = field(default_factory=list)

    def run(self, *, at_most: int = 10_000, die_holding: int = 0) -> None:
        """Process until nothing is left, or so many; then read some more and die with them."""
        with contextlib.suppress(ResponseError):  # BUSYGROUP
            self.client.xgroup_create(self.stream, self.group, "0", mkstream=True)
        for position in ("0", ">"):
            while len(self.processed) < at_most:
                page = self._page(position, min(500, at_most - len(self.processed)))
                if not page:
                    break
                self._process(page)
        if die_holding:
            assert len(self._page(">", die_holding)) == die_holding
        elif self.client.xlen(self.stream):
            self._trim()

    def _page(self, position: str, count: int) -> Sequence[tuple[bytes, dict[bytes, bytes]]]:
        reply: Any = self.client.xreadgroup(
            self.group, self.name, {self.stream: position}, count=count
        )
        return reply[0][1] if reply else []

    def _process(self, page: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> None:
        read = {"event": read_event, "repo": read_job, "labels": read_labels}[self.key]
        for entry_id, fields in page:
            self.processed.append(read(fields[self.key.encode()]))
            self.client.xack(self.stream, self.group, entry_id)
            self.client.xdel(self.stream, entry_id)

    def _trim(self) -> None:
        """Trim at the last delivered id after a batch, as the Rust indexer does."""
        groups: Any = self.client.xinfo_groups(self.stream)
        last = next(
            row["last-delivered-id"] for row in groups if row["name"] == self.group.encode()
        )
        self.client.xtrim(self.stream, minid=last, approximate=False)
