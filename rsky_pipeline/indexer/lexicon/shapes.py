"""Schemas as values. https://atproto.com/specs/lexicon"""

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
    """An object; properties that are not named are allowed."""

    required: Mapping[str, "Shape"] = field(default_factory=dict)
    optional: Mapping[str, "Shape"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Union:
    """An open union: an object with a $type; of unknown types nothing more is asked."""

    types: Mapping[str, Object]


Shape = Text | Integer | Boolean | Bytes | Blob | Array | Object | Union
