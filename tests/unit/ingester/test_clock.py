"""Events that seem to come from the future: the sender is wrong, or our clock is."""

import pytest
import trio

from rsky_pipeline.atproto.frame import AccountMessage, SyncMessage
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.ingester.clock import AskForTime, ClockError, ClockWatch

TRUE = 1_800_000_000.0
HOUR = 3_600.0


class Times:
    """Our clock, and what others say of the time."""

    def __init__(self, slow: float = 0.0) -> None:
        self.slow = slow
        self.passed = 0.0
        self.asked = 0

    def now(self) -> float:
        return TRUE + self.passed - self.slow

    def answer(self, ahead: float | None) -> AskForTime:
        async def ask() -> float | None:
            await trio.lowlevel.checkpoint()
            self.asked += 1
            return ahead

        return ask

    def watch(self, hosts: list[float | None], stores: list[float | None]) -> ClockWatch:
        return ClockWatch(
            [self.answer(each) for each in hosts], [self.answer(each) for each in stores],
            self.now, lambda: self.passed,
        )  # fmt: skip

    def sync(self, account: int, ahead: float = 0.0) -> SyncMessage:
        moment = TRUE + self.passed + ahead
        return SyncMessage(1, f"did:web:{account}.test", tid_from(int(moment * 1e6)), "", b"")

    async def honest(self, watch: ClockWatch, count: int) -> None:
        for number in range(count):
            await watch.check([self.sync(number)])


async def test_a_slow_clock_judges_nobody_and_is_named() -> None:
    times = Times(slow=HOUR)
    watch = times.watch([HOUR, None], [0.0])
    with pytest.raises(ClockError, match="3600 s behind"):
        await watch.check([times.sync(1)])
    times.slow = 0.0
    await watch.check([times.sync(1)])


async def test_a_clock_that_jumps_back_while_it_runs_is_noticed_at_once() -> None:
    times = Times()
    watch = times.watch([HOUR], [])
    await times.honest(watch, 40)
    assert times.asked == 0
    times.slow = HOUR
    with pytest.raises(ClockError):
        await watch.check([times.sync(1)])


async def test_one_account_from_the_future_is_judged_without_asking() -> None:
    times = Times()
    watch = times.watch([HOUR], [])
    await times.honest(watch, 20)
    for _ in range(5):
        await watch.check([times.sync(99, ahead=HOUR), times.sync(1)])
    assert times.asked == 0


async def test_many_accounts_of_a_forger_do_not_stop_reading() -> None:
    times = Times()
    watch = times.watch([0.4, HOUR], [0.0])  # whoever agrees with our clock is believed
    for number in range(30):
        await watch.check([times.sync(number, ahead=HOUR)])
    assert times.asked == 3  # once for each, and then not for a while
    times.passed = 61.0
    await watch.check([times.sync(1, ahead=HOUR)])
    assert times.asked == 6


async def test_where_no_host_answers_stores_and_many_accounts_count() -> None:
    times = Times(slow=HOUR)
    with pytest.raises(ClockError):
        await times.watch([None], [0.0, HOUR]).check([times.sync(1)])  # one store is elsewhere
    watch = times.watch([None], [0.0])
    with pytest.raises(ClockError, match="nobody else answers"):
        await watch.check([times.sync(number) for number in range(8)])
    # One account that is all that is known of a relay does not hold it up for ever.
    times.slow = 0.0
    watch = times.watch([None], [0.0])
    for _ in range(6):
        with pytest.raises(ClockError):
            await watch.check([times.sync(1, ahead=HOUR)])
    await watch.check([times.sync(1, ahead=HOUR)])


async def test_account_events_count_as_well() -> None:
    """Else each would get another time, and the newest one of an account stands."""
    times = Times(slow=HOUR)
    event = AccountMessage(1, "did:web:a.test", "2027-01-15T08:00:00Z", True, None)
    assert times.now() < TRUE
    with pytest.raises(ClockError):
        await times.watch([HOUR], []).check([event])
