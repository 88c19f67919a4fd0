"""What there is to react to: recent posts, lists, feeds, packs, and accounts.

Attention is uneven, as on the real network: new posts and a few accounts get most of it.
"""

import random
from dataclasses import dataclass, field

REMEMBERED = 6_000


@dataclass(frozen=True, slots=True)
class Reference:
    """A version of a record, and for a post the root of its thread."""

    uri: str
    cid: str
    did: str
    root: "Reference | None" = None

    def link(self) -> dict[str, str]:
        """Return it as a strong reference."""
        return {"uri": self.uri, "cid": self.cid}


@dataclass(slots=True)
class Subjects:
    """The pools; what is deleted stays in them, as people react to what they have on screen."""

    choose: random.Random
    posts: list[Reference] = field(default_factory=list)
    reposts: list[Reference] = field(default_factory=list)
    others: dict[str, list[Reference]] = field(default_factory=dict)  # collection -> records
    dids: list[str] = field(default_factory=list)

    def add(self, collection: str, reference: Reference) -> None:
        """Remember a record."""
        match collection:
            case "app.bsky.feed.post":
                pool = self.posts
            case "app.bsky.feed.repost":
                pool = self.reposts
            case _:
                pool = self.others.setdefault(collection, [])
        pool.append(reference)
        if len(pool) > REMEMBERED:
            del pool[: REMEMBERED // 4]

    def post(self) -> Reference | None:
        """Return a post, probably a recent one."""
        return self._recent(self.posts)

    def repost(self) -> Reference | None:
        """Return a repost, probably a recent one."""
        return self._recent(self.reposts)

    def other(self, collection: str, did: str | None = None) -> Reference | None:
        """Return a record of another collection, of one account only if asked."""
        pool = self.others.get(collection, [])
        if did is not None:
            pool = [item for item in pool if item.did == did]
        return self.choose.choice(pool) if pool else None

    def did(self) -> str:
        """Return an account, probably a popular one."""
        return self.dids[int(len(self.dids) * self.choose.random() ** 2)]

    def _recent(self, pool: list[Reference]) -> Reference | None:
        return pool[-1 - int(len(pool) * self.choose.random() ** 4)] if pool else None
