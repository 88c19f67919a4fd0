"""Random stories of a few accounts for tests of order: every kind of event, and mixes of history.

What the story leaves out is what depends on order by design (docs/appview-parity.md): a post that
somebody replies to is not deleted, and a gate that judges others is there before they come.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rsky_pipeline.indexer.core.labels import LabelRow
from tests.integration.indexer.kit import (
    Event,
    Network,
    Put,
    account,
    did_of,
    identity,
    mention,
    repo,
    time_of,
)

PEOPLE = ("ann", "bob", "cyd")
HISTORIC = "dan"  # whose repo is also backfilled, once or more
STATUSES = (None, "deactivated", "takendown", "suspended", "deleted")
VALUES = ("spam", "porn")
SELF = "self"

Told = Event | LabelRow


@dataclass
class Story:
    """People who post, reply, quote, react, follow, make lists and gates, edit and delete."""

    chance: random.Random
    people: tuple[str, ...] = PEOPLE
    net: Network = field(default_factory=Network)
    events: list[Told] = field(default_factory=list)
    alive: list[Put] = field(default_factory=list)
    posts: list[Put] = field(default_factory=list)
    lists: list[Put] = field(default_factory=list)
    threads: dict[str, Put] = field(default_factory=dict)  # uri of a post -> root of its thread
    answered: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)

    def tell(self, length: int) -> list[Told]:
        """Return events in their order."""
        for who in self.people[:2]:
            self._put(self.net.post(who))
        for _ in range(length):
            step = self.chance.choices(list(STEPS), [STEPS[step] for step in STEPS])[0]
            step(self, self.chance.choice(self.people))
        return self.events

    def react(self, who: str) -> None:
        make = self.chance.choice((self.net.like, self.net.repost))
        reposts = [put for put in self.alive if put.collection == "app.bsky.feed.repost"]
        via = self.chance.choice(reposts) if reposts and self.chance.random() < 0.3 else None
        self._put(make(who, self.chance.choice(self.posts), via))

    def relate(self, who: str) -> None:
        whom = self.chance.choice(self.people)
        kind = self.chance.choice(("follow", "follow", "block"))
        self._put(self.net.put(who, f"app.bsky.graph.{kind}", {"subject": did_of(whom)}))

    def post(self, who: str) -> None:
        facets = mention(self.chance.choice(self.people))
        self._put(self.net.post(who, facets=facets))

    def quote(self, who: str) -> None:
        quoted = self.chance.choice(self.posts)
        if quoted.uri not in self.gated:
            self._put(self.net.quote(who, quoted))

    def reply(self, who: str) -> None:
        standing = [put for put in self.alive if put.uri in self.threads]
        if not standing:
            return
        parent = self.chance.choice(standing)
        root = self.threads[parent.uri]
        if root.uri in self.gated and root.who != who:
            return
        self.answered |= {parent.uri, root.uri}
        self._put(self.net.reply(who, parent, root), root)

    def gate(self, who: str) -> None:
        own = [put for put in self.posts if put.who == who and put.uri not in self.gated]
        own = [put for put in own if put.uri not in self.answered]
        quoted = {quoted_by(put) for put in self.posts}
        own = [put for put in own if put.uri not in quoted and self.threads[put.uri] is put]
        if not own:
            return
        post = self.chance.choice(own)
        kind = self.chance.choice(("threadgate", "postgate"))
        self.gated.add(post.uri)
        rules: dict[str, Any] = {"post": post.uri}
        rules |= (
            {"allow": []} if kind == "threadgate" else
            {"embeddingRules": [{"$type": "app.bsky.feed.postgate#disableRule"}]}
        )  # fmt: skip
        self._put(self.net.put(who, f"app.bsky.feed.{kind}", rules, post.rkey))

    def curate(self, who: str) -> None:
        own = [put for put in self.lists if put.who == who]
        if not own or self.chance.random() < 0.3:
            made = self.net.put(who, "app.bsky.graph.list", {"name": "l", "purpose": "p"})
            self.lists.append(made)
            self._put(made)
            return
        chosen = self.chance.choice(self.lists)
        if chosen.who == who:
            subject = did_of(self.chance.choice(self.people))
            item = {"list": chosen.uri, "subject": subject}
            self._put(self.net.put(who, "app.bsky.graph.listitem", item))
        else:
            self._put(self.net.put(who, "app.bsky.graph.listblock", {"subject": chosen.uri}))

    def publish(self, who: str) -> None:
        kind, record, rkey = self.chance.choice(
            (
                ("feed.generator", {"did": "did:web:feeds.test", "displayName": "cats"}, None),
                ("labeler.service", {"policies": {"labelValues": ["spam"]}}, SELF),
                ("actor.profile", {"displayName": who}, SELF),
                ("actor.status", {"status": "live"}, SELF),
                ("graph.verification", _verified(self.chance.choice(self.people)), None),
            )
        )
        nsid = f"app.bsky.{kind}"
        standing = [put for put in self.alive if put.who == who and put.collection == nsid]
        if rkey == SELF and standing:
            text = f"{who} {len(self.events)}"
            self._update(standing[0], {**record, "displayName": text} if "displayName" in record
                         else record)  # fmt: skip
        else:
            self._put(self.net.put(who, nsid, record, rkey))

    def edit(self, _who: str) -> None:
        if not self.alive:
            return
        put = self.chance.choice(self.alive)
        record = dict(put.record)
        if "text" in record:
            self._update(put, {**record, "text": f"edited {len(self.events)}"})
        elif put.collection in {"app.bsky.feed.like", "app.bsky.feed.repost"}:
            self._update(put, {**record, "subject": self.chance.choice(self.posts).reference})
        elif put.collection in {"app.bsky.graph.follow", "app.bsky.graph.listitem"}:
            self._update(put, {**record, "subject": did_of(self.chance.choice(self.people))})

    def delete(self, _who: str) -> None:
        free = [put for put in self.alive if put.uri not in self.answered]
        if free:
            gone = self.chance.choice(free)
            self.alive.remove(gone)
            self.events.append(self.net.delete(gone))

    def spoil(self, who: str) -> None:
        """Write something that is refused, now and then over a record that stands."""
        wrong = self.net.put(who, "app.bsky.feed.post", {"text": 1})
        standing = [put for put in self.alive if "text" in put.record and put.who == who]
        if standing and self.chance.random() < 0.5:
            wrong = self.net.update(self.chance.choice(standing), {"text": 1})
        self.events.append(wrong)

    def account(self, who: str) -> None:
        status = self.chance.choice(STATUSES)
        number = next(self.net.numbers)
        self.events.append(account(who, number, status is None, status))

    def identity(self, who: str) -> None:
        self.events.append(identity(who, next(self.net.numbers)))

    def label(self, who: str) -> None:
        post = self.chance.choice(self.posts)
        uri, cid = self.chance.choice(((did_of(who), ""), (post.uri, ""), (post.uri, post.cid)))
        cts = time_of(next(self.net.numbers))
        exp = self.chance.choice((None, time_of(3_000)))
        val, neg = self.chance.choice(VALUES), self.chance.random() < 0.4
        self.events.append(LabelRow(did_of("lab"), uri, cid, val, neg, cts, exp))

    def complete(self, _who: str) -> None:
        """Bring in the whole repo of one of them, as a backfill would."""
        if HISTORIC not in self.people:
            return
        number = next(self.net.numbers)
        for put in self.alive:
            if put.who == HISTORIC:
                self.events.append(replace(put, number=number, action="create", history=True))
        self.events.append(repo(HISTORIC, number, complete=True))

    def _put(self, put: Put, root: Put | None = None) -> None:
        self.events.append(put)
        self.alive.append(put)
        if "text" in put.record:
            self.posts.append(put)
            self.threads[put.uri] = root or put

    def _update(self, put: Put, record: Mapping[str, Any]) -> None:
        changed = self.net.update(put, record)
        self.events.append(changed)
        self.alive[self.alive.index(put)] = changed


def quoted_by(put: Put) -> str:
    """Return the uri of the post that a post embeds."""
    embed = put.record.get("embed")
    return str(embed["record"]["uri"]) if embed else ""


def _verified(who: str) -> dict[str, Any]:
    return {"subject": did_of(who), "handle": f"{who}.test", "displayName": who}


STEPS = {
    Story.react: 20, Story.relate: 10, Story.post: 6, Story.quote: 6, Story.reply: 12,
    Story.gate: 4, Story.curate: 8, Story.publish: 6, Story.edit: 10, Story.delete: 10,
    Story.account: 4, Story.identity: 2, Story.label: 6, Story.complete: 3,
    Story.spoil: 2,
}  # fmt: skip


@dataclass
class Threads:
    """People who reply below gates that are edited, and delete and edit whatever they wrote."""

    chance: random.Random
    people: tuple[str, ...] = (*PEOPLE, "dan")
    net: Network = field(default_factory=Network)
    events: list[Event] = field(default_factory=list)
    roots: dict[str, Put] = field(default_factory=dict)  # uri of a post -> root of its thread
    posts: list[Put] = field(default_factory=list)  # deleted ones as well
    others: list[Put] = field(default_factory=list)
    gates: dict[str, Put] = field(default_factory=dict)  # uri of a root -> its gate

    def tell(self, length: int) -> list[Event]:
        """Return events in their order."""
        for who in self.people:
            root = self._add(self.net.post(who))
            self.roots[root.uri] = root
            purpose = {"name": "l", "purpose": "app.bsky.graph.defs#curatelist"}
            self.others.append(self._add(self.net.put(who, "app.bsky.graph.list", purpose)))
        steps = (self.reply, self.reply, self.reply, self.gate, self.follow, self.delete,
                 self.delete, self.react, self.edit)  # fmt: skip
        while len(self.events) < length:
            self.chance.choice(steps)(self.chance.choice(self.people))
        return self.events

    def reply(self, who: str) -> None:
        parent = self.chance.choice(self.posts[-6:] or self.posts)
        root = self.roots.get(parent.uri, parent)
        self.roots[self._add(self.net.reply(who, parent, root)).uri] = root

    def gate(self, who: str) -> None:
        root = self.chance.choice([post for post in self.posts if self.roots[post.uri] is post])
        lists = [put.uri for put in self.others if put.collection == "app.bsky.graph.list"]
        kind = "app.bsky.feed.threadgate"
        rules = [{"$type": f"{kind}#{name}Rule"} for name in ("mention", "follower", "following")]
        rules.append({"$type": f"{kind}#listRule", "list": self.chance.choice(lists)})
        allow = self.chance.sample(rules, self.chance.randrange(3))
        record = {"post": root.uri, "allow": allow}
        known = self.gates.get(root.uri)
        if known is not None and self.chance.random() < 0.3:
            self.events.append(self.net.delete(known))
            del self.gates[root.uri]
        elif known is not None:
            self._add(self.net.update(known, record))
        else:
            self.gates[root.uri] = self._add(self.net.put(root.who, kind, record, root.rkey))

    def follow(self, who: str) -> None:
        other = self.chance.choice(self.people)
        own = [put for put in self.others if put.who == who and put.collection.endswith("list")]
        if self.chance.random() < 0.5 or not own:
            self.others.append(self._add(self.net.follow(who, other)))
        else:
            item = {"list": own[0].uri, "subject": did_of(other)}
            self.others.append(self._add(self.net.put(who, "app.bsky.graph.listitem", item)))

    def react(self, who: str) -> None:
        make = self.chance.choice((self.net.like, self.net.repost))
        self.others.append(self._add(make(who, self.chance.choice(self.posts))))

    def edit(self, _who: str) -> None:
        post = self.chance.choice(self.posts)
        facets = mention(self.chance.choice(self.people))
        self._add(self.net.update(post, {**post.record, "facets": facets}))

    def delete(self, _who: str) -> None:
        pool = self.chance.choice((self.posts[-8:], self.others[4:]))
        if pool:
            self.events.append(self.net.delete(self.chance.choice(pool)))

    def _add(self, put: Put) -> Put:
        self.events.append(put)
        if put.collection == "app.bsky.feed.post" and put.action != "update":
            self.posts.append(put)
        return put
