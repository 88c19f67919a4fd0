"""A relay that cannot be trusted: the faults that it puts into the frames of a world, by seed.

It numbers events itself, as relays do. Each true frame suffers one fault at most, drawn by rates.
What is made up is signed with a key of the relay's own, or hidden in a commit that is true; its
records are of the one collection `FORGED`, so that nobody can mistake them for true ones.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.atproto.car import read_car, write_car
from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    IdentityMessage,
    Message,
    RepoOp,
    decode_frame,
    encode_frame,
)
from rsky_pipeline.atproto.mst import Tree

FORGED = "app.bsky.feed.post/forged"  # where every forged path begins
# Faults of any frame, of commits only, of news of accounts only, and of the accounts themselves.
ANY_FRAME = ("drop", "repeat", "reorder", "corrupt", "truncate", "jump", "leap")
OF_NEWS = ("future",)
OF_COMMITS = ("forge", "smuggle", "hide", "strip", "too_big", "sync")
OF_ACCOUNTS = ("rotate", "rotate_quietly")
FAULTS = (*ANY_FRAME, *OF_COMMITS, *OF_NEWS, *OF_ACCOUNTS)
MAX_JUMP = 1_000_000
MAX_LEAP = 2**50  # of one number, from which the next ones do not go on
FAR = "9999-12-31T23:59:59.999Z"


class UnknownFaultError(ValueError):
    """There is no fault of that name, or a rate that is none."""


@dataclass(frozen=True, slots=True)
class Event:
    """The frames that subscribers get for one sequence number: mostly one."""

    seq: int
    frames: tuple[bytes, ...]


class Hostility:
    """The faults of one relay, with their rates (shares of all events), and how many there were."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rates: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self._choose = random.Random(f"faults {seed}")
        self._key = PrivateKey.from_seed("k256", f"forger {seed}".encode())
        self._seq = 0
        self._held: bytes | None = None

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Change rates. Raises UnknownFaultError."""
        for name, rate in rates.items():
            if name not in FAULTS or not 0 <= rate <= 1:
                raise UnknownFaultError(f"{name}={rate}: allowed are rates from 0 to 1 of "
                                   f"{', '.join(FAULTS)}")  # fmt: skip
        self.rates |= rates

    def be_honest(self) -> None:
        """Have no more faults."""
        self.rates.clear()

    def draws(self, fault: str) -> bool:
        """Return whether an account suffers a fault now."""
        rate = self.rates.get(fault, 0.0)
        suffers = bool(rate) and self._choose.random() < rate
        self.counts[fault] += suffers
        return suffers

    def relay(self, frame: bytes) -> list[Event]:
        """Return the events that subscribers get for a true frame; a withheld one comes later."""
        message = decode_frame(frame)
        fault = self._draw(message)
        if fault == "jump":
            self._seq += self._choose.randrange(1_000, MAX_JUMP)
        if fault == "drop":
            return self._released()
        seq = self._next()
        true = _renumbered(message, frame, seq)
        if fault == "reorder" and self._held is None:
            self._held = true
            return []
        return [*self._faulty(fault, message, seq, true), *self._released()]

    def flush(self) -> list[Event]:
        """Return the events that are still held back."""
        return self._released()

    def _draw(self, message: Message) -> str:
        draw = self._choose.random()
        faults: tuple[str, ...] = ()
        if isinstance(message, CommitMessage) and len(message.blocks) > 0:
            faults = OF_COMMITS
        elif isinstance(message, AccountMessage | IdentityMessage):
            faults = OF_NEWS
        for fault in (*ANY_FRAME, *faults):
            draw -= self.rates.get(fault, 0.0)
            if draw < 0:
                if fault in {"hide", "strip"} and not getattr(message, "ops", ()):
                    return ""
                self.counts[fault] += 1
                return fault
        return ""

    def _faulty(self, fault: str, message: Message, seq: int, true: bytes) -> list[Event]:
        match fault:
            case "repeat":
                return [Event(seq, (true, true))]
            case "corrupt":
                return [Event(seq, (self._corrupted(true),))]
            case "truncate":
                return [Event(seq, (true[: self._choose.randrange(len(true))],))]
            case "leap":
                number = seq + self._choose.randrange(MAX_JUMP, MAX_LEAP)
                return [Event(seq, (_renumbered(message, true, number),))]
            case "future":
                return [Event(seq, (_renumbered(message, true, seq, time=FAR),))]
        if not isinstance(message, CommitMessage):
            return [Event(seq, (true,))]
        match fault:
            case "forge":
                forged = encode_frame("#commit", self._forged(message, seq))
                seq = self._next()
                return [Event(seq - 1, (forged,)), Event(seq, (_renumbered(message, true, seq),))]
            case "smuggle":
                return [Event(seq, (encode_frame("#commit", self._with_stranger(message, seq)),))]
            case "hide":
                body = _body(message, seq) | {"ops": [_op(op) for op in message.ops[1:]]}
                return [Event(seq, (encode_frame("#commit", body),))]
            case "strip":  # as a commit of before Sync 1.1, which nothing was chained to
                ops = [_op(op._replace(prev=None)) for op in message.ops[1:]]
                body = _body(message, seq) | {"ops": ops}
                body.pop("prevData", None)
                return [Event(seq, (encode_frame("#commit", body),))]
            case "too_big":
                body = _body(message, seq) | {"tooBig": True, "ops": [], "blocks": b""}
                return [Event(seq, (encode_frame("#commit", body),))]
            case "sync":
                return [Event(seq, (encode_frame("#sync", _sync(message, seq)),))]
        return [Event(seq, (true,))]

    def _forged(self, message: CommitMessage, seq: int) -> dict[str, Any]:
        """Return a commit that the account did not make."""
        path, block = self._stranger()
        tree = Tree.build({path: Cid.of(block)})
        commit = sign_commit(message.did, message.rev, tree.root, self._key)
        root = Cid.of(commit)
        car = write_car([root], [(root, commit), *tree.blocks(), (Cid.of(block), block)])
        op = {"action": "create", "path": path, "cid": Cid.of(block)}
        return _body(message, seq) | {"commit": root, "blocks": car, "ops": [op]}

    def _with_stranger(self, message: CommitMessage, seq: int) -> dict[str, Any]:
        """Return a true commit with one more operation, which its tree does not hold."""
        path, block = self._stranger()
        parsed = read_car(message.blocks)
        car = write_car(parsed.roots, [*parsed.blocks.items(), (Cid.of(block), block)])
        op = {"action": "create", "path": path, "cid": Cid.of(block)}
        return _body(message, seq) | {"blocks": car, "ops": [*map(_op, message.ops), op]}

    def _stranger(self) -> tuple[str, bytes]:
        number = self._choose.randrange(10**12)
        record = {"$type": "app.bsky.feed.post", "text": "forged", "number": number,
                  "createdAt": "2026-01-01T00:00:00.000Z"}  # fmt: skip
        return f"{FORGED}{number}", encode(record)

    def _corrupted(self, true: bytes) -> bytes:
        """Return a frame with a few bits changed, so that it decodes otherwise or not at all.

        Where it can still be read, the change is in the signed part: neither its number nor its
        time, which nobody signs, nor anything of an account's status.
        """
        while True:
            raw = bytearray(true)
            for _ in range(self._choose.randint(1, 3)):
                raw[self._choose.randrange(len(raw))] ^= 1 << self._choose.randrange(8)
            damaged = bytes(raw)
            if _seq(damaged) is None or (
                _seq(damaged) == _seq(true) and _content(damaged) != _content(true)
            ):
                return damaged

    def _released(self) -> list[Event]:
        """Return the frame that was held back, as sent together with the newest number."""
        if self._held is None:
            return []
        frame, self._held = self._held, None
        return [Event(self._next(), (frame,))]

    def _next(self) -> int:
        self._seq += 1
        return self._seq


def _seq(frame: bytes) -> int | None:
    try:
        return getattr(decode_frame(frame), "seq", None)
    except InvalidDataError:
        return None


def _content(frame: bytes) -> tuple[Any, ...] | None:
    """Return the signed part of a readable frame; None for a frame without signatures."""
    message = decode_frame(frame)
    if isinstance(message, CommitMessage):
        return message.did, message.rev, message.commit, message.blocks, message.ops
    return None


def _renumbered(message: Message, frame: bytes, seq: int, **changes: str) -> bytes:
    if isinstance(message, CommitMessage):
        return encode_frame("#commit", _body(message, seq) | changes)
    kind, names = _OTHERS[type(message).__name__]
    body = {
        wire: value for wire, name in names.items() if (value := getattr(message, name)) is not None
    }
    return encode_frame(kind, body | {"seq": seq} | changes)


_OTHERS: dict[str, tuple[str, dict[str, str]]] = {
    "SyncMessage": ("#sync", {name: name for name in ("did", "rev", "time", "blocks")}),
    "IdentityMessage": ("#identity", {name: name for name in ("did", "time", "handle")}),
    "AccountMessage": ("#account", {name: name for name in ("did", "time", "active", "status")}),
}


def _body(message: CommitMessage, seq: int) -> dict[str, Any]:
    chain = {} if message.prev_data is None else {"prevData": message.prev_data}
    return {
        "seq": seq, "repo": message.did, "rev": message.rev, "since": message.since,
        "commit": message.commit, "blocks": message.blocks, "time": message.time,
        "ops": [_op(op) for op in message.ops], "blobs": [], "tooBig": False, "rebase": False,
        **chain,
    }  # fmt: skip


def _op(op: RepoOp) -> dict[str, Any]:
    previous = {} if op.prev is None else {"prev": op.prev}
    return {"action": op.action, "path": op.path, "cid": op.cid, **previous}


def _sync(message: CommitMessage, seq: int) -> dict[str, Any]:
    block = read_car(message.blocks).blocks[message.commit]
    car = write_car([message.commit], [(message.commit, block)])
    return {"seq": seq, "did": message.did, "rev": message.rev, "time": message.time, "blocks": car}
