"""Paging through listings that a host cannot serve everywhere."""

from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.ingester.listing.enumeration import StoredRange
from rsky_pipeline.network import listing as listing_module
from rsky_pipeline.network.http import HttpError
from rsky_pipeline.network.listing import (
    FetchPage,
    Listed,
    ListedRepo,
    Lister,
    ListingFailure,
    Page,
    PageRequest,
    Unlistable,
    UnlistableRange,
    Walk,
    relist,
)

PAGE = 64


class Host:
    """Lists repos by number; a page with a broken one fails, as did the relay's of incident 3."""

    def __init__(self, repos: set[int], broken: set[int]) -> None:
        self.repos = sorted(repos)
        self.broken = broken
        self.requests = 0

    def ask(self, request: PageRequest) -> tuple[list[int], str | None] | None:
        """Return a page and the cursor after it; None if it fails."""
        self.requests += 1
        after = int(request.cursor or 0)
        page = [number for number in self.repos if number > after][: request.limit]
        if not self.broken.isdisjoint(page):
            return None
        more = bool(page) and page[-1] < self.repos[-1]
        return page, str(page[-1]) if more else None

    def page(self, cursor: str | None, limit: int) -> Page:
        """Return a page as a host's answer. Raises HttpError."""
        answer = self.ask(PageRequest(cursor, limit))
        if answer is None:
            raise HttpError("status", "500 from listRepos", status=500)
        return Page(tuple(ListedRepo("did", str(n), True, None) for n in answer[0]), answer[1])


def walk_all(host: Host, limit: int = 100_000) -> tuple[list[int], list[UnlistableRange]]:
    """Walk through the whole listing; fails if that takes too many requests."""
    walk, listed, found = Walk(None, PAGE), list[int](), list[UnlistableRange]()
    while host.requests < limit:
        answer = host.ask(walk.request())
        if answer is None:
            missing = walk.failed()
            if missing is not None:
                found.append(missing)
                walk.move(str(missing.end), good=False)
        elif walk.worked():
            listed += answer[0]
            if answer[1] is None:
                return listed, found
            walk.move(answer[1])
    raise AssertionError("the walk does not end")


numbers = st.sets(st.integers(1, 400), min_size=1, max_size=120)


@settings(max_examples=40)
@given(numbers, st.data())
def test_broken_repos_are_all_that_is_left_out(repos: set[int], data: st.DataObject) -> None:
    # The last one works: behind it nothing would tell a broken repo from the end of a bad host.
    broken = data.draw(st.sets(st.sampled_from(sorted(repos)), max_size=10)) - {max(repos)}
    host = Host(repos, broken)
    listed, found = walk_all(host)
    assert listed == sorted(repos - broken)
    covered = {number + 1 for missing in found for number in range(missing.start, missing.end)}
    assert broken <= covered
    assert not covered & set(listed)


@settings(max_examples=40)
@given(numbers, st.data())
def test_behind_long_gaps_nothing_is_forgotten(repos: set[int], data: st.DataObject) -> None:
    """With larger steps a range may cover repos that could be listed, which is why it is kept."""
    broken = data.draw(st.sets(st.sampled_from(sorted(repos)), max_size=10)) - {max(repos)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing_module, "LINEAR", 4)
        listed, found = walk_all(Host(repos, broken))
    covered = {number + 1 for missing in found for number in range(missing.start, missing.end)}
    assert repos - set(listed) <= covered


def test_the_incident_costs_one_repo_and_few_requests() -> None:
    """One repo at 20991 fails; every cursor from 20972 on meets it again."""
    repos = set(range(20_000, 20_973)) | set(range(20_991, 24_000))
    host = Host(repos, {20_991})
    walk, found = Walk("20000", 1_000), list[UnlistableRange]()
    listed: list[int] = []
    while walk.cursor is None or int(walk.cursor) < 23_000:
        answer = host.ask(walk.request())
        if answer is None:
            missing = walk.failed()
            if missing is not None:
                found.append(missing)
                walk.move(str(missing.end), good=False)
        elif walk.worked() and answer[1] is not None:
            listed += answer[0]
            walk.move(answer[1])
    assert found == [UnlistableRange(20_972, 20_991)]
    assert 20_992 in listed
    assert host.requests < 120


