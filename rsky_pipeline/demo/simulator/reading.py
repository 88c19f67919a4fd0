"""Reading records for the truth, with as little of the pipeline's own code as possible."""

from base64 import b32encode, b64encode
from datetime import UTC, datetime
from typing import Any

import cbor2
import orjson

EPOCH = "1970-01-01T00:00:00.000Z"
_CID_TAG = 42


def json_form(block: bytes) -> Any:
    """Return the JSON form of a block: links as `$link`, bytes as `$bytes`."""
    return _plain(cbor2.loads(block))


def canonical(value: Any) -> str:
    """Return JSON as a text that is equal for equal values."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def clean(text: str | None) -> str | None:
    """Return a text as PostgreSQL can hold it: without NUL characters."""
    return None if text is None else text.replace("\0", "")


def utc_milliseconds(text: str) -> str:
    """Return a datetime in UTC and cut to milliseconds; 1970 for what is none."""
    head, point, rest = text.partition(".")
    if point:  # Python reads six digits of a second at most
        digits = len(rest) - len(rest.lstrip("0123456789"))
        text = f"{head}.{rest[:digits][:6].ljust(6, '0')}{rest[digits:]}"
    try:
        moment = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return EPOCH
    return f"{moment:%Y-%m-%dT%H:%M:%S}".rjust(19, "0") + f".{moment.microsecond // 1000:03d}Z"


def _plain(value: Any) -> Any:
    if isinstance(value, cbor2.CBORTag):
        if value.tag != _CID_TAG:
            raise ValueError(f"tag {value.tag} in a record")
        return {"$link": "b" + b32encode(value.value[1:]).decode().lower().rstrip("=")}
    if isinstance(value, bytes):
        return {"$bytes": b64encode(value).decode().rstrip("=")}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
