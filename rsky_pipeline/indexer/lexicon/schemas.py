"""The lexicons of the indexed collections, and how a schema is written down as a value.

https://atproto.com/specs/lexicon
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Text:
    """A string; lengths are in bytes of UTF-8 and in grapheme clusters."""

    max_bytes: int = 0  # 0: unlimited
    min_bytes: int = 0
    max_graphemes: int = 0
    format: str = ""


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number."""

    minimum: int | None = None


@dataclass(frozen=True, slots=True)
class Boolean:
    """True or false."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes, in JSON an object with the key $bytes."""

    max_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Blob:
    """A reference to a file; kind and size are checked in strict mode only."""

    accept: tuple[str, ...]
    max_size: int


@dataclass(frozen=True, slots=True)
class Array:
    """A list."""

    item: "Shape"
    max_items: int = 0


@dataclass(frozen=True, slots=True)
class Object:
    """An object; properties that are not named are allowed.

    `name` is its $type, which it need not have; another one is wrong. Objects without a name are
    part of another definition, and may have any.
    """

    required: Mapping[str, "Shape"] = field(default_factory=dict)
    optional: Mapping[str, "Shape"] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True, slots=True)
class Union:
    """An open union: an object with a $type; of unknown types nothing more is asked."""

    types: Mapping[str, Object]


Shape = Text | Integer | Boolean | Bytes | Blob | Array | Object | Union


_LABEL = "com.atproto.label.defs#labelValueDefinition"
_FEED, _GRAPH, _EMBED = "app.bsky.feed", "app.bsky.graph", "app.bsky.embed"
ANY = Text()
DID, URI, AT_URI = Text(format="did"), Text(format="uri"), Text(format="at-uri")
DATETIME, LANGUAGE = Text(format="datetime"), Text(format="language")
CREATED: dict[str, Shape] = {"createdAt": DATETIME}
STRONG_REF = Object({"uri": AT_URI, "cid": Text(format="cid")}, name="com.atproto.repo.strongRef")
SIZE = Object({"width": Integer(1), "height": Integer(1)}, name=f"{_EMBED}.defs#aspectRatio")
AVATAR = Blob(("image/png", "image/jpeg"), 1_000_000)
IMAGE = Blob(("image/*",), 2_000_000)
DESCRIPTION = Text(3_000, 0, 300)

_SELF_LABEL = Object({"val": Text(128)}, name="com.atproto.label.defs#selfLabel")
SELF_LABELS = Union(
    {"com.atproto.label.defs#selfLabels": Object({"values": Array(_SELF_LABEL, 10)})}
)
_FACET = "app.bsky.richtext.facet"
FACETS = Array(
    Object(
        {
            "index": Object(
                {"byteStart": Integer(0), "byteEnd": Integer(0)}, name=f"{_FACET}#byteSlice"
            ),
            "features": Array(
                Union(
                    {
                        f"{_FACET}#mention": Object({"did": DID}),
                        f"{_FACET}#link": Object({"uri": URI}),
                        f"{_FACET}#tag": Object({"tag": Text(640, 0, 64)}),
                    }
                )
            ),
        },
        name=_FACET,
    )
)
_IMAGE = Object({"image": IMAGE, "alt": ANY}, {"aspectRatio": SIZE}, name=f"{_EMBED}.images#image")
_CAPTION = Object(
    {"lang": LANGUAGE, "file": Blob(("text/vtt",), 20_000)}, name=f"{_EMBED}.video#caption"
)
_MEDIA = {
    f"{_EMBED}.images": Object({"images": Array(_IMAGE, 4)}),
    f"{_EMBED}.gallery": Object(
        {
            "items": Array(
                Union(
                    {
                        f"{_EMBED}.gallery#image": Object(
                            {"image": IMAGE, "alt": ANY, "aspectRatio": SIZE}
                        )
                    }
                ),
                20,
            )
        }
    ),
    f"{_EMBED}.video": Object(
        {"video": Blob(("video/mp4",), 300_000_000)},
        {
            "captions": Array(_CAPTION, 20),
            "alt": ANY,
            "aspectRatio": SIZE,
            "presentation": ANY,
        },
    ),
    f"{_EMBED}.external": Object(
        {
            "external": Object(
                {"uri": URI, "title": ANY, "description": ANY},
                {"thumb": Blob(("image/*",), 1_000_000), "associatedRefs": Array(STRONG_REF)},
                name=f"{_EMBED}.external#external",
            )
        }
    ),
}
_RECORD = Object({"record": STRONG_REF}, name=f"{_EMBED}.record")
_EMBEDS = _MEDIA | {
    f"{_EMBED}.record": _RECORD,
    f"{_EMBED}.recordWithMedia": Object({"record": _RECORD, "media": Union(_MEDIA)}),
}
_REACTION = Object(CREATED | {"subject": STRONG_REF}, {"via": STRONG_REF})

