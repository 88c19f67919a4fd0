"""The life of a simulated network: accounts act, and each act becomes frames of a relay.

Everything follows from the seed and the clock. Accounts with a history were there before the stream
began: their records from then are only in their repos. The others are born on the stream, and only
they change their hosting status, so that no history can become unreachable.
"""

import random
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.demo.simulator.accounts import (
    DOMAIN,
    RepoStatus,
    SimulatedAccount,
    did_document,
    make_account,
)
from rsky_pipeline.demo.simulator.clock import DAY, Clock, TimeText
from rsky_pipeline.demo.simulator.labels import Labeler
from rsky_pipeline.demo.simulator.records import RecordMaker, Reference, Subjects
from rsky_pipeline.demo.simulator.repo import Write

HISTORIC_SHARE = 0.4
INDEXED_PREFIXES = ("app.bsky.", "chat.bsky.", "com.germnetwork.declaration")
_HISTORY_DAYS = 30
_REPEATABLE = frozenset({mix.LIKE, mix.REPOST, mix.FOLLOW, mix.BLOCK, mix.LIST_ITEM})
_INACTIVE = (("deactivated", 60), ("takendown", 15), ("suspended", 10), ("throttled", 5),
             (None, 5), ("deleted", 5))  # fmt: skip


class World:
    """All accounts. `step` lets one thing happen and returns its frame.

    A calm one has none of the events for which a pipeline must fetch a repo again.
    """

    def __init__(self, seed: int, accounts: int, clock: Clock, *, calm: bool = False) -> None:
        self._choose = random.Random(seed)
        self._clock = clock
        self.text = TimeText()  # how it writes microseconds
        self._pending: deque[tuple[int, bytes]] = deque()
        self._next_seq = 1
        self.seq = 0  # of the frame returned last
        self.accounts = [make_account(seed, number) for number in range(accounts)]
        self.by_did = {account.did: account for account in self.accounts}
        self.handles = {a.handle: a.did for a in self.accounts if a.handle_resolves}
        self.subjects = Subjects(self._choose, dids=[account.did for account in self.accounts])
        self._choose.shuffle(self.subjects.dids)
        self._activity = list(accumulate(1 / (n + 5) for n in range(accounts)))
        self._maker = RecordMaker(self._choose, self.subjects)
        self.labeler = Labeler(seed, clock, self.subjects)
        self.deleted: set[str] = set()  # uris that were deleted on the stream
        self.gated: set[str] = set()  # posts that had a gate which may refuse replies or quotes
        self.moved: dict[str, str] = {}  # accounts on other hosts than the others, with their URLs
        self.deletes_accounts = True  # else they are deactivated, and can come back
        events = mix.EVENTS | (dict.fromkeys(mix.RESYNCED, 0) if calm else {})
        self._events = tuple(events)
        self._weights = tuple(events.values())

    def add_history(self, records: int) -> None:
        """Give a part of the accounts repos from before the stream, of so many records or so."""
        start = self._clock.now()
        for account in self.accounts[: max(1, int(len(self.accounts) * HISTORIC_SHARE))]:
            account.historic = account.born = True
            now = start - _HISTORY_DAYS * DAY + self._choose.randrange(DAY)
            writes = {w.path: w for w in self._maker.make(mix.PROFILE, account, now)}
            count = min(int(self._choose.expovariate(1 / max(records, 1))) + 1, 50 * records + 1)
            for kind in self._maker.draw_kinds(count):
                now += self._choose.randrange(1, 28 * DAY // count)
                made = [w for w in self._maker.make(kind, account, now) if w.path not in writes]
                writes |= {write.path: write for write in made}
            account.repo.load(writes.values(), tid_from(now, account.number % 1_024), start)
            self._note(account, list(writes.values()))

    def step(self) -> bytes:
        """Let somebody do something and return its frame; some things take several."""
        while not self._pending:
            self._happen()
        self.seq, frame = self._pending.popleft()
        return frame

    @property
    def is_in_the_middle(self) -> bool:
        """Whether something has happened of which not all frames were returned."""
        return bool(self._pending)

    def write(self, account: SimulatedAccount, kind: str) -> str:
        """Let an active account commit a record of a kind that stands alone; return its uri."""
        writes = self._maker.make(kind, account, self._clock.now())
        self._commit(account, writes)
        return account.uri(writes[0].path)

    def rotate_key(self, seed: int, *, quietly: bool) -> None:
        """Give an active account a new key and let it sign a commit; quietly: without #identity."""
        choose = random.Random(f"rotation {seed} {self._next_seq}")
        active = [account for account in self.accounts if account.born and account.active]
        if not active:
            return
        account = choose.choice(active)
        curve = account.key.curve
        account.key = PrivateKey.from_seed(curve, f"{seed} {self._next_seq}".encode())
        account.repo.use_key(account.key)
        if not quietly:
            self._frame("#identity", {"did": account.did, "handle": account.handle})
        self._commit(account, [])

    def migrate(self, account: SimulatedAccount, pds: str) -> None:
        """Move an active account to another host, where it has another key and goes on writing.

        The old host says that it is gone before the new one says that it is there, and which host
        a document names is true from the first of these events on.
        """
        self._frame("#account", {"did": account.did, "active": False, "status": "deactivated"})
        account.key = PrivateKey.from_seed(account.key.curve, f"moved {account.did}".encode())
        account.repo.use_key(account.key)
        self.moved[account.did] = pds
        self._frame("#identity", {"did": account.did, "handle": account.handle})
        self._frame("#account", {"did": account.did, "active": True})
        for kind in (mix.CREATE, mix.SEVERAL, mix.DELETE, mix.CREATE):
            self._commit(account, self._writes(account, kind))

    def announce(self, did: str, status: str | None) -> None:
        """Send a hosting status (None: active) that an account has at this host, true or not."""
        reason = {} if status is None else {"status": status}
        self._frame("#account", {"did": did, "active": status is None, **reason})

    def spread(self, urls: Sequence[str]) -> None:
        """Let the documents of accounts name these hosts in turn."""
        for account in self.accounts:
            self.moved[account.did] = urls[account.number % len(urls)]

    def end(self) -> None:
        """Let every account be heard of once more: identity, status, and a commit if it can.

        Whatever a relay did before, this is what a network does sooner or later by itself.
        """
        for account in self.accounts:
            if not account.born:
                continue
            if not account.deleted:
                account.active, account.status = True, None
            status = {"status": account.status} if account.status else {}
            self._frame("#identity", {"did": account.did, "handle": account.handle})
            self._frame("#account", {"did": account.did, "active": account.active, **status})
            if account.active:
                self._commit(account, [])

    def document(self, did: str, pds: str, labeler: str) -> dict[str, Any] | None:
        """Return a DID document, hosted at these endpoints, or None."""
        if did == self.labeler.did:
            return self.labeler.document(labeler)
        account = self.by_did.get(did)
        if account is None:
            return None
        host = self.moved.get(did, pds)
        services = {"atproto_pds": ("AtprotoPersonalDataServer", host)}
        return did_document(did, account.handle, {"atproto": account.key.multibase}, services)

    def status(self, did: str) -> RepoStatus | None:
        """Return the status of a repo at its host; None if the host has no such account."""
        account = self.by_did.get(did)
        if account is None or not account.born or account.deleted:
            return None
        return RepoStatus(
            did, str(account.repo.head or ""), account.repo.rev, account.active, account.status
        )

    def statuses(self) -> list[RepoStatus]:
        """Return all repos in the order in which the accounts were made."""
        found = (self.status(account.did) for account in self.accounts)
        return [status for status in found if status is not None]

    def car(self, did: str) -> bytes:
        """Return a repo as its host exports it."""
        return self.by_did[did].repo.car()

    def _happen(self) -> None:
        account = self._somebody()
        if not account.born:
            self._be_born(account)
            return
        kind = self._choose.choices(self._events, self._weights)[0]
        match kind:
            case mix.ACCOUNT:
                self._change_status(self._somebody(fresh=True))
            case mix.IDENTITY:
                self._change_identity(account)
            case mix.SYNC if account.active:
                self._frame("#sync", account.repo.announce(self._rev(account)))
                account.note_commit(indexed=False)
            case _ if account.active:
                self._commit(account, self._writes(account, kind))
            case _ if not account.deleted and self._choose.random() < 0.2:
                self._change_status(account)

    def _somebody(self, fresh: bool = False) -> SimulatedAccount:
        while True:
            index = self._choose.choices(range(len(self.accounts)), cum_weights=self._activity)[0]
            # Neighbours in number are of one kind; spread attention over both.
            account = self.accounts[index * 7_919 % len(self.accounts)]
            if not account.deleted and not (fresh and account.historic):
                return account

    def _be_born(self, account: SimulatedAccount) -> None:
        account.born = True
        self._frame("#identity", {"did": account.did, "handle": account.handle})
        self._frame("#account", {"did": account.did, "active": True})
        self._commit(account, [])

    def _writes(self, account: SimulatedAccount, kind: str) -> list[Write]:
        count = self._choose.randint(2, 9) if kind == mix.SEVERAL else 1
        writes: dict[str, Write] = {}
        for _ in range(0 if kind == mix.NOTHING else count):
            each = kind
            if kind == mix.SEVERAL:
                each = self._choose.choices((mix.CREATE, mix.DELETE, mix.EDIT), (7, 2, 1))[0]
            for write in self._write(account, each):
                writes.setdefault(write.path, write)
        return list(writes.values())

    def _write(self, account: SimulatedAccount, kind: str) -> list[Write]:
        now = self._clock.now()
        path = None if kind == mix.CREATE else account.repo.draw(self._choose)
        stored = None if path is None else account.repo.stored(path)
        if path is None or stored is None:
            return self._maker.make(self._maker.draw_kinds()[0], account, now)
        if kind == mix.DELETE:
            return [Write(path, None)]
        record = cbor.decode(stored.block)
        assert isinstance(record, dict)
        collection = path.partition("/")[0]
        if kind == mix.EDIT:
            if collection in _REPEATABLE and self._choose.random() < 0.95:
                return self._maker.make(mix.PROFILE, account, now)
            return [Write(path, self._maker.edited(path, record, account, now))]
        if collection not in _REPEATABLE:
            return self._maker.make(mix.LIKE, account, now)
        again = record | {"createdAt": self.text(now)}
        return [Write(f"{collection}/{tid_from(now, account.number % 1_024)}", again)]

    def _commit(self, account: SimulatedAccount, writes: list[Write]) -> None:
        body = account.repo.apply(writes, self._rev(account), self._clock.now())
        self._note(account, writes)
        self._frame("#commit", body)

    def _note(self, account: SimulatedAccount, writes: list[Write]) -> None:
        """Remember records that others can react to, and facts that the truth depends on."""
        indexed = False
        for write in writes:
            collection, _, rkey = write.path.partition("/")
            indexed = indexed or collection.startswith(INDEXED_PREFIXES)
            uri = account.uri(write.path)
            if write.record is None:
                self.deleted.add(uri)
                continue
            self.deleted.discard(uri)
            if collection in {mix.THREAD_GATE, mix.POST_GATE}:
                self.gated.add(account.uri(f"{mix.POST}/{rkey}"))
            stored = account.repo.stored(write.path)
            assert stored is not None
            if collection in mix.REACTED_TO:
                root = write.record.get("reply", {}).get("root")
                thread = Reference(root["uri"], root["cid"], "") if root else None
                self.subjects.add(collection, Reference(uri, str(stored.cid), account.did, thread))
        account.note_commit(indexed)

    def _change_status(self, account: SimulatedAccount) -> None:
        if not account.born:
            return
        if account.active:
            statuses, weights = zip(*_INACTIVE, strict=True)
            account.status = self._choose.choices(statuses, weights)[0]
            if account.status == "deleted" and not self._may_lose_one():
                account.status = "deactivated"
            account.active = False
        else:
            account.active, account.status = True, None
        status = {"status": account.status} if account.status else {}
        self._frame("#account", {"did": account.did, "active": account.active, **status})
        if account.active:
            self._frame("#identity", {"did": account.did, "handle": account.handle})

    def _may_lose_one(self) -> bool:
        """Return whether an account may go for good; a long run needs the rest."""
        fresh = [account for account in self.accounts if not account.historic]
        left = sum(not account.deleted for account in fresh)
        return self.deletes_accounts and left > max(1, len(fresh) // 2)

    def _change_identity(self, account: SimulatedAccount) -> None:
        draw = self._choose.random()
        if draw < 0.4:
            self._rename(account, f"user{account.number}-{self._next_seq}.{DOMAIN}")
        elif draw < 0.5:
            other, handle = self._somebody(), account.handle
            if other is not account and other.born and account.handle_resolves:
                self._rename(account, f"was-{account.number}-{self._next_seq}.{DOMAIN}")
                self._rename(other, handle)
        elif draw < 0.6:
            self._frame("#identity", {"did": account.did})
        else:
            self._frame("#identity", {"did": account.did, "handle": account.handle})

    def _rename(self, account: SimulatedAccount, handle: str) -> None:
        if self.handles.get(account.handle) == account.did:
            del self.handles[account.handle]
        account.handle = handle
        if account.handle_resolves:
            self.handles[handle] = account.did
        self._frame("#identity", {"did": account.did, "handle": handle})

    def _rev(self, account: SimulatedAccount) -> str:
        return tid_from(self._clock.now(), account.number % 1_024)

    def _frame(self, kind: str, body: dict[str, Any]) -> None:
        seq = self._next_seq
        self._next_seq += 1 if self._choose.random() > 0.005 else 3  # numbers may have gaps
        body |= {"seq": seq, "time": self.text(self._clock.now())}
        self._pending.append((seq, encode_frame(kind, body)))