def test_a_host_that_is_down_makes_no_range() -> None:
    walk = Walk("100", PAGE)
    for _ in range(3_000):
        assert walk.failed() is None
    assert not walk.stuck


def test_an_outage_that_ends_while_searching_makes_no_range() -> None:
    host = Host(set(range(1, 300)), set())
    walk = Walk("100", PAGE)
    while walk.request() != PageRequest(None, 1):
        walk.failed()
    answers = []
    for _ in range(8):
        answers.append(walk.request())
        assert host.ask(walk.request()) is not None
        if walk.worked():
            break
    assert answers == [PageRequest(None, 1), PageRequest("101", 1), PageRequest("100", 1)]
    assert walk.request() == PageRequest("100", 1)


def test_where_the_cursor_is_no_number_the_walk_is_stuck_but_tries_again() -> None:
    walk = Walk("W3sx", PAGE)
    for _ in range(30):
        assert walk.failed() is None
        assert walk.request().cursor == "W3sx"
    assert walk.stuck
    assert walk.worked()
    assert not walk.stuck


def test_pages_shrink_and_grow_again() -> None:
    walk = Walk(None, 1_000)
    sizes = []
    for _ in range(14):
        sizes.append(walk.request().limit)
        walk.failed()
    assert sizes == [1_000, 1_000, 500, 250, 125, 62, 31, 15, 7, 3, 1, 1, 1, 1]
    walk = Walk("x", 1_000)
    for _ in range(4):
        walk.failed()
    grown = []
    for _ in range(9):
        grown.append(walk.request().limit)
        assert walk.worked()
    assert grown == [125, 125, 125, 250, 250, 250, 500, 500, 500]


@settings(max_examples=40)
@given(numbers, st.data())
async def test_a_range_is_listed_again_until_only_what_still_fails_is_left(
    repos: set[int], data: st.DataObject
) -> None:
    broken = data.draw(st.sets(st.sampled_from(sorted(repos)), max_size=8))
    host, taken = Host(repos, broken), set[int]()
    start = data.draw(st.integers(0, 100))
    end = data.draw(st.integers(start + 1, 400))

    async def fetch(cursor: str | None, limit: int) -> Page:
        return host.page(cursor, limit)

    async def take(found: tuple[ListedRepo, ...]) -> None:
        taken.update(int(repo.rev) for repo in found)

    waiting = [StoredRange(start, end, "500", 1_000)]
    left: list[StoredRange] = []
    for _ in range(20):
        if not waiting:
            break
        missing = waiting.pop()
        for item in missing.after(await relist(fetch, missing.range, take), 2_000.0):
            (waiting if item.retry_at <= 2_000 else left).append(item)
    assert not waiting
    inside = {number for number in repos if start < number <= end}
    covered = {number + 1 for missing in left for number in range(missing.start, missing.end)}
    assert inside - taken <= covered
    assert inside - broken <= taken
    assert all(missing.tries == 1 for missing in left)


@pytest.mark.parametrize("cursor", ["²", "٣", "9" * 5_000, "", "did:plc:a", "\0", "-1"])
async def test_a_cursor_that_is_no_number_ends_a_range(cursor: str) -> None:
    async def fetch(_: str | None, limit: int) -> Page:
        return Page((), cursor)

    async def take(_: tuple[ListedRepo, ...]) -> None: ...

    left = await relist(fetch, UnlistableRange(5, 90), take)
    assert (left.failed, left.untried) == ([], None)


def fetching(host: Host, down: HttpError | None = None) -> FetchPage:
    """Return what asks a host; after repo 200 it fails with `down` if that is given."""

    async def fetch(cursor: str | None, limit: int) -> Page:
        if down is not None and int(cursor or 0) >= 200:
            host.requests += 1
            raise down
        return host.page(cursor, limit)

    return fetch


