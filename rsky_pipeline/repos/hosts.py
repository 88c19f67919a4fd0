"""Turns at the hosts that repos are fetched from: rate limits, concurrency, parking.

Limits apply to a name and port, and to the address and port that the name resolves to, which many
names may share; a request needs a turn at both. The rate-limit headers and the failures of a host
set its pace: it gets no requests until its limit resets, and is parked after consecutive failures.
Its jobs then wait in Redis, so that they occupy no slot of the worker.

`HostState` is the limits of one host, without I/O; `Host` adds its running and waiting requests;
`HostTurns` grants turns and evicts idle hosts.
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

MAX_HOSTS = 20_000  # bounds memory: anyone can make up host names
SHARED_ADDRESS = 4  # the limits of an address are this multiple of those of one name
PARK_AFTER = 3  # failures in a row
LONGEST_PARKING_SECONDS = 600.0
LIMITED_SECONDS = 10.0  # after a 429 without Retry-After; doubles
_LONGEST_LIMITED_SECONDS = 330.0
MAX_ADDRESSES = 20_000
MAX_FAILING = 50_000  # repos whose failures are remembered
FRESH_SECONDS = 300.0  # lifetime of a cached address
LOOKUP_SECONDS = 5.0


class HostBusyError(Exception):
    """No turn is available soon; retry after `seconds`.

    `problem` is set where the host is parked because it keeps failing.
    """

    def __init__(self, host: str, seconds: float, problem: str = "") -> None:
        super().__init__(f"no request to {host} for {seconds:.0f} s" + (problem and f": {problem}"))
        self.host = host
        self.seconds = seconds
        self.problem = problem


@dataclass(frozen=True, slots=True)
class HostRules:
    """Limits of a host: concurrent downloads, requests per second, pauses in seconds."""

    concurrency: int
    rate: float
    waiting: int = 4  # repos that wait for a turn in memory; the others wait in Redis
    patience: float = 5.0  # seconds that they wait
    pause_base: float = 5.0
    pause_cap: float = LONGEST_PARKING_SECONDS


class HostState:
    """The current limits of one host. Pure: the caller passes `now`, in seconds of one clock."""

    def __init__(self, rules: HostRules, now: float) -> None:
        self._rules = rules
        self._burst = min(float(rules.concurrency), max(1.0, rules.rate))
        self._tokens = self._burst
        self._refilled = now
        self._rate = rules.rate
        self._learned_until = 0.0
        self._limited = 0  # consecutive 429 answers
        self._reserved = 0.0  # latest return time given to postponed work
        self.failures = 0  # consecutive
        self.problem = ""  # text of the last failure
        self.served = 0  # repos
        self.paused_until = 0.0

    @property
    def failing(self) -> bool:
        """Whether it is parked: one request at a time probes it."""
        return self.failures >= PARK_AFTER

    def is_fresh(self, now: float) -> bool:
        """Whether it has no failures or limits, so that evicting it loses nothing."""
        return not self.failures and not self._limited and now > max(
            self.paused_until, self._reserved, self._learned_until
        )  # fmt: skip

    def delay(self, now: float) -> float:
        """Return the seconds until the next request is allowed, 0 for now."""
        if now < self.paused_until:
            return self.paused_until - now
        self._tokens = min(self._burst, self._tokens + (now - self._refilled) * self._rate)
        self._refilled = now
        if now >= self._learned_until:
            self._rate = self._rules.rate
        return 0.0 if self._tokens >= 1.0 else (1.0 - self._tokens) / self._rate

    def ask(self) -> None:
        """Note that a request is sent, after `delay` was 0."""
        self._tokens -= 1.0

    def reserve(self, now: float, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds after which postponed work should come back.

        Successive calls are spaced by the host's rate, so that postponed jobs do not return at
        once.
        """
        first = max(now, self.paused_until)
        self._reserved = max(first + 1.0, self._reserved) + 1.0 / self._rate
        return self._reserved - now + draw()

    def succeeded(self, limit: RateLimit | None, now: float) -> None:
        """Note a complete answer of the host, including errors about the repo."""
        self.failures = self._limited = 0
        self._learn(limit, now)

    def failed(self, problem: str, now: float, draw: Callable[[], float] = random.random) -> None:
        """Note a failed connection, an aborted transfer or a server error."""
        self.failures += 1
        self.problem = problem
        if self.failing:
            attempt = self.failures - PARK_AFTER + 1
            pause = bound(attempt, self._rules.pause_base, self._rules.pause_cap)
            self.paused_until = max(self.paused_until, now + pause * (0.5 + draw() / 2))

    def limited(self, retry_after: float | None, limit: RateLimit | None, now: float) -> float:
        """Note a rate-limit answer; returns the pause in seconds."""
        self.failures = 0
        self._limited += 1
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
            # Spread the remaining requests until the limit resets.
            self._rate = min(self._rules.rate, limit.remaining / limit.reset_seconds)
            self._learned_until = now + limit.reset_seconds
            self._tokens = min(self._tokens, float(limit.remaining))


