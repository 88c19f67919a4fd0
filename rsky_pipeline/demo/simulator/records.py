"""Records of every kind on the network, as accounts write them: subjects, texts, posts, lists."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.demo.simulator.accounts import DOMAIN, SimulatedAccount, plc_did
from rsky_pipeline.demo.simulator.clock import MICROS, TimeText
from rsky_pipeline.demo.simulator.repo import Record, Write

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
    """Pools of subjects to react to; deleted ones stay, as people react to posts on their screen.

    Attention is uneven, as on the real network: new posts and a few accounts get most of it.
    """

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


_SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "coffee first, then the release notes", "the heron is back at the pond",
        "anyone else rebuilding an old synth this winter?", "finished the book on the night bus",
        "new bread recipe, slightly burnt, no regrets", "that bug was a missing comma. again.",
    ),
    "pt": ("bom dia com pão na chapa", "amanhã tem feira na praça", "não é só saudade, é fome"),
    "de": ("Grüße aus der Straßenbahn", "heute früh war der See zugefroren", "Käsekuchen hilft"),
    "ja": ("おはようございます", "今日の夕焼けがきれいだった", "新しい本を読み始めました"),
    "ko": ("좋은 아침입니다", "오늘은 비가 와요"),
    "ar": ("صباح الخير للجميع", "القطار متأخر مرة أخرى"),
    "he": ("בוקר טוב לכולם",),
    "ru": ("снова снег, зато тихо", "доброе утро, коты"),
    "th": ("สวัสดีตอนเช้า",),
}  # fmt: skip
_LANGUAGES = tuple(_SENTENCES)
_WEIGHTS = (60, 12, 6, 10, 3, 3, 1, 3, 2)
_TAGS = ("art", "birds", "música", "gamedev", "写真", "OpenScience", "caturday", "nowplaying")
_EMOJI = ("🦋", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "😭", "🇧🇷", "✨", "🫠")
# Valid texts that find bugs in JSON and SQL: quotes, escapes, widths, directions of writing.
_ODD = (
    "", " ", "\n\n\n", "tab\there, back\\slash, \"quotes\", 'single', `tick`", '{"$link": "no"}',
    "null", "\\u0000 spelled out", "a\u0000b", "\u202eright to left\u202c and back",
    "e\u0301 e\u0302", "\ufeffbyte order mark", "\u200b\u200d\u2060", "\x7f\x1b[31mred\x1b[0m\x01",
    "\U0010ffff\ufffe", "𝒳 𝕐 𝖹 astral letters", "%s %(x)s {0} $1 :name ?",
    "'; DROP TABLE post; --", "x" * 240,  # a post may add to it and have no more than 300
)  # fmt: skip
_TITLES = ("Field notes", "Slow news", "Release 2.0", "How we moved house", "Árvores da cidade")


class TextWriter:
    """Makes texts; the same random numbers give the same texts."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose

    def language(self) -> str:
        """Return a language tag, mostly English."""
        return self._choose.choices(_LANGUAGES, _WEIGHTS)[0]

    def sentence(self, language: str) -> str:
        """Return a sentence in a language, sometimes with an emoji, rarely something odd."""
        draw = self._choose.random()
        if draw < 0.04:
            return self.odd()
        text = self._choose.choice(_SENTENCES[language])
        return f"{text} {self._choose.choice(_EMOJI)}" if draw > 0.7 else text

    def odd(self) -> str:
        """Return a text that is valid and unusual."""
        return self._choose.choice(_ODD)

    def tag(self) -> str:
        """Return a hashtag without its sign."""
        return self._choose.choice(_TAGS)

    def title(self) -> str:
        """Return the title of something linked to."""
        return self._choose.choice(_TITLES)

    def name(self) -> str:
        """Return a display name of at most 20 characters."""
        first = self._choose.choice(("Ana", "Jo", "Mika", "Żaneta", "雪", "Noor", "Пётр", "Sam"))
        return f"{first} {self._choose.choice(_EMOJI)}" if self._choose.random() < 0.3 else first


_FIXED = ("2999-12-31T23:59:59.999Z", "0001-01-01T00:00:00.000Z", "1970-01-01T00:00:00.000Z")
_HOUR = 3_600 * MICROS


