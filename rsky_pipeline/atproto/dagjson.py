"""The JSON form of the data model: links as `$link`, byte strings as `$bytes`.

https://atproto.com/specs/data-model#json-representation
"""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error

import orjson

from rsky_pipeline.atproto.cbor import Value
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidData


def default(value: object) -> dict[str, str]:
    """Turn what JSON lacks into its JSON form, as the `default` of `orjson.dumps`."""
    if isinstance(value, Cid):
        return {"$link": str(value)}
    if isinstance(value, bytes):
        return {"$bytes": b64encode(value).rstrip(b"=").decode("ascii")}
    raise TypeError(f"{type(value).__name__} is not a value of the data model")


def to_json(value: Value) -> bytes:
    """Return the JSON of a decoded value, keys in the order they were decoded."""
    try:
        return orjson.dumps(value, default=default)
    except (TypeError, orjson.JSONEncodeError) as error:
        raise InvalidData("not_encodable", str(error)[:200]) from error


def from_json(value: Value) -> Value:
    """Return the value whose JSON form this is; the inverse of `to_json` after parsing."""
    if isinstance(value, dict):
        if value.keys() == {"$link"}:
            return Cid.parse(value["$link"])
        if value.keys() == {"$bytes"}:
            return _bytes(value["$bytes"])
        return {key: from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return value


def _bytes(text: str) -> bytes:
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (Base64Error, ValueError) as error:
        raise InvalidData("invalid_bytes", "$bytes is not base64") from error
