"""Several relays of one network: which event comes first, and which is a copy. Pure.

Commits are compared by their revs. Account and identity events have none, so the latest updates of
each account are kept as a short list, with each relay's place in it: an update that equals a later
one of the list, of about the same time, is a copy, and any other is new. A copy that passes for new
does no harm downstream; the other way round would. `now` is in monotonic seconds.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

_MAX_REPOS = 20_000
_MAX_UPDATES = 8  # of one account
_FADE_SECONDS = 60.0  # after which older arrivals count for little

_SAME_SECONDS = 300.0  # relays may write times of their own


class AccountUpdate(NamedTuple):
    """The content of an account or identity event, and its time in seconds since 1970."""

    did: str
    content: tuple[object, ...]
    time: float

    @property
    def active(self) -> bool | None:
        """Whether the account is active; None for an identity event."""
        return self.content[1] is True if self.content[0] == "account" else None

    def repeats(self, other: "AccountUpdate") -> bool:
        """Tell whether two events are likely to be copies of one."""
        return self.content == other.content and abs(self.time - other.time) <= _SAME_SECONDS


class _AccountUpdates:
    """The latest updates of an account, and how far each relay has sent them."""

    def __init__(self) -> None:
        self.updates: list[AccountUpdate] = []
        self.places: dict[str, int] = {}

    def is_repeat(self, relay: str, update: AccountUpdate) -> bool:
        for index in range(self.places.get(relay, 0), len(self.updates)):
            if update.repeats(self.updates[index]):
                self.places[relay] = index + 1
                return True
        self.updates.append(update)
        self.places[relay] = len(self.updates)
        if len(self.updates) > _MAX_UPDATES:
            del self.updates[0]
            self.places = {name: max(0, at - 1) for name, at in self.places.items()}
        return False


class RelayDedup:
    """Which relay brings commits first, by how much, and which events are copies."""

    def __init__(self, relays: Iterable[str]) -> None:
        self.relays = tuple(relays)
        self.behind: dict[str, float] = dict.fromkeys(self.relays, 0.0)  # seconds, smoothed
        self._firsts: dict[str, float] = dict.fromkeys(self.relays, 0.0)
        self._faded_at = 0.0
        self._commits: OrderedDict[tuple[str, int], tuple[str, float]] = OrderedDict()
        self._accounts: OrderedDict[str, _AccountUpdates] = OrderedDict()

    @property
    def leader(self) -> str | None:
        """The relay that brought most of the latest commits first, if any did."""
        best = max(self.relays, key=lambda relay: self._firsts[relay], default=None)
        return best if best is not None and self._firsts[best] > 0.0 else None

    def first(self, relay: str, did: str, rev: int, now: float) -> None:
        """Note a commit that no relay brought before."""
        if len(self.relays) < 2:
            return
        self._fade(now)
        self._firsts[relay] = self._firsts.get(relay, 0.0) + 1.0
        self._commits[did, rev] = (relay, now)
        if len(self._commits) > _MAX_REPOS:
            self._commits.popitem(last=False)

    def repeated(self, relay: str, did: str, rev: int, now: float) -> bool:
        """Note a commit that was taken over before; tell whether another relay brought it."""
        found = self._commits.get((did, rev))
        if found is None or found[0] == relay:
            return False
        late = now - found[1]
        self.behind[relay] = self.behind.get(relay, 0.0) * 0.9 + late * 0.1
        self.behind[found[0]] = self.behind.get(found[0], 0.0) * 0.9
        return True

    def is_repeat(self, relay: str, update: AccountUpdate) -> bool:
        """Note an update of an account; tell whether another relay brought it before."""
        if len(self.relays) < 2:
            return False
        did = update.did
        account = self._accounts.get(did)
        if account is None:
            account = self._accounts[did] = _AccountUpdates()
            if len(self._accounts) > _MAX_REPOS:
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(did)
        return account.is_repeat(relay, update)

    def forget(self) -> None:
        """Forget all commits and accounts: the writer dropped them unwritten."""
        self._commits.clear()
        self._accounts.clear()

    def _fade(self, now: float) -> None:
        if now - self._faded_at > _FADE_SECONDS:
            self._faded_at = now
            for relay in self._firsts:
                self._firsts[relay] /= 4.0