class Moments:
    """Writes times; the same random numbers give the same oddities."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self._text = TimeText()

    def created(self, now: int) -> str:
        """Return a createdAt for something made now; always valid."""
        if self._choose.random() > 0.015:
            return self._text(now)
        match self._choose.randrange(6):
            case 0:
                return self._text(now)[:-5] + "Z"
            case 1:
                return f"{self._text(now)[:-1]}{self._choose.randrange(1_000_000):06d}Z"
            case 2:
                return f"{self._text(now + 9 * _HOUR)[:-1]}+09:00"
            case 3:
                return f"{self._text(now - 7 * _HOUR)[:-5]}-07:00"
            case 4:
                return self._text(now + self._choose.randrange(48) * _HOUR)
            case _:
                return self._choose.choice(_FIXED)


_EMBEDS = ("images", "external", "record", "video", "gallery", "recordWithMedia", "unknown")
_EMBED_WEIGHTS = (40, 22, 18, 6, 4, 8, 1)
_MEDIA = ("images", "external", "video", "gallery")
_EMBEDDABLE = (mix.LIST, mix.GENERATOR, mix.STARTER_PACK, mix.LABELER)


class PostMaker:
    """Makes the records of posts."""

    def __init__(self, choose: random.Random, writer: TextWriter, subjects: Subjects) -> None:
        self._choose = choose
        self._writer = writer
        self._subjects = subjects

    def make(self, created: str) -> Record:
        """Return a post: on its own, or a reply or a quote."""
        draw = self._choose.random
        language = self._writer.language()
        text, facets = self._text(language)
        record: Record = {"$type": "app.bsky.feed.post", "text": text, "createdAt": created}
        if facets:
            record["facets"] = facets
        if draw() < 0.35 and (parent := self._subjects.post()) is not None:
            root = parent.root or parent
            record["reply"] = {"root": root.link(), "parent": parent.link()}
        if draw() < 0.3 and (embed := self._embed()) is not None:
            record["embed"] = embed
        if draw() < 0.85:
            record["langs"] = [language] if draw() < 0.95 else [language, "en-US"]
        if draw() < 0.02:
            record["langs"] = []
        if draw() < 0.03:
            record["tags"] = [self._writer.tag() for _ in range(self._choose.randint(1, 3))]
        if draw() < 0.02:
            labels = [
                {"val": self._choose.choice(("nudity", "graphic-media", "!no-unauthenticated"))}
            ]
            record["labels"] = {"$type": "com.atproto.label.defs#selfLabels", "values": labels}
        if draw() < 0.01:
            record["via"] = "some client 1.2"  # not in the lexicon: kept as it is
        return record

    def blob(self, media_type: str = "image/jpeg") -> dict[str, Any]:
        """Return a reference to a blob; only its CID exists."""
        content = self._choose.randbytes(16)
        return {
            "$type": "blob",
            "ref": Cid.of(content, RAW),
            "mimeType": media_type,
            "size": self._choose.randint(1_000, 900_000),
        }

    def _text(self, language: str) -> tuple[str, list[Record]]:
        text = self._writer.sentence(language)
        facets: list[Record] = []
        while len(facets) < 3 and self._choose.random() < 0.15:
            shown, feature = self._feature()
            start = len(text.encode()) + 1
            text = f"{text} {shown}"
            index = {"byteStart": start, "byteEnd": start + len(shown.encode())}
            facets.append({"index": index, "features": [feature]})
        return text, facets

    def _feature(self) -> tuple[str, Record]:
        kind = "app.bsky.richtext.facet"
        match self._choose.randrange(8):
            case 0 | 1 | 2:
                did = self._subjects.did()
                return f"@{did[-6:]}.example.com", {"$type": f"{kind}#mention", "did": did}
            case 3 | 4 | 5:
                uri = f"https://news.example.com/{self._choose.randrange(10_000)}?q=%C3%A9&n=1"
                return "news.example.com/…", {"$type": f"{kind}#link", "uri": uri}
            case 6:
                tag = self._writer.tag()
                return f"#{tag}", {"$type": f"{kind}#tag", "tag": tag}
            case _:
                return "sparkles", {"$type": "com.example.facet#sparkle", "level": 3}

    def _embed(self) -> Record | None:
        kind = self._choose.choices(_EMBEDS, _EMBED_WEIGHTS)[0]
        if kind == "record":
            return self._quote()
        if kind == "recordWithMedia":
            quote = self._quote()
            if quote is None:
                return None
            media = self._media(self._choose.choice(_MEDIA))
            return {"$type": "app.bsky.embed.recordWithMedia", "record": quote, "media": media}
        return self._media(kind)

    def _quote(self) -> Record | None:
        target: Reference | None = self._subjects.post()
        if self._choose.random() < 0.15:
            target = self._subjects.other(self._choose.choice(_EMBEDDABLE)) or target
        if target is None:
            return None
        return {"$type": "app.bsky.embed.record", "record": target.link()}

    def _media(self, kind: str) -> Record:
        embed: Record = {"$type": f"app.bsky.embed.{kind}"}
        match kind:
            case "images":
                count = self._choose.choices((0, 1, 2, 3, 4), (1, 70, 15, 8, 6))[0]
                embed["images"] = [self._image() for _ in range(count)]
            case "gallery":
                count = self._choose.randint(2, 12)
                embed["items"] = [self._gallery_item() for _ in range(count)]
            case "video":
                embed["video"] = self.blob("video/mp4")
                if self._choose.random() < 0.5:
                    embed["alt"] = self._writer.sentence("en")
            case "external":
                embed["external"] = self._external()
            case _:
                embed = {"$type": "com.example.embed.poll", "options": ["yes", "no"]}
        return embed

    def _image(self) -> Record:
        image: Record = {"image": self.blob(), "alt": self._writer.sentence("en")}
        if self._choose.random() < 0.8:
            image["aspectRatio"] = {"width": 1_200, "height": self._choose.randint(300, 2_000)}
        return image

    def _gallery_item(self) -> Record:
        if self._choose.random() < 0.1:
            return {"$type": "com.example.gallery#model", "vertices": 12}
        ratio = {"width": 3, "height": 4}
        return {"$type": "app.bsky.embed.gallery#image", **self._image(), "aspectRatio": ratio}

    def _external(self) -> Record:
        external: Record = {
            "uri": f"https://blog.example.com/{self._choose.randrange(100_000)}",
            "title": self._writer.title(),
            "description": self._writer.sentence("en"),
        }
        if self._choose.random() < 0.6:
            external["thumb"] = self.blob("image/png")
        return external


_PURPOSES = ("modlist", "curatelist", "referencelist")


class ShelfMaker:
    """Makes such records from ones that have a type and a time already."""

    def __init__(
        self,
        choose: random.Random,
        writer: TextWriter,
        subjects: Subjects,
        blob: Callable[[str], dict[str, Any]],
    ) -> None:
        self._choose = choose
        self._writer = writer
        self._subjects = subjects
        self._blob = blob

    def make(
        self, kind: str, account: SimulatedAccount, record: Record, now: int
    ) -> list[Write] | None:
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
            case mix.LIST_BLOCK | mix.OPT_OUT:
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

    def thread_gate(self, account: SimulatedAccount, rkey: str, record: Record) -> Write:
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

    def post_gate(self, account: SimulatedAccount, rkey: str, record: Record) -> Write:
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


SELF = "self"
_ANY_CID = "bafyreigy2ttn5ahcqgwcqd2vkkmv42uxfuzb4gxy5z2u5hg2gj3vtpbqhe"


class RecordMaker:
    """Makes the records that an account writes; the same random numbers give the same records."""

    def __init__(self, choose: random.Random, subjects: Subjects) -> None:
        self._choose = choose
        self._subjects = subjects
        self._writer = TextWriter(choose)
        self._moments = Moments(choose)
        self._posts = PostMaker(choose, self._writer, subjects)
        self._shelves = ShelfMaker(choose, self._writer, subjects, self._posts.blob)
        self._makers: dict[str, Callable[[SimulatedAccount, str, int], list[Write]]] = {
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

    def make(self, kind: str, account: SimulatedAccount, now: int) -> list[Write]:
        """Return the writes that make a record; a like, where there is nothing for that kind."""
        if (maker := self._makers.get(kind)) is not None:
            return maker(account, kind, now) or self._react(account, mix.LIKE, now)
        record = self._record(kind, now)
        if (written := self._shelves.make(kind, account, record, now)) is not None:
            return written or self._react(account, mix.LIKE, now)
        return self._declaration(kind, record, now)

    def edited(self, path: str, record: Record, account: SimulatedAccount, now: int) -> Record:
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

    def _react(self, _account: SimulatedAccount, kind: str, now: int) -> list[Write]:
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

    def _relate(self, _account: SimulatedAccount, kind: str, now: int) -> list[Write]:
        subject = self._subjects.did()
        if self._choose.random() < 0.005:
            subject = "did:web:nobody.example.com"
        return self._new(kind, now, self._record(kind, now) | {"subject": subject})

    def _post(self, account: SimulatedAccount, kind: str, now: int) -> list[Write]:
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

    def _late_gate(self, account: SimulatedAccount, kind: str, now: int) -> list[Write]:
        own = [item for item in self._subjects.posts[-500:] if item.did == account.did]
        if not own:
            return []
        rkey = self._choose.choice(own).uri.rpartition("/")[2]
        return [self._shelves.post_gate(account, rkey, self._record(kind, now))]

    def _profile(self, _account: SimulatedAccount, kind: str, now: int) -> list[Write]:
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

    def _verification(self, _account: SimulatedAccount, kind: str, now: int) -> list[Write]:
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
