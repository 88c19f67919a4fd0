"""Turns at hosts: a bounded and fair queue for each, forgotten when nobody needs it."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import islice
from urllib.parse import urlsplit

import trio

from rsky_pipeline.backfiller.host import HostRules, HostState

MAX_HOSTS = 20_000  # strangers choose their names, so what is kept of them must not add up
SHARED_ADDRESS = 4  # an address may serve so many times as much as one of the names on it


class HostBusy(Exception):
    """No turn soon; come back after `seconds`.

    `problem` is set where the host is parked because it keeps failing.
    """

    def __init__(self, host: str, seconds: float, problem: str = "") -> None:
        super().__init__(f"{host} is left alone for {seconds:.0f} s" + (problem and f": {problem}"))
        self.host = host
        self.seconds = seconds
        self.problem = problem


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


class Hosts:
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
        """Hold a turn at the host of a URL; raises HostBusy where there is none soon.

        `address` is where its name leads; many names may share one.
        """
        host = self.of(host_key(url))
        async with AsyncExitStack() as stack:
            await self._enter(stack, host)
            if address is not None and address != host.name:
                await self._enter(stack, self.of(address, shared=True))
            yield host

    def busy(self, host: Host) -> HostBusy:
        """Return the error for somebody who has to come back to a host later."""
        now, state = self._clock(), host.state
        problem = state.problem if state.failing else ""
        return HostBusy(host.name, state.reserve(now), problem)

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
