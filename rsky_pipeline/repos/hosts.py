"""Turns at the hosts that repos are fetched from: limits of each, and who waits.

A host is known by name and port, and by the address and port that its name leads to, which many
names may share; a request needs a turn at both. What a host says of its rate limit, and how it
behaves, sets its pace: it is left alone while it says so, and parked after failures in a row. What
is to be fetched from it then waits elsewhere, in Redis, so that it holds up nobody.

`HostState` is the limits of one host and has no I/O; `Host` adds who is served and who waits;
`HostTurns` hands out turns and forgets hosts that nobody needs.
"""

import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice
from urllib.parse import urlsplit

import trio

from rsky_pipeline.network.http import RateLimit
from rsky_pipeline.runtime.backoff import bound

MAX_HOSTS = 20_000  # strangers choose their names, so what is kept of them must not add up
SHARED_ADDRESS = 4  # an address may serve so many times as much as one of the names on it
PARK_AFTER = 3  # failures in a row
LONGEST_PARKING_SECONDS = 600.0
LIMITED_SECONDS = 10.0  # after a 429 that does not say how long; doubles
_LONGEST_LIMITED_SECONDS = 330.0
MAX_ADDRESSES = 20_000
FRESH_SECONDS = 300.0  # that an address is remembered
LOOKUP_SECONDS = 5.0


class HostBusyError(Exception):
    """No turn soon; come back after `seconds`.

    `problem` is set where the host is parked because it keeps failing.
    """

    def __init__(self, host: str, seconds: float, problem: str = "") -> None:
        super().__init__(f"{host} is left alone for {seconds:.0f} s" + (problem and f": {problem}"))
        self.host = host
        self.seconds = seconds
        self.problem = problem


@dataclass(frozen=True, slots=True)
class HostRules:
    """What a host is asked for at most: downloads at once, requests a second, pauses (seconds)."""

    concurrency: int
    rate: float
    waiting: int = 4  # repos that wait for a turn in memory; the others wait in Redis
    patience: float = 5.0  # seconds that they wait
    pause_base: float = 5.0
    pause_cap: float = LONGEST_PARKING_SECONDS


