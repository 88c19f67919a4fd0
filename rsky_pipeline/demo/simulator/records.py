"""Records of every kind that the network has: what an account writes when it does something."""

import random
from collections.abc import Callable

from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.demo.simulator.accounts import DOMAIN, Account, plc_did
from rsky_pipeline.demo.simulator.moments import Moments
from rsky_pipeline.demo.simulator.posts import PostMaker
from rsky_pipeline.demo.simulator.repo import Record, Write
from rsky_pipeline.demo.simulator.shelves import ShelfMaker
from rsky_pipeline.demo.simulator.subjects import Subjects
from rsky_pipeline.demo.simulator.words import Writer

SELF = "self"
_ANY_CID = "bafyreigy2ttn5ahcqgwcqd2vkkmv42uxfuzb4gxy5z2u5hg2gj3vtpbqhe"


class RecordMaker:
    """Makes what an account writes; the same random numbers give the same records."""

    def __init__(self, choose: random.Random, subjects: Subjects) -> None:
        self._choose = choose
        self._subjects = subjects
        self._writer = Writer(choose)
        self._moments = Moments(choose)
        self._posts = PostMaker(choose, self._writer, subjects)
        self._shelves = ShelfMaker(choose, self._writer, subjects, self._posts.blob)
        self._makers: dict[str, Callable[[Account, str, int], list[Write]]] = {
            mix.LIKE: self._react,
            mix.REPOST: self._react,
            mix.FOLLOW: self._relate,
            mix.BLOCK: self._relate,
            mix.POST: self._post,
            mix.PROFILE: self._profile,
            mix.POST_GATE: self._late_gate,
            mix.VERIFICATION: self._verification,
        }
        self._kinds = tuple(mix.RECORDS)
        self._weights = tuple(mix.RECORDS.values())

    def draw_kinds(self, count: int = 1) -> list[str]:
        """Return kinds of records in realistic proportions."""
        return self._choose.choices(self._kinds, self._weights, k=count)

    def make(self, kind: str, account: Account, now: int) -> list[Write]:
        """Return the writes that make a record; a like, where there is nothing for that kind."""
        if (maker := self._makers.get(kind)) is not None:
            return maker(account, kind, now) or self._react(account, mix.LIKE, now)
        record = self._record(kind, now)
        if (written := self._shelves.make(kind, account, record, now)) is not None:
            return written or self._react(account, mix.LIKE, now)
        return self._declaration(kind, record, now)

    def edited(self, path: str, record: Record, account: Account, now: int) -> Record:
        """Return another version of a record of the account."""
        collection, _, rkey = path.partition("/")
        match collection:
            case mix.POST:
                return record | {"text": self._writer.sentence("en")[:100]}
            case mix.LIKE | mix.REPOST:
                post = self._subjects.post()
                return record | ({"subject": post.link()} if post else {})
            case mix.FOLLOW | mix.BLOCK:
                return record | {"subject": self._subjects.did()}
            case mix.PROFILE:
                return self._profile(account, mix.PROFILE, now)[0].record or record
            case mix.THREAD_GATE:
                return record | {"hiddenReplies": [f"at://{account.did}/{mix.POST}/{rkey}"]}
        return record | {"edited": self._choose.randrange(1_000)}

    def _record(self, kind: str, now: int) -> Record:
        return {"$type": kind, "createdAt": self._moments.created(now)}

    def _new(self, kind: str, now: int, record: Record) -> list[Write]:
        return [Write(f"{kind}/{tid_from(now, self._choose.randrange(1_024))}", record)]

    def _react(self, _account: Account, kind: str, now: int) -> list[Write]:
        record = self._record(kind, now)
        draw = self._choose.random()
        post = self._subjects.post()
        if post is None or draw < 0.01:  # a post that nobody has
            unknown = plc_did(f"nobody {int(draw * 1e6)}")
            uri = f"at://{unknown}/{mix.POST}/{tid_from(now)}"
            return self._new(kind, now, record | {"subject": {"uri": uri, "cid": _ANY_CID}})
        if draw < 0.02:
            post = self._subjects.other(mix.GENERATOR) or post
        record["subject"] = post.link()
        if draw > 0.93 and (via := self._subjects.repost()) is not None:
            record["via"] = via.link()
        return self._new(kind, now, record)

    def _relate(self, _account: Account, kind: str, now: int) -> list[Write]:
        subject = self._subjects.did()
        if self._choose.random() < 0.005:
            subject = "did:web:nobody.example.com"
        return self._new(kind, now, self._record(kind, now) | {"subject": subject})

    def _post(self, account: Account, kind: str, now: int) -> list[Write]:
        record = self._posts.make(self._moments.created(now))
        writes = self._new(kind, now, record)
        rkey = writes[0].path.rpartition("/")[2]
        if "reply" not in record and self._choose.random() < 0.05:
            gate = self._record(mix.THREAD_GATE, now)
            writes.append(self._shelves.thread_gate(account, rkey, gate))
        if self._choose.random() < 0.01:
            gate = self._record(mix.POST_GATE, now)
            writes.append(self._shelves.post_gate(account, rkey, gate))
        return writes

    def _late_gate(self, account: Account, kind: str, now: int) -> list[Write]:
        own = [item for item in self._subjects.posts[-500:] if item.did == account.did]
        if not own:
            return []
        rkey = self._choose.choice(own).uri.rpartition("/")[2]
        return [self._shelves.post_gate(account, rkey, self._record(kind, now))]

    def _profile(self, _account: Account, kind: str, now: int) -> list[Write]:
        record = self._record(kind, now)
        draw = self._choose.random
        if draw() < 0.1:
            del record["createdAt"]
        if draw() < 0.9:
            record["displayName"] = self._writer.name()
        if draw() < 0.8:
            record["description"] = self._writer.sentence(self._writer.language())
        if draw() < 0.7:
            record["avatar"] = self._posts.blob()
        if draw() < 0.4:
            record["banner"] = self._posts.blob("image/png")
        if draw() < 0.1 and (pack := self._subjects.other(mix.STARTER_PACK)) is not None:
            record["joinedViaStarterPack"] = pack.link()
        if draw() < 0.1 and (post := self._subjects.post()) is not None:
            record["pinnedPost"] = post.link()
        return [Write(f"{kind}/{SELF}", record)]

    def _verification(self, _account: Account, kind: str, now: int) -> list[Write]:
        handle = f"user{self._choose.randrange(1_000)}.{DOMAIN}"
        named = {"subject": self._subjects.did(), "handle": handle}
        record = self._record(kind, now) | named | {"displayName": self._writer.name()}
        return self._new(kind, now, record)

    def _declaration(self, kind: str, record: Record, now: int) -> list[Write]:
        match kind:
            case mix.STATUS:
                fields: Record = {"status": f"{kind}#live", "durationMinutes": 30}
            case mix.NOTIFICATIONS:
                fields = {"allowSubscriptions": "followers"}
            case mix.CHAT:
                fields = {"allowIncoming": self._choose.choice(("all", "none", "following"))}
            case mix.GERM:
                fields = {"version": "1.0.0", "currentKey": self._choose.randbytes(33)}
            case _:
                odd = {"text": self._writer.odd(), "data": self._choose.randbytes(9)}
                return self._new(kind, now, record | odd | {"nested": [[{}], -1]})
        return [Write(f"{kind}/{SELF}", record | fields)]
