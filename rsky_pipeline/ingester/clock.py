"""Whether it is our clock that is wrong, where events seem to come from the future.

A commit or an account event that is far ahead of our clock is refused, or gets another time. That
judges a sender by a clock, which must be known to be right. So the first sign is no verdict: while
most of the latest accounts of a relay seem to be ahead, or little is known yet, others are asked
for the time (Redis, PostgreSQL, and the relay and the directory by the Date of an answer). Where
our clock is behind, reading pauses, and goes on from the cursor when the clock is right again:
nothing was judged meanwhile. A clock that is ahead refuses nothing.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import trio

from rsky_pipeline.atproto.datetimes import format_utc, normalize
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    IdentityMessage,
    SyncMessage,
)
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.database.connection import Database
from rsky_pipeline.ingester.commits.validation import FUTURE_SECONDS
from rsky_pipeline.network.http import HttpClient, HttpError, read_date
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import Store

MAX_OFF = FUTURE_SECONDS / 2  # seconds that our clock may be behind before it is called wrong
_ACCOUNTS = 64  # the latest ones that count
_ENOUGH = 8  # of them, to go by their majority
_UNDECIDED = 6  # pauses while less is known
_SAMPLE = 4  # of a batch without anything from the future
_TRUST_SECONDS = 60.0  # an answer of others counts so long, unless our clock jumps
_JUMP_SECONDS = 30.0
_ASK_SECONDS = 10.0
_MAX_BODY = 1_000_000
_UPDATES, _NEWS = (CommitMessage, SyncMessage), (AccountMessage, IdentityMessage)

# How many seconds the clock of somebody else is ahead of ours; None if they do not answer.
AskForTime = Callable[[], Awaitable[float | None]]


class ClockError(Exception):
    """Our clock is behind that of the others; the message says how far, as far as is known."""


class ClockWatch:
    """Judges the events of one relay before they are converted."""

    def __init__(
        self,
        ask_hosts: Sequence[AskForTime] = (),
        ask_stores: Sequence[AskForTime] = (),
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """A store may well run on this machine: its clock only counts where it differs."""
        self._ask_hosts, self._ask_stores = ask_hosts, ask_stores
        self._clock, self._monotonic = clock, monotonic
        self._accounts: OrderedDict[str, bool] = OrderedDict()  # whether they are ahead of us
        self._trusted_until = float("-inf")
        self._undecided = 0  # times in a row that too little was known
        self._shift = clock() - monotonic()

    async def check(self, messages: Sequence[object]) -> None:
        """Return if messages may be judged by our clock. Raises ClockError."""
        now = self._clock()
        latest = now + FUTURE_SECONDS
        limit, text = tid_from(int(latest * 1e6)), format_utc(datetime.fromtimestamp(latest, UTC))
        ahead = [message for message in messages if _is_ahead(message, limit, text)]
        self._note_jumps(now)
        for message in ahead or messages[:_SAMPLE]:
            did = getattr(message, "did", None)
            if isinstance(did, str):
                self._accounts[did] = bool(ahead)
                self._accounts.move_to_end(did)
        while len(self._accounts) > _ACCOUNTS:
            self._accounts.popitem(last=False)
        if not ahead or self._monotonic() < self._trusted_until:
            return
        if len(self._accounts) >= _ENOUGH and not self._most_are_ahead():
            return
        await self._ask()

    def _most_are_ahead(self) -> bool:
        return 2 * sum(self._accounts.values()) > len(self._accounts)

    def _note_jumps(self, now: float) -> None:
        shift = now - self._monotonic()
        if abs(shift - self._shift) > _JUMP_SECONDS:
            self._accounts.clear()
            self._trusted_until = float("-inf")
        self._shift = shift

    async def _ask(self) -> None:
        """Ask others for the time. Raises ClockError."""
        hosts, stores = await _answers(self._ask_hosts), await _answers(self._ask_stores)
        others = [off for off in stores if abs(off) > MAX_OFF]
        if hosts or others:
            behind = min(hosts or others)  # one that agrees with our clock is enough
            if behind > MAX_OFF:
                raise ClockError(f"our clock is {behind:.0f} s behind that of others")
            self._trusted_until = self._monotonic() + _TRUST_SECONDS
            self._undecided = 0
        elif self._most_are_ahead():
            # Of few accounts one may be wrong: it cannot hold the others up for long.
            self._undecided += 1
            if len(self._accounts) >= _ENOUGH or self._undecided <= _UNDECIDED:
                raise ClockError("our clock is behind that of the latest accounts, and nobody "
                                 "else answers")  # fmt: skip


def time_of_host(http: HttpClient, url: str) -> AskForTime:
    """Return how to ask a host for the time: by the Date of any answer."""

    async def ask() -> float | None:
        try:
            async with http.get(
                url, max_bytes=_MAX_BODY, total_seconds=_ASK_SECONDS, trusted=True
            ) as answer:
                date = read_date(answer.headers.get("date", ""))
        except HttpError:
            return None
        return None if date is None else date + 0.5 - time.time()

    return ask


def time_of_redis(link: Link[Store]) -> AskForTime:
    """Return how to ask Redis for the time."""

    async def ask() -> float | None:
        answer = await link.attempt(lambda store: store.call("TIME"))
        return None if answer is None else int(answer[0]) + int(answer[1]) / 1e6 - time.time()

    return ask


def time_of_database(link: Link[Database]) -> AskForTime:
    """Return how to ask PostgreSQL for the time."""

    async def ask() -> float | None:
        sql = "SELECT extract(epoch FROM clock_timestamp())::double precision"
        rows = await link.attempt(lambda database: database.query(sql))
        return None if rows is None else float(rows[0][0]) - time.time()

    return ask


async def _answers(asked: Sequence[AskForTime]) -> list[float]:
    found: list[float] = []

    async def ask(one: AskForTime) -> None:
        with trio.move_on_after(_ASK_SECONDS):
            answer = await one()
            if answer is not None:
                found.append(answer)

    async with trio.open_nursery() as nursery:
        for one in asked:
            nursery.start_soon(ask, one)
    return found


def _is_ahead(message: object, limit: str, text: str) -> bool:
    if isinstance(message, _UPDATES):
        return message.rev > limit
    if isinstance(message, _NEWS):
        return (normalize(message.time) or "") > text
    return False
