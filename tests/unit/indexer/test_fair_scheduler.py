"""The account between live events and history."""

from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.indexer.scheduling import FairScheduler


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    st.integers(1, 90),
    st.lists(st.tuples(st.floats(0.001, 2.0), st.floats(0.001, 2.0)), min_size=10, max_size=60),
)
def test_history_gets_its_share_and_no_more_while_live_waits(
    percent: int, durations: list[tuple[float, float]]
) -> None:
    clock, spent = Time(), {False: 0.0, True: 0.0}
    shares = FairScheduler(percent / 100, clock)
    longest = 0.0
    for live, history in durations:
        turn = shares.history_is_owed
        seconds = history if turn else live
        longest = max(longest, seconds)
        clock.now += seconds
        shares.worked(seconds, history=turn, behind=True)
        spent[turn] += seconds
        total = sum(spent.values())
        owed = total * percent / 100
        # Never more than one batch off in either direction,.
        assert spent[True] <= owed + longest
        assert spent[True] >= owed - longest - 0.001


def test_what_it_had_while_nobody_waited_is_not_held_against_it() -> None:
    clock = Time()
    shares = FairScheduler(0.1, clock)
    shares.worked(50.0, history=True, behind=False)
    owed = [shares.history_is_owed]
    for seconds, history in ((1.0, True), (8.9, False), (0.2, False)):
        shares.worked(seconds, history=history, behind=True)
        owed.append(shares.history_is_owed)
    assert owed == [True, False, False, True]


def test_the_share_that_is_shown_follows_recent_work() -> None:
    clock = Time()
    shares = FairScheduler(0.1, clock)
    assert shares.share == 0
    shares.worked(1.0, history=True, behind=False)
    assert shares.share == 1
    shares.worked(1.0, history=False, behind=False)
    assert shares.share == 0.5
    clock.now += 300
    shares.worked(1.0, history=False, behind=False)
    assert shares.share < 0.01
