"""The JSON form of the data model: links as `$link`, byte strings as `$bytes`.

https://atproto.com/specs/data-model#json-representation
"""

from base64 import b64decode, b64encode

import orjson

from rsky_pipeline.atproto import cbor, compiled
from rsky_pipeline.atproto.cbor import Value
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


def from_json(value: object) -> Value:
    """Return the value that a parsed JSON text means. Raises InvalidDataError."""
    if type(value) is list:
        return [from_json(item) for item in value]
    if type(value) is not dict:
        return value  # JSON has no other values
    if len(value) == 1:
        ((key, content),) = value.items()
        if key == "$link" and type(content) is str:
            return Cid.parse(content)
        if key == "$bytes" and type(content) is str:
            try:
                return b64decode(content + "=" * (-len(content) % 4), validate=True)
            except ValueError as error:
                raise InvalidDataError("invalid_bytes", str(error)) from error
    return {key: from_json(item) for key, item in value.items()}


def record_to_json(block: bytes) -> bytes:
    """Return the JSON of a record's block. Raises InvalidDataError for one that is not a record."""
    made = compiled.record_json(block)
    if made is not None:
        return made
    record = cbor.decode(block)
    if type(record) is not dict:
        raise InvalidDataError("invalid_record", "a record is a map")
    return to_json(record)
