"""Whether the silence of a host is its habit."""

from math import inf

from rsky_pipeline.health.rules import RELAY_STALLED
from rsky_pipeline.ingester.follower import Arrivals

SLOT, HOUR = 10.0, 3_600.0


def heard(every: float, seconds: float, begin: float = 0.0) -> Arrivals:
    arrivals, now = Arrivals(SLOT, begin), begin
    while now < begin + seconds:
        arrivals.observe(now)
        now += every
    return arrivals


def stalled(arrivals: Arrivals, silence: float) -> bool:
    return arrivals.surprise(arrivals.last + silence) >= RELAY_STALLED.least


def test_a_busy_host_that_stops_is_stalled() -> None:
    busy = heard(0.5, 6 * HOUR)
    assert not stalled(busy, 15.0)
    assert stalled(busy, 30.0)
    assert busy.patience(RELAY_STALLED.least) < 60.0


def test_a_host_that_is_usually_quiet_is_quiet() -> None:
    quiet = heard(600.0, 12 * HOUR)  # an event in ten minutes
    assert not stalled(quiet, 1_800.0)
    assert stalled(quiet, 3 * HOUR)


def test_a_host_that_never_said_anything_is_quiet_for_ever() -> None:
    silent = Arrivals(SLOT, 5.0)
    assert not stalled(silent, 1e9)
    assert silent.patience(RELAY_STALLED.least) == inf


def test_thousands_of_events_at_once_are_no_habit() -> None:
    """A quiet host is read again from an old cursor, and is quiet again."""
    arrivals = Arrivals(SLOT, 0.0)
    for number in range(10_000):
        arrivals.observe(number / 10_000)
    assert not stalled(arrivals, 60.0)
    arrivals.observe(600.0)
    assert not stalled(arrivals, 1_200.0)


def test_a_host_is_known_after_a_minute() -> None:
    new = heard(1.0, 60.0)
    assert stalled(new, 60.0)


def test_habits_change_with_the_hours() -> None:
    arrivals, now = heard(1.0, 6 * HOUR), 6 * HOUR
    for _ in range(6 * 12):  # now an event in five minutes, for six hours
        now += 300.0
        arrivals.observe(now)
    assert not stalled(arrivals, 300.0)
    assert stalled(arrivals, 3_600.0)


def test_the_pattern_of_a_day_and_the_size_of_slots_do_not_matter_much() -> None:
    coarse = Arrivals(60.0, 0.0)
    for second in range(7_200):
        coarse.observe(float(second))
    assert coarse.surprise(coarse.last + 180.0) >= RELAY_STALLED.least
