"""The JSON form of the data model: links as `$link`, byte strings as `$bytes`.

https://atproto.com/specs/data-model#json-representation
"""

from base64 import b64decode, b64encode

import orjson

from rsky_pipeline.atproto import cbor, compiled
from rsky_pipeline.atproto.cbor import MAX_DEPTH, Value
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidDataError


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
        raise InvalidDataError("not_encodable", str(error)[:200]) from error


def record_to_json(block: bytes) -> bytes:
    """Return the JSON of a record's block. Raises InvalidDataError for one that is not a record."""
    made = compiled.record_json(block)
    if made is not None:
        return made
    record = cbor.decode(block)
    if type(record) is not dict:
        raise InvalidDataError("invalid_record", "a record is a map")
    return to_json(record)


def from_json(value: object) -> Value:
    """Return the value whose JSON form this is; the inverse of `to_json` after parsing.

    Raises InvalidDataError for what the data model lacks: fractions, malformed `$link` and
    `$bytes`, too many levels. A number such as 1.0 is an integer.
    """
    return _from_json(value, MAX_DEPTH)


def _from_json(value: object, depth: int) -> Value:
    if isinstance(value, float):
        if not value.is_integer():
            raise InvalidDataError("float", "the data model has no fractions")
        return int(value)
    if not isinstance(value, dict | list):
        return value
    if depth == 0:
        raise InvalidDataError("too_deep", f"more than {MAX_DEPTH} levels")
    if isinstance(value, list):
        return [_from_json(item, depth - 1) for item in value]
    if "$link" in value:
        return Cid.parse(_only_text(value, "$link"))
    if "$bytes" in value:
        return _bytes(_only_text(value, "$bytes"))
    return {key: _from_json(item, depth - 1) for key, item in value.items()}


def _only_text(value: dict[str, object], key: str) -> str:
    text = value[key]
    if len(value) != 1 or not isinstance(text, str):
        raise InvalidDataError("invalid_json", f"{key} has company or is not a text")
    return text


def _bytes(text: str) -> bytes:
    bare = text.rstrip("=")
    try:
        return b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except ValueError as error:
        raise InvalidDataError("invalid_bytes", "$bytes is not base64") from error
