"""Records that collect or fence in others: lists, feeds, packs, labelers, gates."""

import random
from collections.abc import Callable
from typing import Any

from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.demo.simulator.accounts import DOMAIN, Account
from rsky_pipeline.demo.simulator.repo import Record, Write
from rsky_pipeline.demo.simulator.subjects import Subjects
from rsky_pipeline.demo.simulator.words import Writer

_PURPOSES = ("modlist", "curatelist", "referencelist")


class ShelfMaker:
    """Makes such records from ones that have a type and a time already."""

    def __init__(
        self,
        choose: random.Random,
        writer: Writer,
        subjects: Subjects,
        blob: Callable[[str], dict[str, Any]],
    ) -> None:
        self._choose = choose
        self._writer = writer
        self._subjects = subjects
        self._blob = blob

    def make(self, kind: str, account: Account, record: Record, now: int) -> list[Write] | None:
        """Return the writes of a record of one of these kinds, None for another kind.

        There are no writes where it would need something that does not exist yet.
        """
        rkey = tid_from(now, self._choose.randrange(1_024))
        match kind:
            case mix.LIST:
                record |= self._list()
            case mix.LIST_ITEM:
                own = self._subjects.other(mix.LIST, account.did)
                if own is None:
                    fields = self._list() | {"$type": mix.LIST}
                    return [Write(f"{mix.LIST}/{rkey}", record | fields)]
                record |= {"list": own.uri, "subject": self._subjects.did()}
            case mix.LIST_BLOCK:
                found = self._subjects.other(mix.LIST)
                if found is None:
                    return []
                record |= {"subject": found.uri}
            case mix.GENERATOR:
                rkey = f"feed-{account.number}-{self._choose.randrange(3)}"
                record |= {"did": f"did:web:feeds.{DOMAIN}", **self._described()}
                record["displayName"] = self._writer.title()[:24]
            case mix.STARTER_PACK:
                found = self._subjects.other(mix.LIST, account.did) or self._subjects.other(
                    mix.LIST
                )
                if found is None:
                    return []
                record |= {"name": self._writer.title(), "list": found.uri, "feeds": []}
            case mix.LABELER:
                rkey = "self" if self._choose.random() < 0.8 else "draft"
                policies = {"labelValues": ["spam", "rude"], "labelValueDefinitions": []}
                record |= {"policies": policies}
            case _:
                return None
        return [Write(f"{kind}/{rkey}", record)]

    def thread_gate(self, account: Account, rkey: str, record: Record) -> Write:
        """Return the gate of a thread: who may reply to a post."""
        rules: list[Record] = [
            {"$type": f"{mix.THREAD_GATE}#{rule}Rule"}
            for rule in ("mention", "following", "follower")
        ]
        own = self._subjects.other(mix.LIST, account.did)
        if own is not None:
            rules.append({"$type": f"{mix.THREAD_GATE}#listRule", "list": own.uri})
        record |= {"post": f"at://{account.did}/{mix.POST}/{rkey}"}
        if self._choose.random() < 0.8:
            record["allow"] = self._choose.sample(rules, self._choose.randrange(len(rules)))
        return Write(f"{mix.THREAD_GATE}/{rkey}", record)

    def post_gate(self, account: Account, rkey: str, record: Record) -> Write:
        """Return the gate of a post: whether others may quote it."""
        closed = self._choose.random() < 0.5
        rules = [{"$type": f"{mix.POST_GATE}#disableRule"}] if closed else []
        post = f"at://{account.did}/{mix.POST}/{rkey}"
        return Write(f"{mix.POST_GATE}/{rkey}", record | {"post": post, "embeddingRules": rules})

    def _list(self) -> Record:
        purpose = f"app.bsky.graph.defs#{self._choose.choice(_PURPOSES)}"
        return {"name": self._writer.title(), "purpose": purpose, **self._described()}

    def _described(self) -> Record:
        record: Record = {}
        if self._choose.random() < 0.6:
            record["description"] = f"see news.example.com {self._writer.sentence('pt')}"
            feature = {"$type": "app.bsky.richtext.facet#link", "uri": "https://news.example.com"}
            facet = {"index": {"byteStart": 4, "byteEnd": 20}, "features": [feature]}
            record["descriptionFacets"] = [facet] if self._choose.random() < 0.5 else []
        if self._choose.random() < 0.5:
            record["avatar"] = self._blob("image/png")
        return record
