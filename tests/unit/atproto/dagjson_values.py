"""From the JSON form of the data model, in which published values are written, to values."""

from base64 import b64decode
from typing import Any

from rsky_pipeline.atproto.cid import Cid


def from_json(value: Any) -> Any:
    """Return the value whose JSON form this is."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return int(value) if isinstance(value, float) else value
    if value.keys() == {"$link"}:
        return Cid.parse(value["$link"])
    if value.keys() == {"$bytes"}:
        text = value["$bytes"].rstrip("=")
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    return {key: from_json(item) for key, item in value.items()}
