"""Several relays that tell the same news: which told it first, and which repeats it. Pure.

Commits are told apart by their revs. Account and identity events have none, so what each account
was said to be is kept as a short list, and each relay's place in it: what the list goes on with,
of about the same time, is a repeat, and anything else is news. A repeat that is taken for news does
no harm downstream; the other way round would. `now` is in monotonic seconds.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

_MAX_REPOS = 20_000
_MAX_NEWS = 8  # of one account
_FADE_SECONDS = 60.0  # after which older arrivals count for little

_SAME_SECONDS = 300.0  # relays may write times of their own


class News(NamedTuple):
    """What an event says of an account, and when, in seconds since 1970."""

    content: tuple[object, ...]
    time: float

    @property
    def active(self) -> bool | None:
        """Whether the account is said to be active; None if that is not what it is about."""
        return self.content[1] is True if self.content[0] == "account" else None

    def repeats(self, other: "News") -> bool:
        """Tell whether two events are likely to be copies of one."""
        return self.content == other.content and abs(self.time - other.time) <= _SAME_SECONDS


class _Account:
    """What was said of an account, and how far into that each relay is."""

    def __init__(self) -> None:
        self.news: list[News] = []
        self.places: dict[str, int] = {}

    def is_repeat(self, relay: str, news: News) -> bool:
        for index in range(self.places.get(relay, 0), len(self.news)):
            if news.repeats(self.news[index]):
                self.places[relay] = index + 1
                return True
        self.news.append(news)
        self.places[relay] = len(self.news)
        if len(self.news) > _MAX_NEWS:
            del self.news[0]
            self.places = {name: max(0, at - 1) for name, at in self.places.items()}
        return False


class RelayBoard:
    """Who brings news first, by how much, and what is only a repeat."""

    def __init__(self, relays: Iterable[str]) -> None:
        self.relays = tuple(relays)
        self.behind: dict[str, float] = dict.fromkeys(self.relays, 0.0)  # seconds, smoothed
        self._firsts: dict[str, float] = dict.fromkeys(self.relays, 0.0)
        self._faded_at = 0.0
        self._commits: OrderedDict[tuple[str, int], tuple[str, float]] = OrderedDict()
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    @property
    def leader(self) -> str | None:
        """The relay that brought most of the latest commits first, if any did."""
        best = max(self.relays, key=lambda relay: self._firsts[relay], default=None)
        return best if best is not None and self._firsts[best] > 0.0 else None

    def first(self, relay: str, did: str, rev: int, now: float) -> None:
        """Take note of a commit that is news."""
        if len(self.relays) < 2:
            return
        self._fade(now)
        self._firsts[relay] = self._firsts.get(relay, 0.0) + 1.0
        self._commits[did, rev] = (relay, now)
        if len(self._commits) > _MAX_REPOS:
            self._commits.popitem(last=False)

    def repeated(self, relay: str, did: str, rev: int, now: float) -> bool:
        """Take note of a commit that was there before; tell whether another relay brought it."""
        found = self._commits.get((did, rev))
        if found is None or found[0] == relay:
            return False
        late = now - found[1]
        self.behind[relay] = self.behind.get(relay, 0.0) * 0.9 + late * 0.1
        self.behind[found[0]] = self.behind.get(found[0], 0.0) * 0.9
        return True

    def is_repeat(self, relay: str, did: str, news: News) -> bool:
        """Take note of what an account is said to be; tell whether it was said before."""
        if len(self.relays) < 2:
            return False
        account = self._accounts.get(did)
        if account is None:
            account = self._accounts[did] = _Account()
            if len(self._accounts) > _MAX_REPOS:
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(did)
        return account.is_repeat(relay, news)

    def forget(self) -> None:
        """Forget what counts as known, because the writer dropped what it held."""
        self._commits.clear()
        self._accounts.clear()

    def _fade(self, now: float) -> None:
        if now - self._faded_at > _FADE_SECONDS:
            self._faded_at = now
            for relay in self._firsts:
                self._firsts[relay] /= 4.0
