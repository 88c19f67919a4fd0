"""The holes of a listing: ranges of cursors that a host could not list, to be tried again later.

They are kept in Redis, in a hash of their own for each host: field is the first cursor, value the
rest as JSON. A hole is written before the listing moves behind it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import orjson

from rsky_pipeline.ingester.walk import Hole
from rsky_pipeline.streams.connection import Store

FIRST_RETRY_SECONDS = 600
LAST_RETRY_SECONDS = 86_400
MAX_HOLES = 1_000  # a host with more is broken as a whole: its listing waits
MAX_REQUESTS = 200  # of one attempt at a hole


@dataclass(frozen=True, slots=True)
class KnownHole:
    """A hole, and when it is tried again; times are seconds since 1970."""

    start: int
    end: int
    problem: str
    found: int
    tries: int = 0
    retry_at: int = 0


def new_hole(hole: Hole, problem: str, now: float) -> KnownHole:
    """Return the record of a hole that was just found."""
    when = int(now)
    return KnownHole(hole.start, hole.end, problem[:300], when, 0, when + FIRST_RETRY_SECONDS)


def tried_again(hole: KnownHole, start: int, end: int, now: float) -> KnownHole:
    """Return what is left of a hole that was tried in vain; each try waits twice as long."""
    tries = hole.tries + 1
    wait = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(tries, 20))
    return KnownHole(start, end, hole.problem, hole.found, tries, int(now) + wait)


def holes_key(host: str) -> str:
    """Return the key of a host's holes."""
    return f"rsky_pipeline:listing_holes:{host}"


def load_holes(store: Store, host: str) -> dict[int, KnownHole]:
    """Return the holes of a host by their start; what cannot be read is left where it is."""
    found: dict[int, KnownHole] = {}
    for value in store.call("HVALS", holes_key(host)):
        try:
            hole = KnownHole(**orjson.loads(value))
        except (ValueError, TypeError):
            continue
        found[hole.start] = hole
    return found


def replace_hole(store: Store, host: str, old: KnownHole | None, new: list[KnownHole]) -> None:
    """Write what has become of a hole, or a new one; what stays is written before what goes."""
    if new:
        fields = [item for hole in new for item in (str(hole.start), orjson.dumps(asdict(hole)))]
        store.call("HSET", holes_key(host), *fields)
    if old is not None and old.start not in {hole.start for hole in new}:
        store.call("HDEL", holes_key(host), str(old.start))


class CannotList(Exception):
    """A host does not list a page, but may list others."""


async def walk_hole(
    hole: KnownHole, take: Callable[[str, int], Awaitable[str | None]], now: float
) -> list[KnownHole]:
    """Ask for all of a hole again; return what is left of it.

    `take` asks for a page at a cursor, queues its repos, and returns the cursor behind them, None
    at the end of the listing. It raises CannotList, and anything that ends the attempt.
    """
    left: list[KnownHole] = []
    at, limit = hole.start, min(1_000, hole.end - hole.start)
    for _ in range(MAX_REQUESTS):
        if at >= hole.end:
            break
        try:
            following = await take(str(at), min(limit, hole.end - at))
        except CannotList:
            if limit > 1:
                limit //= 2
                continue
            begin = left.pop().start if left and left[-1].end == at else at
            at += 1
            left.append(tried_again(hole, begin, at, now))
        else:
            limit = min(1_000, limit * 2)
            at = max(at + 1, _number(following, hole.end))
    if at < hole.end:
        left.append(KnownHole(at, hole.end, hole.problem, hole.found, hole.tries, int(now)))
    return left


def _number(cursor: str | None, end: int) -> int:
    """Return a cursor as a number; one that is none, or the end of all, lies behind the hole."""
    return int(cursor) if cursor is not None and cursor.isdigit() else end