async def test_a_lister_gets_past_a_page_that_fails_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host = Host(set(range(1, 3_000)), {1_001})
    failures: list[ListingFailure] = []
    items = [item async for item in Lister(fetching(host), tries=5, failed=failures.append)]
    missing = [item for item in items if isinstance(item, Unlistable)]
    assert [str(item.range) for item in missing] == ["1000 to 1001"]
    assert missing[0].problem == "500 from listRepos"
    repos = [repo.rev for item in items if isinstance(item, Listed) for repo in item.repos]
    assert repos == [str(number) for number in range(1, 3_000) if number != 1_001]
    for before, after in pairwise(items):
        assert before.following == after.cursor
    assert items[-1].following is None
    assert trio.current_time() < 60
    assert not any(failure.stuck for failure in failures)


@pytest.mark.parametrize(
    "down",
    [
        HttpError("unreachable", "refused"),
        HttpError("status", "429", status=429, retry_after=1.0),
        HttpError("status", "404", status=404),
    ],
)
async def test_a_lister_with_tries_gives_up_at_a_host_that_fails_whatever_is_asked_for(
    down: HttpError, autojump_clock: trio.testing.MockClock
) -> None:
    host = Host(set(range(1, 300)), set())
    items: list[Listed | Unlistable] = []
    lister = Lister(fetching(host, down), page_size=100, tries=5)
    items += [await anext(lister), await anext(lister)]
    with pytest.raises(HttpError):
        await anext(lister)
    assert [item.cursor for item in items] == [None, "100"]
    assert host.requests == 2 + 5


@pytest.mark.parametrize(
    "failure",
    [
        HttpError("unreachable", "broke off"),
        HttpError("too_slow", "sends too slowly"),
        HttpError("status", "503", status=503),
        HttpError("status", "524", status=524),
        HttpError("status", "500", status=500, retry_after=5.0),
    ],
)
async def test_a_lister_gets_past_a_page_that_fails_as_if_the_host_were_down(
    failure: HttpError, autojump_clock: trio.testing.MockClock
) -> None:
    host, down = Host(set(range(1, 400)), {200}), False

    async def fetch(cursor: str | None, limit: int) -> Page:
        if down:
            raise failure
        try:
            return host.page(cursor, limit)
        except HttpError:
            raise failure from None

    items = [item async for item in Lister(fetch, page_size=100)]
    assert [str(item.range) for item in items if isinstance(item, Unlistable)] == ["199 to 200"]
    repos = [repo.rev for item in items if isinstance(item, Listed) for repo in item.repos]
    assert repos == [str(number) for number in range(1, 400) if number != 200]
    assert trio.current_time() < 2 * 3_600

    host.broken, down, items = set(), True, []

    async def list_all() -> None:
        items.extend([item async for item in Lister(fetch, "100", page_size=100)])

    async with trio.open_nursery() as nursery:  # a host that is really down for two days
        nursery.start_soon(list_all)
        await trio.sleep(2 * 86_400)
        down = False
    assert not any(isinstance(item, Unlistable) for item in items)
    repos = [repo.rev for item in items if isinstance(item, Listed) for repo in item.repos]
    assert repos == [str(number) for number in range(101, 400)]


async def test_a_lister_with_tries_gives_up_where_no_page_is_served(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host = Host(set(range(1, 300)), set(range(1, 300)))
    with pytest.raises(HttpError):
        await anext(Lister(fetching(host), "100", tries=5))
    assert host.requests < 20


async def test_a_listing_that_goes_in_a_circle_ends() -> None:
    async def fetch(cursor: str | None, limit: int) -> Page:
        return Page((), {None: "a", "a": "b", "b": "a"}[cursor])

    assert [item.cursor async for item in Lister(fetch)] == [None, "a", "b"]
