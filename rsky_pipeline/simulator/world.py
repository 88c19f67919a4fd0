"""The accounts of a simulated network, and what they do: real repos, real commits.

Everything follows from the seed and the clock. Likes are most of it, as on the real network; there
are updates, deletes, duplicates, other lexicons, account and identity events.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from rsky_pipeline.atproto.car import write_car
from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.atproto.mst import Change, Tree
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.simulator.clock import Clock, TimeText

LIKE = "app.bsky.feed.like"
POST = "app.bsky.feed.post"
REPOST = "app.bsky.feed.repost"
FOLLOW = "app.bsky.graph.follow"
BLOCK = "app.bsky.graph.block"
PROFILE = "app.bsky.actor.profile"
FOREIGN = "com.example.scrobble"
_KINDS = (LIKE, POST, REPOST, FOLLOW, BLOCK, PROFILE, FOREIGN, "delete", "account", "identity")
_WEIGHTS = (640, 120, 80, 80, 10, 15, 10, 40, 2, 3)
_TEXTS = (
    "good morning", "日本語の投稿です", "emoji 🦋👩‍👩‍👧", "مرحبا بالعالم", "tab\tand \\ backslash",
    'quotes " and \' and {braces}', "a\x00b", "", "line\nbreak",
)  # fmt: skip
RECENT_POSTS = 5_000
Write = tuple[str, dict[str, Any] | None, str]  # path, record (None deletes it), kind


@dataclass(slots=True)
class Account:
    """One account: its key, its repo as it is now, and its hosting status."""

    did: str
    handle: str
    key: PrivateKey
    tree: Tree
    records: dict[str, tuple[Cid, bytes, dict[str, Any]]] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    rev: str = ""
    commit: bytes = b""
    active: bool = True

    def uri(self, path: str) -> str:
        """Return the uri of one of its records."""
        return f"at://{self.did}/{path}"


class World:
    """All accounts; each call of `step` makes the frame of one event."""

    def __init__(self, seed: int, accounts: int, clock: Clock) -> None:
        self._choose = random.Random(seed)
        self._clock = clock
        self._time = TimeText()
        self.seq = 0
        self.posts: list[tuple[str, str]] = []
        self.accounts = [self._account(seed, number) for number in range(accounts)]
        self.by_did = {account.did: account for account in self.accounts}

    def add_history(self, records: int) -> None:
        """Give every account records from before the stream began."""
        for account in self.accounts:
            writes = [self._create(account, POST)]
            kinds = self._choose.choices(_KINDS[:7], _WEIGHTS[:7], k=records)
            writes += [write for kind in kinds if (write := self._create(account, kind))]
            self._commit(account, [write for write in writes if write is not None])

    def step(self) -> bytes:
        """Let somebody do something and return its frame."""
        self.seq += 1
        account = self._choose.choice(self.accounts)
        kind = self._choose.choices(_KINDS, _WEIGHTS)[0]
        if kind == "identity":
            return self._frame("#identity", did=account.did, handle=account.handle)
        if kind == "account" or not account.active:
            return self._toggle(account)
        write = self._delete(account) if kind == "delete" else self._create(account, kind)
        writes = [write or self._create(account, LIKE)]
        if self._choose.random() < 0.01:
            writes.append(self._create(account, FOREIGN))
        return self._commit(account, [item for item in writes if item is not None])

    def car(self, account: Account) -> bytes:
        """Return the whole repo of an account, as getRepo does."""
        blocks = [(Cid.of(account.commit), account.commit), *account.tree.blocks()]
        blocks += [(cid, block) for cid, block, _ in account.records.values()]
        return write_car([Cid.of(account.commit)], blocks)

    def document(self, account: Account, endpoint: str) -> dict[str, Any]:
        """Return an account's DID document, hosted at an endpoint."""
        return {
            "id": account.did,
            "alsoKnownAs": [f"at://{account.handle}"],
            "verificationMethod": [
                {
                    "id": f"{account.did}#atproto",
                    "type": "Multikey",
                    "controller": account.did,
                    "publicKeyMultibase": account.key.multibase,
                }
            ],
            "service": [
                {
                    "id": "#atproto_pds",
                    "type": "AtprotoPersonalDataServer",
                    "serviceEndpoint": endpoint,
                }
            ],
        }

    def _account(self, seed: int, number: int) -> Account:
        key = PrivateKey.from_seed("p256" if number % 5 == 0 else "k256", b"%d/%d" % (seed, number))
        did = f"did:plc:sim{seed:06d}{number:015d}"[:32].replace("0", "a").replace("1", "b")
        did = did.replace("8", "c").replace("9", "d")
        return Account(did, f"user{number}.example.com", key, Tree.build({}))

    def _create(self, account: Account, kind: str) -> Write | None:
        now = self._clock.now()
        record: dict[str, Any] = {"$type": kind, "createdAt": self._time(now)}
        rkey = tid_from(now)
        if kind in {LIKE, REPOST}:
            if not self.posts:
                return None
            uri, cid = self._choose.choice(self.posts[-RECENT_POSTS:])
            record["subject"] = {"uri": uri, "cid": cid}
        elif kind in {FOLLOW, BLOCK}:
            record["subject"] = self._choose.choice(self.accounts).did
        elif kind == POST:
            record |= self._post()
        elif kind == PROFILE:
            rkey = "self"
            record |= {"displayName": f"{account.handle} {now % 1000}", "description": "🦋"}
        else:
            record["artist"] = "somebody"
        return f"{kind}/{rkey}", record, kind

    def _post(self) -> dict[str, Any]:
        record: dict[str, Any] = {"text": self._choose.choice(_TEXTS)}
        if self._choose.random() < 0.3:
            record["langs"] = ["en"]
        if self.posts and self._choose.random() < 0.2:
            uri, cid = self._choose.choice(self.posts[-RECENT_POSTS:])
            embed = {"$type": "app.bsky.embed.record", "record": {"uri": uri, "cid": cid}}
            record["embed"] = embed
        return record

    def _delete(self, account: Account) -> Write | None:
        if not account.paths:
            return None
        path = account.paths[self._choose.randrange(len(account.paths))]
        return path, None, "delete"

    def _commit(self, account: Account, writes: list[Write]) -> bytes:
        before, since = account.tree.root, account.rev or None
        changes, blocks, ops = [], {}, []
        for path, record, kind in writes:
            old = account.records.get(path)
            previous = old[0] if old else None
            cid = None
            if record is None:
                del account.records[path]
                account.paths.remove(path)
                action = "delete"
            else:
                block = encode(record)
                cid = Cid.of(block)
                blocks[cid] = block
                account.records[path] = (cid, block, record)
                action = "update" if old else "create"
                if not old:
                    account.paths.append(path)
                if kind == POST:
                    self.posts.append((account.uri(path), str(cid)))
            changes.append(Change(path, cid, previous))
            op: dict[str, Any] = {"action": action, "path": path, "cid": cid}
            ops.append(op | ({"prev": previous} if previous else {}))
        nodes = account.tree.apply(changes)
        account.rev = tid_from(self._clock.now())
        account.commit = sign_commit(account.did, account.rev, account.tree.root, None, account.key)
        root = Cid.of(account.commit)
        car = write_car([root], [*nodes.items(), *blocks.items(), (root, account.commit)])
        return self._frame(
            "#commit", repo=account.did, rev=account.rev, since=since, commit=root, blocks=car,
            ops=ops, prevData=before, blobs=[], tooBig=False, rebase=False,
        )  # fmt: skip

    def _toggle(self, account: Account) -> bytes:
        account.active = not account.active
        status = {} if account.active else {"status": "deactivated"}
        return self._frame("#account", did=account.did, active=account.active, **status)

    def _frame(self, kind: str, **body: Any) -> bytes:
        return encode_frame(kind, body | {"seq": self.seq, "time": self._time(self._clock.now())})
