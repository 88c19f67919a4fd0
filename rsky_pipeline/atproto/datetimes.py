"""Datetimes in the one form that the AppView's text columns are compared in."""

import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from rsky_pipeline.atproto import compiled
from rsky_pipeline.atproto.syntax import rev_microseconds

EPOCH = "1970-01-01T00:00:00.000Z"
_PARTS = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?)?"
    r"\s*([Zz]|UTC|[+-]\d\d:?\d\d)?",  # UTC: the Rust ingester writes the times of labels so
    re.ASCII,
)
_SYNTAX = re.compile(
    r"\d{4}-[01]\d-[0-3]\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:Z|[+-][0-2]\d:[0-5]\d)",
    re.ASCII,
)
# The other form, in which the read path of the AppView accepts datetimes: without a zone or with
# one that is in use, with or without all separators of a part, and with a leap second.
_EAST = (
    r"(?:0(?!2{0}4|0{0}3)|1(?=[01]|2(?={0}[04])|[34](?={0}0)))"
    r"(?:[03469](?={0}[03])|[17](?={0}0)|2(?={0}[04])|5(?={0}[034])|8(?={0}[04])){0}(?:[03](?=0)|45)[05]"
)
_WEST = r"(?:0(?=[^0])|1(?=[0-2]))(?:[39](?={0}[03])|[0-24-8](?={0}00)){0}[03]0"
_READABLE = re.compile(
    r"(\d{4})(-?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])T"
    r"(?:[01]\d|2[0-3]|24(?=:?00))(?:[0-5]\d(?:[0-5]\d|60)?|:[0-5]\d:(?:[0-5]\d|60))(?:[.,]\d{1,9})?"
    rf"(?:Z|\+(?:{_EAST.format(':')}|{_EAST.format('')})|-(?:{_WEST.format(':')}|{_WEST.format('')}))?",
    re.ASCII,
)
_UTC = frozenset({"Z", "z", "UTC"})
_LONGEST = 80  # characters
_STAND_IN = 2000  # years added around the year 0, which `datetime` lacks; leap years stay so


def is_datetime(text: str) -> bool:
    """Return whether a text is a datetime as lexicons demand it: with seconds and a zone, and real.

    https://atproto.com/specs/lexicon#datetime
    """
    return compiled.is_usual_datetime(text) or (
        len(text) <= 64
        and _SYNTAX.fullmatch(text) is not None
        and not text.endswith("-00:00")
        and normalize(text) is not None
    )


def is_readable_datetime(text: str) -> bool:
    """Return whether the AppView reads a record that has this text as a datetime.

    Its read path also takes the times that old clients wrote without a zone. It calls some of them
    1970 afterwards, like `normalize`, but not the record wrong.
    """
    if is_datetime(text):
        return True
    found = _READABLE.fullmatch(text)
    if found is None:
        return False
    year, month, day = int(found[1]), int(found[3]), int(found[4])
    return day <= 28 or (day <= monthrange(year or 1, month)[1])


def normalize(text: str) -> str | None:
    """Return a datetime as `YYYY-MM-DDTHH:mm:ss.sssZ`, or None if it cannot be read.

    Offsets are converted to UTC, digits below a millisecond cut off; a time without a zone is
    taken as UTC. A day that its month lacks rolls over, as in the official implementation.
    """
    if compiled.is_usual_datetime(text):
        return text
    return _normalize(text) if len(text) <= _LONGEST else None


@lru_cache(4_096)  # the times of a commit and of its records are asked for again and again
def _normalize(text: str) -> str | None:
    match = _PARTS.fullmatch(text.strip())
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    clock = int(hour or 0), int(minute or 0), int(second or 0)
    if not 1 <= int(month) <= 12 or not 1 <= int(day) <= 31 or not _is_zone(zone):
        return None
    if clock == (24, 0, 0) and not int(fraction or 0):  # midnight at the end of a day
        clock, day = (0, 0, 0), str(int(day) + 1)
    if not _is_clock(*clock):
        return None
    shift = _STAND_IN if int(year) < 2 else 0
    moment = datetime(int(year) + shift, int(month), 1, *clock, tzinfo=UTC)
    milliseconds = int(((fraction or "") + "000")[:3])
    try:
        moment += timedelta(days=int(day) - 1, milliseconds=milliseconds) - _offset(zone)
    except OverflowError:
        return None
    if moment.year < shift:
        return None
    return f"{moment.year - shift:04d}{format_utc(moment)[4:]}" if shift else format_utc(moment)


def format_utc(moment: datetime) -> str:
    """Return an aware datetime in the normal form."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:23] + "Z"


def rev_time(rev: str) -> str:
    """Return the time of a rev in the normal form. Raises ValueError if it is none."""
    return format_utc(datetime.fromtimestamp(rev_microseconds(rev) / 1_000_000, UTC))


def _is_clock(hour: int, minute: int, second: int) -> bool:
    return hour <= 23 and minute <= 59 and second <= 59


def _is_zone(zone: str | None) -> bool:
    return zone is None or zone in _UTC or (zone[1:3] <= "23" and zone[-2:] <= "59")


def _offset(zone: str | None) -> timedelta:
    if zone is None or zone in _UTC:
        return timedelta()
    size = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
    return -size if zone[0] == "-" else size
