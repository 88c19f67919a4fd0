"""What to ask a listing for next, so that a repo which a host cannot list costs only itself. Pure.

Cursors are opaque, and a page that fails says nothing of where the next one begins. Pages are made
smaller until the broken repo stands alone. Where the cursor is a number, as it is on the relays
where this was seen, the numbers behind it are tried one by one: each of them leaves out one more
number, and so at most one repo, which is the broken one. Only where a long run of numbers fails are
larger steps taken, and the place where the host can list again is then found by bisection. What
lies between is a `Hole`: a range of cursors to be asked for again later. Nothing is forgotten.
Source: incident 3 of the original ingester, which stepped 1,000 repos ahead.
"""

from dataclasses import dataclass
from enum import Enum, auto

PAGE_SIZE = 1_000
TRIES = 3  # of a single repo, before cursors behind it are tried
GROW_AFTER = 3  # pages in a row, until larger ones are asked for again
LINEAR = 1_000  # cursors that are tried one by one
CHECK_EVERY = 50  # failures in a row after which the host is asked for something else
_FARTHEST = 2**40


@dataclass(frozen=True, slots=True)
class Request:
    """A page to ask for."""

    cursor: str | None
    limit: int


@dataclass(frozen=True, slots=True)
class Hole:
    """Repos whose page begins at a cursor from `start` on and before `end` cannot be listed."""

    start: int
    end: int


class _Phase(Enum):
    PAGES = auto()  # as usual, with pages of any size
    CHECK = auto()  # does the host list anything at all?
    PROBE = auto()  # looking for a cursor that works
    BISECT = auto()  # looking for the first one between one that fails and one that works
    RECHECK = auto()  # does the broken one still fail, now that another one works?


class Walk:
    """One way through a listing. Ask for `request`, then tell whether it `worked` or `failed`."""

    def __init__(self, cursor: str | None = None, page_size: int = PAGE_SIZE) -> None:
        self.cursor = cursor
        self._page_size = self._limit = page_size
        self._phase = _Phase.PAGES
        self._failures = 0  # since the last page that came, or the last change
        self._streak = 0  # pages in a row
        self._low = self._high = 0  # the highest cursor that fails, the lowest that works
        self._good: str | None = None  # a cursor with a page that came
        self._failed_checks = 0

    @property
    def stuck(self) -> bool:
        """Whether one repo fails and no cursor behind it can be worked out."""
        return self._limit == 1 and self._failures >= TRIES and self._number is None

    @property
    def searching(self) -> bool:
        """Whether answers are only looked at, and the listing does not move."""
        return self._phase is not _Phase.PAGES

    def request(self) -> Request:
        """Return the page to ask for."""
        match self._phase:
            case _Phase.PAGES:
                return Request(self.cursor, self._limit)
            case _Phase.CHECK:
                return Request(self._good, 1)
            case _Phase.RECHECK:
                return Request(self.cursor, 1)
            case _Phase.BISECT:
                return Request(str((self._low + self._high) // 2), 1)
        return Request(str(self._next_probe()), 1)

    def move(self, cursor: str | None) -> None:
        """Take note that a page is written, and what follows on it."""
        self._good = self.cursor
        self._go_to(cursor)

    def step_over(self, hole: Hole) -> None:
        """Take note that a hole is written down: go on behind it."""
        self._go_to(str(hole.end))

    def start_again(self) -> None:
        """Ask for the same again as if it had not been tried."""
        self._go_to(self.cursor)

    def _go_to(self, cursor: str | None) -> None:
        self.cursor = cursor
        self._phase, self._failures = _Phase.PAGES, 0
        self._low = self._failed_checks = 0

    def worked(self) -> bool:
        """Take note of an answer; tell whether its repos are those that follow on `cursor`."""
        match self._phase:
            case _Phase.PAGES | _Phase.RECHECK:
                self._phase, self._failures = _Phase.PAGES, 0
                self._streak += 1
                if self._streak >= GROW_AFTER and self._limit < self._page_size:
                    self._limit, self._streak = min(self._page_size, self._limit * 2), 0
                return True
            case _Phase.CHECK:
                self._phase, self._failures = _Phase.PROBE, 0
            case _Phase.PROBE:
                self._high = self._next_probe()
                self._narrow()
            case _Phase.BISECT:
                self._high = (self._low + self._high) // 2
                self._narrow()
        return False

    def failed(self) -> Hole | None:
        """Take note of an answer that did not come; return a hole once its extent is known.

        Call `step_over` when it is written down.
        """
        self._failures += 1
        self._streak = 0
        match self._phase:
            case _Phase.PAGES:
                self._page_failed()
            case _Phase.CHECK:
                # Most likely the host is down; but what was asked for may be broken as well.
                self._failed_checks += 1
                patient = self._failed_checks % TRIES != 0
                self._phase, self._failures = _Phase.PAGES if patient else _Phase.PROBE, 0
            case _Phase.PROBE:
                self._low = self._next_probe()
                if self._low - self._start > _FARTHEST:  # these are no numbers of repos
                    self._phase, self._failures, self._low = _Phase.PAGES, 0, 0
                elif self._failures % CHECK_EVERY == 0:
                    self._phase = _Phase.CHECK
            case _Phase.BISECT:
                self._low = (self._low + self._high) // 2
                self._narrow()
            case _Phase.RECHECK:
                return Hole(self._start, self._high)
        return None

    def _page_failed(self) -> None:
        if self._limit > 1:
            if self._limit < self._page_size or self._failures >= TRIES - 1:
                self._limit, self._failures = self._limit // 2, 0
        elif self._failures >= TRIES and self._number is not None:
            self._low = max(self._low, self._start)
            self._phase = _Phase.CHECK if self.cursor is not None else _Phase.PROBE

    def _next_probe(self) -> int:
        distance = self._low - self._start
        return self._low + 1 if distance < LINEAR else self._start + 2 * distance

    def _narrow(self) -> None:
        adjacent = self._high - self._low <= 1
        self._phase = _Phase.RECHECK if adjacent else _Phase.BISECT

    @property
    def _number(self) -> int | None:
        """The cursor as a number; the beginning is 0."""
        if self.cursor is None:
            return 0
        text = self.cursor
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None

    @property
    def _start(self) -> int:
        return self._number or 0
