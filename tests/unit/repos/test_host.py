"""One host's limits: never faster than it allows, and never for ever."""

from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.network.http import RateLimit
from rsky_pipeline.repos.hosts import PARK_AFTER, FailingRepos, Host, HostRules, HostState

RULES = HostRules(concurrency=4, rate=10.0, pause_base=5.0, pause_cap=600.0)


def certain() -> float:
    return 1.0


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=200), st.floats(0.5, 50.0))
def test_no_second_holds_more_requests_than_the_rate_and_what_was_saved(
    pauses: list[float], rate: float
) -> None:
    rules = HostRules(concurrency=4, rate=rate)
    state, now, sent = HostState(rules, 0.0), 0.0, list[float]()
    for pause in pauses:
        now += pause
        now += state.delay(now) * (1 + 1e-9) + 1e-9
        state.ask()
        sent.append(now)
    for first in sent:
        in_second = sum(first <= time < first + 1.0 for time in sent)
        assert in_second <= rate + 4 + 1


def test_a_host_is_parked_after_failures_in_a_row_and_longer_each_time() -> None:
    state, now, pauses = HostState(RULES, 0.0), 0.0, list[float]()
    for number in range(1, 12):
        state.failed("no route", now, certain)
        assert state.failing == (number >= PARK_AFTER)
        pauses.append(state.delay(now))
        now = max(now, state.paused_until)
    assert pauses[: PARK_AFTER - 1] == [0.0] * (PARK_AFTER - 1)
    assert pauses[PARK_AFTER - 1 : PARK_AFTER + 2] == [5.0, 10.0, 20.0]
    assert max(pauses) == 600.0
    state.succeeded(None, now)
    assert not state.failing
    assert state.delay(now) == 0.0


def test_what_a_host_says_of_its_limit_is_kept_to() -> None:
    state = HostState(RULES, 0.0)
    state.succeeded(RateLimit(remaining=5, reset_seconds=50.0), 0.0)
    now, sent = 0.0, 0
    while now < 50.0:
        now += state.delay(now) + 1e-6
        if now < 50.0:
            state.ask()
            sent += 1
    assert sent <= 10  # the five saved ones, and five at a rate of 0.1
    state.succeeded(RateLimit(remaining=0, reset_seconds=30.0), 60.0)
    assert state.delay(60.0) == 30.0
    assert state.delay(91.0) == 0.0


def test_a_refusal_for_the_rate_pauses_as_long_as_it_says_or_longer_each_time() -> None:
    state = HostState(RULES, 0.0)
    assert state.limited(7.0, None, 0.0) == 7.0
    assert state.delay(0.0) == 7.0
    assert state.limited(12.0, RateLimit(0, 12.0), 10.0) == 12.0
    assert state.limited(None, None, 30.0) == 40.0  # the third in a row, 10 s doubled twice
    assert not state.failing


def test_what_has_to_wait_is_spread_by_the_rate() -> None:
    state = HostState(RULES, 0.0)
    waits = [state.reserve(0.0, lambda: 0.0) for _ in range(100)]
    assert waits == sorted(waits)
    assert 9.0 < waits[-1] - waits[0] < 11.0


def test_trouble_is_of_the_repo_where_its_host_serves_others_meanwhile() -> None:
    failing, host = FailingRepos(), Host("pds.test:443", RULES, 0.0)
    assert failing.failed("did:plc:a", host)
    assert failing.failed("did:plc:a", host)  # for everybody, as far as is known
    host.state.served += 1
    assert not failing.failed("did:plc:a", host)
    assert not failing.failed("did:plc:a", host)
    assert failing.failed("did:plc:b", host)  # none was served since this one fails
    failing.succeeded("did:plc:a")
    assert failing.failed("did:plc:a", host)
    other = Host("other.test:443", RULES, 0.0)
    other.state.served = 9
    assert failing.failed("did:plc:a", other)  # it has moved
