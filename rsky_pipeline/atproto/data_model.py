"""The values of the AT Protocol data model and their bounds. https://atproto.com/specs/data-model"""

from typing import Any

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidDataError

# One record with 4,394 levels is known on the network; it is refused like any deeper than this.
MAX_DEPTH = 128
# The data model's advice for one container, here for everything that is decoded at once.
MAX_ITEMS = 131_072

_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**63 - 1
_SCALARS = frozenset({bool, type(None), bytes, Cid})

Value = Any  # dict[str, Value] | list[Value] | str | int | bytes | Cid | bool | None


def check(value: Value) -> None:
    """Raise InvalidDataError unless a value fits the data model: no floats, text keys, bounded
    depth.

    It goes level by level, so that depth costs no recursion and a cycle ends at the limit.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Value] = []
        for item in level:
            kind = type(item)
            if kind is str or kind in _SCALARS:
                continue
            if kind is dict:
                for key in item:
                    if type(key) is not str:
                        raise InvalidDataError(
                            "invalid_key", f"a map key of type {type(key).__name__}"
                        )
                below.extend(item.values())
            elif kind is list:
                below.extend(item)
            elif kind is int:
                if not _MIN_INTEGER <= item <= _MAX_INTEGER:
                    raise InvalidDataError("integer_range", "an integer of more than 64 bits")
            elif kind is float:
                raise InvalidDataError("float", "the data model has no floats")
            else:
                raise InvalidDataError("invalid_type", kind.__name__)
        if not below:
            return
        if len(below) > MAX_ITEMS:
            raise InvalidDataError("too_many_items", f"more than {MAX_ITEMS}")
        level = below
    raise InvalidDataError("too_deep", f"more than {MAX_DEPTH} levels")
