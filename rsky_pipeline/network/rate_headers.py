"""What servers say about their rate limits; no I/O.

Hosts of the network send `ratelimit-limit`, `-remaining` and `-reset` (Unix seconds; in the drafts
of the IETF seconds from now), newer ones may send one `ratelimit` field with `r` and `t`, and
`retry-after` comes in seconds or as a date (RFC 9110, 10.2.3).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

LONGEST_SECONDS = 3_600.0  # whatever a host asks for
_EPOCH_FROM = 1_000_000_000  # a larger reset is an instant, not a duration
_FIELD = re.compile(r"(?:^|;)\s*([rt])=(\d{1,12})\b")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How many requests are left, and the seconds until there are as many as ever."""

    remaining: int
    reset_seconds: float


def read_rate_limit(headers: Mapping[str, str], now: float) -> RateLimit | None:
    """Read what a response says of the limit; `now` in Unix seconds."""
    remaining, reset = headers.get("ratelimit-remaining"), headers.get("ratelimit-reset")
    if remaining is None:
        fields = dict(_FIELD.findall(headers.get("ratelimit", "")[:200]))
        remaining, reset = fields.get("r"), fields.get("t")
    if not _is_number(remaining) or not _is_number(reset):
        return None
    seconds = float(reset or 0)
    if seconds >= _EPOCH_FROM:
        seconds -= now
    return RateLimit(int(remaining or 0), min(max(seconds, 0.0), LONGEST_SECONDS))


def read_retry_after(text: str | None, now: float) -> float | None:
    """Return the seconds that a host asks to be left alone, None where it does not say."""
    if text is None or len(text) > 100:
        return None
    if _is_number(text):
        seconds = float(text)
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_SECONDS)


def _is_number(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and len(text) <= 12
