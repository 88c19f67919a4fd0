"""Ways through listings that cannot be read everywhere."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.ingester import walk as walking
from rsky_pipeline.ingester.holes import CannotList, KnownHole, walk_hole
from rsky_pipeline.ingester.walk import Hole, Request, Walk

PAGE = 64


class Host:
    """Lists repos by number; a page with a broken one fails, as did the relay's of incident 3."""

    def __init__(self, repos: set[int], broken: set[int]) -> None:
        self.repos = sorted(repos)
        self.broken = broken
        self.requests = 0

    def ask(self, request: Request) -> tuple[list[int], str | None] | None:
        """Return a page and the cursor after it; None if it fails."""
        self.requests += 1
        after = int(request.cursor or 0)
        page = [number for number in self.repos if number > after][: request.limit]
        if not self.broken.isdisjoint(page):
            return None
        more = bool(page) and page[-1] < self.repos[-1]
        return page, str(page[-1]) if more else None


def walk_all(host: Host, limit: int = 100_000) -> tuple[list[int], list[Hole]]:
    """Walk through the whole listing; fails if that takes too many requests."""
    walk, listed, found = Walk(None, PAGE), list[int](), list[Hole]()
    while host.requests < limit:
        answer = host.ask(walk.request())
        if answer is None:
            hole = walk.failed()
            if hole is not None:
                found.append(hole)
                walk.step_over(hole)
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
    covered = {number + 1 for hole in found for number in range(hole.start, hole.end)}
    assert broken <= covered
    assert not covered & set(listed)


@settings(max_examples=40)
@given(numbers, st.data())
def test_behind_long_gaps_nothing_is_forgotten(repos: set[int], data: st.DataObject) -> None:
    """With larger steps a hole may cover repos that could be listed, which is why it is kept."""
    broken = data.draw(st.sets(st.sampled_from(sorted(repos)), max_size=10)) - {max(repos)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walking, "LINEAR", 4)
        listed, found = walk_all(Host(repos, broken))
    covered = {number + 1 for hole in found for number in range(hole.start, hole.end)}
    assert repos - set(listed) <= covered


def test_the_incident_costs_one_repo_and_few_requests() -> None:
    """One repo at 20991 fails; every cursor from 20972 on meets it again."""
    repos = set(range(20_000, 20_973)) | set(range(20_991, 24_000))
    host = Host(repos, {20_991})
    walk, found = Walk("20000", 1_000), list[Hole]()
    listed: list[int] = []
    while walk.cursor is None or int(walk.cursor) < 23_000:
        answer = host.ask(walk.request())
        if answer is None:
            hole = walk.failed()
            if hole is not None:
                found.append(hole)
                walk.step_over(hole)
        elif walk.worked() and answer[1] is not None:
            listed += answer[0]
            walk.move(answer[1])
    assert found == [Hole(20_972, 20_991)]
    assert 20_992 in listed
    assert host.requests < 120


def test_a_host_that_is_down_makes_no_hole() -> None:
    walk = Walk("100", PAGE)
    for _ in range(3_000):
        assert walk.failed() is None
    assert not walk.stuck


def test_an_outage_that_ends_while_searching_makes_no_hole() -> None:
    host = Host(set(range(1, 300)), set())
    walk = Walk("100", PAGE)
    while walk.request() != Request(None, 1):
        walk.failed()
    answers = []
    for _ in range(8):
        answers.append(walk.request())
        assert host.ask(walk.request()) is not None
        if walk.worked():
            break
    assert answers == [Request(None, 1), Request("101", 1), Request("100", 1)]
    assert walk.request() == Request("100", 1)


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
async def test_a_hole_is_walked_until_only_what_still_fails_is_left(
    repos: set[int], data: st.DataObject
) -> None:
    broken = data.draw(st.sets(st.sampled_from(sorted(repos)), max_size=8))
    host, taken = Host(repos, broken), set[int]()
    start = data.draw(st.integers(0, 100))
    end = data.draw(st.integers(start + 1, 400))

    async def take(cursor: str, limit: int) -> str | None:
        answer = host.ask(Request(cursor, limit))
        if answer is None:
            raise CannotList
        taken.update(answer[0])
        return answer[1]

    waiting = [KnownHole(start, end, "500", 1_000)]
    left: list[KnownHole] = []
    for _ in range(20):
        if not waiting:
            break
        for item in await walk_hole(waiting.pop(), take, 2_000.0):
            (waiting if item.retry_at <= 2_000 else left).append(item)
    assert not waiting
    inside = {number for number in repos if start < number <= end}
    covered = {number + 1 for hole in left for number in range(hole.start, hole.end)}
    assert inside - taken <= covered
    assert inside - broken <= taken
    assert all(hole.tries == 1 for hole in left)
