"""Waits double up to the cap, spread over their whole range, and start over after stable work."""

from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.runtime.backoff import Backoff, bound


def test_bounds_double_up_to_the_cap() -> None:
    assert [bound(attempt, 1, 60) for attempt in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_longer_than_the_cap(attempts: int, draw: float) -> None:
    state = Backoff(base=0.5, cap=30, failures=attempts)
    _, wait = state.failed(0.0, lambda: draw)
    assert 0 <= wait <= 30


def test_a_failure_after_stable_work_is_the_first_one() -> None:
    state = Backoff(reset_after=60)
    for _ in range(5):
        state, _ = state.failed(0.0)
    state = state.worked(100.0).worked(150.0)
    assert state.failed(159.0)[0].failures == 6
    assert state.failed(160.0)[0].failures == 1