SCHEMAS: dict[str, Object] = {
    f"{_FEED}.post": Object(
        {"text": Text(3_000, 0, 300)} | CREATED,
        {
            "entities": Array(
                Object(
                    {
                        "index": Object(
                            {"start": Integer(0), "end": Integer(0)}, name=f"{_FEED}.post#textSlice"
                        ),
                        "type": ANY,
                        "value": ANY,
                    },
                    name=f"{_FEED}.post#entity",
                )
            ),
            "facets": FACETS,
            "reply": Object(
                {"root": STRONG_REF, "parent": STRONG_REF}, name=f"{_FEED}.post#replyRef"
            ),
            "embed": Union(_EMBEDS),
            "langs": Array(LANGUAGE, 3),
            "labels": SELF_LABELS,
            "tags": Array(Text(640, 0, 64), 8),
        },
    ),
    f"{_FEED}.like": _REACTION,
    f"{_FEED}.repost": _REACTION,
    f"{_FEED}.threadgate": Object(
        {"post": AT_URI} | CREATED,
        {
            "allow": Array(
                Union(
                    {
                        f"{_FEED}.threadgate#{name}": Object()
                        for name in ("mentionRule", "followerRule", "followingRule")
                    }
                    | {f"{_FEED}.threadgate#listRule": Object({"list": AT_URI})}
                ),
                5,
            ),
            "hiddenReplies": Array(AT_URI, 300),
        },
    ),
    f"{_FEED}.postgate": Object(
        {"post": AT_URI} | CREATED,
        {
            "detachedEmbeddingUris": Array(AT_URI, 50),
            "embeddingRules": Array(Union({f"{_FEED}.postgate#disableRule": Object()}), 5),
        },
    ),
    f"{_FEED}.generator": Object(
        {"did": DID, "displayName": Text(240, 0, 24)} | CREATED,
        {
            "description": DESCRIPTION,
            "descriptionFacets": FACETS,
            "avatar": AVATAR,
            "acceptsInteractions": Boolean(),
            "labels": SELF_LABELS,
            "contentMode": ANY,
        },
    ),
    f"{_GRAPH}.follow": Object({"subject": DID} | CREATED, {"via": STRONG_REF}),
    f"{_GRAPH}.block": Object({"subject": DID} | CREATED),
    f"{_GRAPH}.list": Object(
        {"name": Text(64, 1), "purpose": ANY} | CREATED,
        {
            "description": DESCRIPTION,
            "descriptionFacets": FACETS,
            "avatar": AVATAR,
            "labels": SELF_LABELS,
        },
    ),
    f"{_GRAPH}.listitem": Object({"subject": DID, "list": AT_URI} | CREATED),
    f"{_GRAPH}.listblock": Object({"subject": AT_URI} | CREATED),
    f"{_GRAPH}.referencelistoptout": Object({"subject": AT_URI} | CREATED),
    f"{_GRAPH}.starterpack": Object(
        {"name": Text(500, 1, 50), "list": AT_URI} | CREATED,
        {
            "description": DESCRIPTION,
            "descriptionFacets": FACETS,
            "feeds": Array(Object({"uri": AT_URI}, name=f"{_GRAPH}.starterpack#feedItem"), 3),
        },
    ),
    f"{_GRAPH}.verification": Object(
        {"subject": DID, "handle": Text(format="handle"), "displayName": ANY} | CREATED
    ),
    "app.bsky.labeler.service": Object(
        {
            "policies": Object(
                {"labelValues": Array(ANY)},
                {
                    "labelValueDefinitions": Array(
                        Object(
                            {
                                "identifier": Text(100, 0, 100),
                                "severity": ANY,
                                "blurs": ANY,
                                "locales": Array(
                                    Object(
                                        {
                                            "lang": LANGUAGE,
                                            "name": Text(640, 0, 64),
                                            "description": Text(100_000, 0, 10_000),
                                        },
                                        name=f"{_LABEL}Strings",
                                    )
                                ),
                            },
                            {"defaultSetting": ANY, "adultOnly": Boolean()},
                            name=_LABEL,
                        )
                    )
                },
                name="app.bsky.labeler.defs#labelerPolicies",
            )
        }
        | CREATED,
        {
            "labels": SELF_LABELS,
            "reasonTypes": Array(ANY),
            "subjectTypes": Array(ANY),
            "subjectCollections": Array(Text(format="nsid")),
        },
    ),
    "app.bsky.actor.profile": Object(
        {},
        {
            "displayName": Text(640, 0, 64),
            "description": Text(2_560, 0, 256),
            "pronouns": Text(200, 0, 20),
            "website": URI,
            "avatar": AVATAR,
            "banner": AVATAR,
            "labels": SELF_LABELS,
            "joinedViaStarterPack": STRONG_REF,
            "pinnedPost": STRONG_REF,
            "createdAt": DATETIME,
        },
    ),
    "app.bsky.actor.status": Object(
        {"status": ANY} | CREATED,
        {
            "embed": Union({f"{_EMBED}.external": _MEDIA[f"{_EMBED}.external"]}),
            "durationMinutes": Integer(1),
        },
    ),
    "chat.bsky.actor.declaration": Object({"allowIncoming": ANY}, {"allowGroupInvites": ANY}),
    "app.bsky.notification.declaration": Object({"allowSubscriptions": ANY}),
    "com.germnetwork.declaration": Object(
        {"version": Text(14, 5), "currentKey": Bytes()},
        {
            "messageMe": Object(
                {"messageMeUrl": Text(2_047, 1, 0, "uri"), "showButtonTo": Text(100, 1)},
                name="com.germnetwork.declaration#messageMe",
            ),
            "keyPackage": Bytes(),
            "continuityProofs": Array(Bytes(1_000)),
        },
    ),
}  # fmt: skip