class Host:
    """A host: its limits, running requests and waiting requests."""

    def __init__(self, name: str, rules: HostRules, now: float) -> None:
        self.name = name
        self.state = HostState(rules, now)
        self.rules = rules
        self.limiter = trio.CapacityLimiter(rules.concurrency)

    @property
    def idle(self) -> bool:
        """Whether no request is running or waiting."""
        return not self.limiter.borrowed_tokens and not self.limiter.statistics().tasks_waiting


class FailingRepos:
    """Repos whose requests fail, to tell the trouble of one repo from that of its host."""

    def __init__(self) -> None:
        self._served: OrderedDict[str, tuple[str, int]] = OrderedDict()  # by DID: when it began

    def failed(self, did: str, host: Host) -> bool:
        """Note a failure; return whether it is the host's.

        It is the repo's where the host has served others since it fails for this one.
        """
        name, served = self._served.pop(did, ("", 0))
        if name != host.name:
            served = host.state.served
        self._served[did] = (host.name, served)
        if len(self._served) > MAX_FAILING:
            self._served.popitem(last=False)
        return host.state.served <= served

    def succeeded(self, did: str) -> None:
        """Forget a repo."""
        self._served.pop(did, None)


class HostTurns:
    """All current hosts, keyed by name and port, and by address and port."""

    def __init__(self, rules: HostRules) -> None:
        self._rules = rules
        self._shared = replace(
            rules,
            concurrency=rules.concurrency * SHARED_ADDRESS,
            rate=rules.rate * SHARED_ADDRESS,
            waiting=rules.waiting * SHARED_ADDRESS,
        )
        self._known: OrderedDict[str, Host] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def parked(self) -> int:
        """The number of hosts that get no requests at the moment."""
        now = trio.current_time()
        return sum(host.state.paused_until > now for host in self._known.values())

    def of(self, name: str, *, shared: bool = False) -> Host:
        """Return a host by its key."""
        host = self._known.get(name)
        if host is None:
            self._forget_some()
            rules = self._shared if shared else self._rules
            host = self._known[name] = Host(name, rules, trio.current_time())
        self._known.move_to_end(name)
        return host

    @asynccontextmanager
    async def turn(self, url: str, address: str | None = None) -> AsyncIterator[Host]:
        """Hold a turn at the host of a URL; raises HostBusyError if none is available soon.

        `address` is the resolved address and port; many names may share one.
        """
        host = self.of(host_key(url))
        async with AsyncExitStack() as stack:
            await self._enter(stack, host)
            if address is not None and address != host.name:
                await self._enter(stack, self.of(address, shared=True))
            yield host

    def busy(self, host: Host) -> HostBusyError:
        """Return the HostBusyError of a host, with a return time reserved for this caller."""
        now, state = trio.current_time(), host.state
        problem = state.problem if state.failing else ""
        return HostBusyError(host.name, state.reserve(now), problem)

    async def _enter(self, stack: AsyncExitStack, host: Host) -> None:
        state, patience = host.state, host.rules.patience
        # A parked host is probed by one request at a time until it answers.
        probing = state.failing and host.limiter.borrowed_tokens > 0
        # If the queue in memory is full, further jobs wait in Redis.
        crowded = host.limiter.statistics().tasks_waiting >= host.rules.waiting
        if probing or crowded or state.delay(trio.current_time()) > patience:
            raise self.busy(host)
        token = object()
        with trio.move_on_after(patience) as scope:
            await host.limiter.acquire_on_behalf_of(token)
            stack.callback(host.limiter.release_on_behalf_of, token)
            while (delay := state.delay(trio.current_time())) > 0:
                if delay > patience:
                    raise self.busy(host)
                await trio.sleep(delay)
            state.ask()
            return
        if scope.cancelled_caught:
            raise self.busy(host)

    def _forget_some(self) -> None:
        """Evict the least recently used hosts that have no state to keep."""
        if len(self._known) < MAX_HOSTS:
            return
        now = trio.current_time()
        idle = [host for host in islice(self._known.values(), 200) if host.idle]
        fresh = (host for host in idle if host.state.is_fresh(now))
        if (victim := next(fresh, None) or next(iter(idle), None)) is not None:
            del self._known[victim.name]


def host_key(url: str) -> str:
    """Return the key of a host's limits: lower-case name and port."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{(parts.hostname or '').rstrip('.')}:{port}"


class Addresses:
    """First addresses of hosts, each with its port, cached for some minutes."""

    def __init__(self) -> None:
        self._cache: OrderedDict[tuple[str, int], tuple[str | None, float]] = OrderedDict()

    async def of(self, url: str) -> str | None:
        """Return address and port; None if the name does not resolve (the request then fails)."""
        parts = urlsplit(url)
        key = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        cached = self._cache.get(key)
        if cached is not None and time.monotonic() - cached[1] < FRESH_SECONDS:
            return cached[0]
        found: str | None = None
        with trio.move_on_after(LOOKUP_SECONDS):
            found = await _look_up(*key)
        self._cache[key] = (found, time.monotonic())
        self._cache.move_to_end(key)
        while len(self._cache) > MAX_ADDRESSES:
            self._cache.popitem(last=False)
        return found


async def _look_up(name: str, port: int) -> str | None:
    try:
        found = await trio.socket.getaddrinfo(name, port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    # The minimum: DNS servers rotate the order, and the limits need a stable key.
    return f"{min(str(item[4][0]) for item in found)}:{port}" if found else None
