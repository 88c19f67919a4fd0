"""The unlistable ranges of a host, in Redis, to be listed again later.

They stand in a hash of their own for each host: field is the first cursor, value the rest as JSON.
A range is stored before the listing moves behind it. (The key and the metrics call it a hole.)
"""

from dataclasses import asdict, dataclass, replace

import orjson

from rsky_pipeline.network.listing import Relisted, UnlistableRange
from rsky_pipeline.streams.connection import Store

FIRST_RETRY_SECONDS = 600
LAST_RETRY_SECONDS = 86_400
MAX_RANGES = 1_000  # a host with more is broken as a whole: its listing waits


@dataclass(frozen=True, slots=True)
class StoredRange:
    """An unlistable range, and when it is listed again; times are seconds since 1970."""

    start: int
    end: int
    problem: str
    found: int
    tries: int = 0
    retry_at: int = 0

    @property
    def range(self) -> UnlistableRange:
        """The cursors from which nothing can be listed."""
        return UnlistableRange(self.start, self.end)

    def after(self, again: Relisted, now: float) -> "list[StoredRange]":
        """Return the ranges that are left after another attempt; each waits twice as long."""
        tries = self.tries + 1
        wait = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(tries, 20))
        left = [
            StoredRange(each.start, each.end, self.problem, self.found, tries, int(now) + wait)
            for each in again.failed
        ]
        rest = again.untried
        if rest is not None:
            left.append(
                StoredRange(rest.start, rest.end, self.problem, self.found, self.tries, int(now))
            )
        return left

    def put_off(self, now: float) -> "StoredRange":
        """Return the range as it is after an attempt that failed for another reason than it."""
        return replace(self, retry_at=int(now) + FIRST_RETRY_SECONDS)


def new_range(missing: UnlistableRange, problem: str, now: float) -> StoredRange:
    """Return the record of a range that was just found."""
    when = int(now)
    return StoredRange(
        missing.start, missing.end, problem[:300], when, 0, when + FIRST_RETRY_SECONDS
    )


def ranges_key(host: str) -> str:
    """Return the key of a host's unlistable ranges."""
    return f"rsky_pipeline:listing_holes:{host}"


def load_ranges(store: Store, host: str) -> dict[int, StoredRange]:
    """Return the ranges of a host by their start; unreadable ones stay where they are."""
    found: dict[int, StoredRange] = {}
    for value in store.call("HVALS", ranges_key(host)):
        try:
            item = StoredRange(**orjson.loads(value))
        except (ValueError, TypeError):
            continue
        found[item.start] = item
    return found


def add_range(store: Store, host: str, found: StoredRange) -> None:
    """Store a range unless one with its start is stored already, with its own retries."""
    store.call("HSETNX", ranges_key(host), str(found.start), orjson.dumps(asdict(found)))


def replace_range(store: Store, host: str, old: StoredRange | None, new: list[StoredRange]) -> None:
    """Store the rest of a range, or a new one; written before the old one is removed."""
    if new:
        fields = [item for each in new for item in (str(each.start), orjson.dumps(asdict(each)))]
        store.call("HSET", ranges_key(host), *fields)
    if old is not None and old.start not in {each.start for each in new}:
        store.call("HDEL", ranges_key(host), str(old.start))
