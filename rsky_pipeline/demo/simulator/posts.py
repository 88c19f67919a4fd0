"""Posts: texts with facets, replies, and embeds of every kind."""

import random
from typing import Any

from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.demo.simulator.repo import Record
from rsky_pipeline.demo.simulator.subjects import Reference, Subjects
from rsky_pipeline.demo.simulator.words import Writer

_EMBEDS = ("images", "external", "record", "video", "gallery", "recordWithMedia", "unknown")
_EMBED_WEIGHTS = (40, 22, 18, 6, 4, 8, 1)
_MEDIA = ("images", "external", "video", "gallery")
_EMBEDDABLE = (mix.LIST, mix.GENERATOR, mix.STARTER_PACK, mix.LABELER)


class PostMaker:
    """Makes the records of posts."""

    def __init__(self, choose: random.Random, writer: Writer, subjects: Subjects) -> None:
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