class HostState:
    """The limits of one host as they are now. All times are of one clock, in seconds."""

    def __init__(self, rules: HostRules, now: float) -> None:
        self._rules = rules
        self._burst = min(float(rules.concurrency), max(1.0, rules.rate))
        self._tokens = self._burst
        self._refilled = now
        self._rate = rules.rate
        self._learned_until = 0.0
        self._limited = 0  # answers in a row that said so
        self._reserved = 0.0  # until when work that waits elsewhere has been spread
        self.failures = 0  # in a row
        self.problem = ""  # what the last of them said
        self.paused_until = 0.0

    @property
    def failing(self) -> bool:
        """Whether it failed so often that it is tried by one request at a time."""
        return self.failures >= PARK_AFTER

    def is_fresh(self, now: float) -> bool:
        """Whether nothing is known of it that would have to be remembered."""
        return not self.failures and not self._limited and now > max(
            self.paused_until, self._reserved, self._learned_until
        )  # fmt: skip

    def delay(self, now: float) -> float:
        """Return the seconds until it may be asked again, 0 for now."""
        if now < self.paused_until:
            return self.paused_until - now
        self._refill(now)
        return 0.0 if self._tokens >= 1.0 else (1.0 - self._tokens) / self._rate

    def ask(self, now: float) -> None:
        """Note that a request is sent."""
        self._refill(now)
        self._tokens -= 1.0

    def reserve(self, now: float, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds after which work that has to wait elsewhere should come back.

        Every call is later than the one before by what a request takes at the host's rate.
        """
        first = max(now, self.paused_until)
        self._reserved = max(first + 1.0, self._reserved) + 1.0 / self._rate
        return self._reserved - now + draw()

    def succeeded(self, limit: RateLimit | None, now: float) -> None:
        """Note an answer, whatever it said of the repo."""
        self.failures = self._limited = 0
        self._learn(limit, now)

    def failed(self, problem: str, now: float, draw: Callable[[], float] = random.random) -> None:
        """Note that it could not be reached, broke off or had an error of its own."""
        self.failures += 1
        self.problem = problem
        if self.failing:
            attempt = self.failures - PARK_AFTER + 1
            pause = bound(attempt, self._rules.pause_base, self._rules.pause_cap)
            self.paused_until = max(self.paused_until, now + pause * (0.5 + draw() / 2))

    def limited(self, retry_after: float | None, limit: RateLimit | None, now: float) -> float:
        """Note that it asked for a pause; return how long that is."""
        self.failures = 0
        self._limited += 1
        if retry_after is None and limit is not None and limit.remaining == 0:
            retry_after = limit.reset_seconds
        if retry_after is None:
            retry_after = bound(self._limited, LIMITED_SECONDS, _LONGEST_LIMITED_SECONDS)
        self._learn(limit, now)
        self.paused_until = max(self.paused_until, now + retry_after)
        return retry_after

    def _learn(self, limit: RateLimit | None, now: float) -> None:
        if limit is None:
            return
        if limit.remaining <= 0:
            self.paused_until = max(self.paused_until, now + limit.reset_seconds)
        elif limit.reset_seconds > 0:
            # What is left has to last until the limit is reset.
            self._rate = min(self._rules.rate, limit.remaining / limit.reset_seconds)
            self._learned_until = now + limit.reset_seconds
            self._tokens = min(self._tokens, float(limit.remaining))

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._refilled) * self._rate)
        self._refilled = now
        if now >= self._learned_until:
            self._rate = self._rules.rate


class Host:
    """A host: its limits, who is being served, and who waits."""

    def __init__(self, name: str, rules: HostRules, now: float) -> None:
        self.name = name
        self.state = HostState(rules, now)
        self.rules = rules
        self.limiter = trio.CapacityLimiter(rules.concurrency)

    @property
    def idle(self) -> bool:
        """Whether nobody is served or waits."""
        return not self.limiter.borrowed_tokens and not self.limiter.statistics().tasks_waiting

    @property
    def crowded(self) -> bool:
        """Whether no more should wait for it in memory."""
        return self.limiter.statistics().tasks_waiting >= self.rules.waiting


class HostTurns:
    """All hosts that are known at the moment, by name and port, and by address and port."""

    def __init__(self, rules: HostRules, clock: Callable[[], float] = trio.current_time) -> None:
        self._rules = rules
        self._shared = replace(
            rules,
            concurrency=rules.concurrency * SHARED_ADDRESS,
            rate=rules.rate * SHARED_ADDRESS,
            waiting=rules.waiting * SHARED_ADDRESS,
        )
        self._clock = clock
        self._known: OrderedDict[str, Host] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def parked(self) -> int:
        """How many hosts are left alone now."""
        now = self._clock()
        return sum(host.state.paused_until > now for host in self._known.values())

    def of(self, name: str, *, shared: bool = False) -> Host:
        """Return a host by its key."""
        host = self._known.get(name)
        if host is None:
            self._forget_some()
            rules = self._shared if shared else self._rules
            host = self._known[name] = Host(name, rules, self._clock())
        self._known.move_to_end(name)
        return host

    @asynccontextmanager
    async def turn(self, url: str, address: str | None = None) -> AsyncIterator[Host]:
        """Hold a turn at the host of a URL; raises HostBusyError where there is none soon.

        `address` is where its name leads; many names may share one.
        """
        host = self.of(host_key(url))
        async with AsyncExitStack() as stack:
            await self._enter(stack, host)
            if address is not None and address != host.name:
                await self._enter(stack, self.of(address, shared=True))
            yield host

    def busy(self, host: Host) -> HostBusyError:
        """Return the error for somebody who has to come back to a host later."""
        now, state = self._clock(), host.state
        problem = state.problem if state.failing else ""
        return HostBusyError(host.name, state.reserve(now), problem)

    async def _enter(self, stack: AsyncExitStack, host: Host) -> None:
        state, patience = host.state, host.rules.patience
        # One that keeps failing is tried by one at a time, until it answers again.
        probing = state.failing and host.limiter.borrowed_tokens > 0
        if probing or host.crowded or state.delay(self._clock()) > patience:
            raise self.busy(host)
        token = object()
        with trio.move_on_after(patience) as scope:
            await host.limiter.acquire_on_behalf_of(token)
            stack.callback(host.limiter.release_on_behalf_of, token)
            while (delay := state.delay(self._clock())) > 0:
                if delay > patience:
                    raise self.busy(host)
                await trio.sleep(delay)
            state.ask(self._clock())
            return
        if scope.cancelled_caught:
            raise self.busy(host)

    def _forget_some(self) -> None:
        """Drop the host that was used longest ago and holds nothing worth remembering."""
        if len(self._known) < MAX_HOSTS:
            return
        now = self._clock()
        idle = [host for host in islice(self._known.values(), 200) if host.idle]
        fresh = (host for host in idle if host.state.is_fresh(now))
        if (victim := next(fresh, None) or next(iter(idle), None)) is not None:
            del self._known[victim.name]


def host_key(url: str) -> str:
    """Return what a host's limits are kept by: lower-case name and port."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{(parts.hostname or '').rstrip('.')}:{port}"


class Addresses:
    """First addresses of hosts, each with its port, cached for some minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cache: OrderedDict[tuple[str, int], tuple[str | None, float]] = OrderedDict()

    async def of(self, url: str) -> str | None:
        """Return address and port; None for a name without an address: the request fails then."""
        parts = urlsplit(url)
        key = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        cached = self._cache.get(key)
        if cached is not None and self._clock() - cached[1] < FRESH_SECONDS:
            return cached[0]
        found: str | None = None
        with trio.move_on_after(LOOKUP_SECONDS):
            found = await _look_up(*key)
        self._cache[key] = (found, self._clock())
        self._cache.move_to_end(key)
        while len(self._cache) > MAX_ADDRESSES:
            self._cache.popitem(last=False)
        return found


async def _look_up(name: str, port: int) -> str | None:
    try:
        found = await trio.socket.getaddrinfo(name, port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    # Sorted: servers turn the order round, and a limit has to stay where it is.
    return f"{min(str(item[4][0]) for item in found)}:{port}" if found else None
