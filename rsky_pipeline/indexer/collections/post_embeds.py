"""The embeds of a post: images, gallery, video, external link, quoted record."""

from collections.abc import Mapping, Sequence

from rsky_pipeline.indexer.collections.fields import (
    MAX_REFERENCE_BYTES,
    InvalidRecordError,
    Record,
    blob_cid,
    items,
    mapping,
    optional_text,
    parts,
    strong_reference,
    text,
)
from rsky_pipeline.indexer.collections.values import Count, Put, Row, SideTable

POST = "app.bsky.feed.post"
_EMBED = "app.bsky.embed."
MAX_IMAGES, MAX_GALLERY = 4, 20
# The lexicons limit neither alt texts nor titles; the record's size does.
MAX_FREE_TEXT = 1_000_000
_IMAGE_COLUMNS = {"position": "varchar", "imageCid": "varchar", "alt": "varchar"}

SIDE_TABLES = (
    SideTable("post_embed_image", owner="postUri", columns=_IMAGE_COLUMNS),
    SideTable("post_embed_gallery_image", owner="postUri", columns=_IMAGE_COLUMNS),
    SideTable(
        "post_embed_external",
        owner="postUri",
        columns={
            "uri": "varchar",
            "title": "varchar",
            "description": "varchar",
            "thumbCid": "varchar",
        },
    ),
    SideTable(
        "post_embed_video", owner="postUri", columns={"videoCid": "varchar", "alt": "varchar"}
    ),
    SideTable(
        "post_embed_record",
        owner="postUri",
        columns={"embedUri": "varchar", "embedCid": "varchar"},
    ),
    SideTable(
        "quote",
        owner="uri",
        columns={
            "cid": "varchar",
            "subject": "varchar",
            "subjectCid": "varchar",
            "createdAt": "varchar",
            "indexedAt": "varchar",
        },
        counts=(Count("post_agg", "quoteCount", by="subject"),),
        skip_deleted="subject",
    ),
)


def read_embed(
    put: Put, record: Record, created: str, side: dict[str, Sequence[Row]]
) -> str | None:
    """Add the rows of the post's embed; return the uri of the post that it quotes, if any."""
    embed = mapping(record, "embed")
    if embed is None:
        return None
    kind = _kind(embed)
    if kind == "recordWithMedia":
        media = mapping(embed, "media")
        quoting = mapping(embed, "record")
        if media is None or quoting is None:
            raise InvalidRecordError("missing_field", "embed.record or embed.media is missing")
        _read_media(_kind(media), media, side)
        return _read_record(put, quoting, created, side)
    if kind == "record":
        return _read_record(put, embed, created, side)
    _read_media(kind, embed, side)
    return None


def _kind(embed: Record) -> str:
    kind = embed.get("$type")
    if not isinstance(kind, str):
        raise InvalidRecordError("missing_field", "an embed has no $type")
    return kind.removeprefix(_EMBED) if kind.startswith(_EMBED) else ""


def _read_media(kind: str, embed: Record, side: dict[str, Sequence[Row]]) -> None:
    if kind == "images":
        side["post_embed_image"] = _images(items(embed, "images", MAX_IMAGES))
    elif kind == "gallery":
        side["post_embed_gallery_image"] = _gallery(items(embed, "items", MAX_GALLERY))
    elif kind == "video":
        side["post_embed_video"] = [
            (_blob(embed, "video"), optional_text(embed, "alt", MAX_FREE_TEXT))
        ]
    elif kind == "external":
        side["post_embed_external"] = [_external(embed)]


def _images(images: Sequence[object]) -> list[Row]:
    rows: list[Row] = []
    for position, image in enumerate(images):
        if not isinstance(image, dict):
            raise InvalidRecordError("wrong_type", "an image is not an object")
        rows.append((str(position), _blob(image, "image"), text(image, "alt", MAX_FREE_TEXT)))
    return rows


def _gallery(entries: Sequence[object]) -> list[Row]:
    rows: list[Row] = []
    for position, entry in enumerate(entries):
        if isinstance(entry, dict) and entry.get("$type") == "app.bsky.embed.gallery#image":
            rows.append((str(position), _blob(entry, "image"), text(entry, "alt", MAX_FREE_TEXT)))
    return rows


def _external(embed: Record) -> Row:
    external = mapping(embed, "external")
    if external is None:
        raise InvalidRecordError("missing_field", "embed.external is missing")
    return (
        text(external, "uri", MAX_FREE_TEXT),
        text(external, "title", MAX_FREE_TEXT),
        text(external, "description", MAX_FREE_TEXT),
        blob_cid(external, "thumb"),
    )


def _blob(holder: Record, key: str) -> str:
    cid = blob_cid(holder, key)
    if cid is None:
        raise InvalidRecordError("missing_field", f"{key} is missing")
    return cid


def _read_record(
    put: Put, embed: Mapping[str, object], created: str, side: dict[str, Sequence[Row]]
) -> str | None:
    uri, cid = strong_reference(embed, "record")
    if len(put.uri) + len(uri) > MAX_REFERENCE_BYTES + 900:
        raise InvalidRecordError("too_long", "embed.record.uri is too long to be indexed")
    side["post_embed_record"] = [(uri, cid)]
    reference = parts(uri)
    if reference is None or reference.collection != POST:
        return None
    side["quote"] = [(put.cid, uri, cid, created, put.indexed_at)]
    return uri
