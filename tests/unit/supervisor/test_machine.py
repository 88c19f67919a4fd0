"""Every order of events leaves a child in a sane state, and every rule has its example."""

import signal
from dataclasses import replace

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rsky_pipeline.supervisor import machine as m
from rsky_pipeline.supervisor.machine import (
    ALIVE,
    WAITING,
    Child,
    Effect,
    Exit,
    Input,
    Phase,
    Policy,
    StopStep,
    step,
)

POLICY = Policy(
    escalation=(
        StopStep(signal.SIGTERM, 30),
        StopStep(signal.SIGTERM, 5),
        StopStep(signal.SIGQUIT, 2),
        StopStep(signal.SIGKILL, 5),
    ),
    ready_timeout=120,
)
ESCALATION_SECONDS = sum(stop_step.wait for stop_step in POLICY.escalation[:-1])


class Driver:
    """Performs effects on a pretended process, and refuses effects that make no sense."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.child = Child()
        self.pid: int | None = None
        self.pids = 0
        self.signals: list[int] = []
        self.reports: list[str] = []
        self.spawn_works = True

    def tell(self, event: Input) -> None:
        inputs = [event]
        while inputs:
            self.child, effects = step(self.child, inputs.pop(0), self.now, POLICY)
            inputs += [answer for effect in effects if (answer := self.perform(effect))]

    def perform(self, effect: Effect) -> Input | None:
        match effect:
            case m.Spawn():
                assert self.pid is None, "two processes of one child"
                if not self.spawn_works:
                    return m.SpawnFailed("no memory")
                self.pids += 1
                self.pid = self.pids
                self.signals = []
                return m.Spawned(self.pid)
            case m.Send(number):
                assert self.pid is not None, "a signal to nobody"
                self.signals.append(number)
            case m.Announce(what):
                self.reports.append(what)
        return None

    def exit(self, how: Exit, draw: float = 0.5) -> None:
        self.pid = None
        self.tell(m.Exited(how, draw))

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.child.timer is not None and self.child.timer <= end:
            self.now = max(self.now, self.child.timer)
            self.tell(m.Timer())
        self.now = end

    @property
    def phase(self) -> Phase:
        return self.child.phase

    def is_in(self, phase: Phase) -> bool:
        return self.child.phase is phase


class Life(RuleBasedStateMachine):
    """Any order of orders, exits and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver()

    @rule(
        order=st.sampled_from([m.Start(), m.Stop(), m.Restart(), m.Escalate(), m.Kill()]),
        spawn_works=st.booleans(),
    )
    def operator(self, order: Input, spawn_works: bool) -> None:
        self.driver.spawn_works = spawn_works
        before = self.driver.child
        self.driver.tell(order)
        if isinstance(order, m.Stop):
            assert self.driver.phase in (Phase.STOPPED, Phase.STOPPING)
        if isinstance(order, m.Kill) and before.phase is Phase.STOPPING:
            assert signal.SIGKILL in self.driver.signals

    @precondition(lambda self: self.driver.pid is not None)
    @rule()
    def becomes_ready(self) -> None:
        self.driver.tell(m.BecameReady())

    @precondition(lambda self: self.driver.pid is not None)
    @rule()
    def falls_silent(self) -> None:
        self.driver.tell(m.Unresponsive("silent"))
        assert self.driver.phase is Phase.STOPPING

    @precondition(lambda self: self.driver.pid is not None)
    @rule(
        how=st.one_of(
            st.sampled_from([0, 1, 69, 77, 78]).map(lambda code: Exit(code=code)),
            st.just(Exit(signal=9)),
        ),
        draw=st.floats(0, 1, exclude_max=True),
    )
    def exits(self, how: Exit, draw: float) -> None:
        wanted, again = self.driver.child.wanted, self.driver.child.again
        self.driver.exit(how, draw)
        if not wanted:
            assert self.driver.phase is Phase.STOPPED
        elif how.code in (77, 78) and not again:
            assert self.driver.phase is Phase.FAILED
        if self.driver.phase in WAITING:
            timer = self.driver.child.timer
            assert timer is not None
            assert 0 <= timer - self.driver.now <= POLICY.cap

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 31.0, 61.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        stopping = self.driver.phase is Phase.STOPPING
        self.driver.wait(seconds)
        if stopping and seconds >= ESCALATION_SECONDS:
            assert signal.SIGKILL in self.driver.signals

    @invariant()
    def phase_and_process_agree(self) -> None:
        child = self.driver.child
        assert child.pid == self.driver.pid
        assert (child.phase in ALIVE) == (self.driver.pid is not None)

    @invariant()
    def the_operators_will_is_done(self) -> None:
        child = self.driver.child
        if child.wanted:
            assert child.phase is not Phase.STOPPED
        else:
            assert child.phase in (Phase.STOPPED, Phase.STOPPING)

    @invariant()
    def nothing_waits_for_ever(self) -> None:
        child = self.driver.child
        if child.phase in (Phase.STARTING, Phase.STOPPING) or child.phase in WAITING:
            assert child.timer is not None

    @invariant()
    def the_ladder_is_climbed_not_jumped_over(self) -> None:
        assert 0 <= self.driver.child.stop_step < len(POLICY.escalation)
        assert len(self.driver.child.failed_at) <= POLICY.crash_budget


TestLife = Life.TestCase
TestLife.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)


def started() -> Driver:
    driver = Driver()
    driver.tell(m.Start())
    driver.tell(m.BecameReady())
    assert driver.is_in(Phase.READY)
    return driver


def test_a_stop_climbs_the_ladder_in_time() -> None:
    driver = started()
    driver.tell(m.Stop())
    assert driver.signals == [signal.SIGTERM]
    driver.wait(29.9)
    assert driver.signals == [signal.SIGTERM]
    driver.wait(0.2)
    assert driver.signals == [signal.SIGTERM] * 2
    driver.wait(5)
    assert driver.signals[2:] == [signal.SIGQUIT]
    driver.wait(2)
    assert driver.signals[3:] == [signal.SIGKILL]
    assert driver.child.kills == 1
    driver.wait(5)
    assert driver.signals[4:] == [signal.SIGKILL]
    assert driver.child.kills == 1
    driver.exit(Exit(signal=9))
    assert driver.is_in(Phase.STOPPED)


def test_escalation_and_kill_shorten_a_stop_and_do_nothing_otherwise() -> None:
    driver = started()
    driver.tell(m.Escalate())
    driver.tell(m.Kill())
    assert driver.signals == []
    driver.tell(m.Stop())
    driver.tell(m.Escalate())
    driver.tell(m.Escalate())
    assert driver.signals == [signal.SIGTERM] * 2
    driver.tell(m.Kill())
    assert driver.signals[-1] == signal.SIGKILL


def test_waits_grow_to_the_cap_and_become_a_crash_loop() -> None:
    driver = Driver()
    driver.tell(m.Start())
    waits = []
    phases = []
    for _ in range(7):
        driver.exit(Exit(code=1), draw=0.999999)
        assert driver.child.timer is not None
        waits.append(round(driver.child.timer - driver.now))
        phases.append(driver.phase)
        driver.wait(driver.child.timer - driver.now)
        assert driver.is_in(Phase.STARTING)
    assert waits == [1, 2, 4, 8, 60, 60, 60]
    assert phases == [Phase.BACKOFF] * 4 + [Phase.CRASHLOOP] * 3
    assert driver.child.crash_looping(POLICY)
    assert driver.child.restarts == 7


def test_failures_are_forgotten_only_after_a_stable_run() -> None:
    driver = Driver()
    driver.tell(m.Start())
    driver.exit(Exit(code=1))
    driver.wait(60)
    driver.tell(m.BecameReady())
    driver.wait(59)
    assert driver.child.failures == 1
    driver.wait(2)
    assert driver.child.failures == 0
    assert driver.child.failed_at == ()


def test_exits_of_long_ago_are_no_crash_loop() -> None:
    driver = Driver()
    driver.tell(m.Start())
    for _ in range(10):
        driver.wait(100)
        driver.exit(Exit(code=1))
        assert driver.child.timer is not None
        driver.wait(driver.child.timer - driver.now)
    assert driver.reports.count("crashloop") == 0


def test_a_missing_dependency_is_no_fault_of_the_child() -> None:
    driver = Driver()
    driver.tell(m.Start())
    for _ in range(10):
        driver.exit(Exit(code=69))
        assert driver.is_in(Phase.BACKOFF)
        driver.wait(POLICY.cap)


def test_a_spawn_that_fails_waits_like_an_exit() -> None:
    driver = Driver()
    driver.spawn_works = False
    driver.tell(m.Start())
    assert driver.is_in(Phase.BACKOFF)
    assert driver.child.last_exit == Exit(reason="no memory")


def test_restart_of_a_running_child_is_no_failure() -> None:
    driver = started()
    driver.tell(m.Restart())
    assert driver.is_in(Phase.STOPPING)
    driver.exit(Exit(code=0))
    assert driver.is_in(Phase.STARTING)
    assert (driver.child.failures, driver.child.restarts, driver.child.starts) == (0, 1, 2)


def test_stop_during_a_restart_wins() -> None:
    driver = started()
    driver.tell(m.Restart())
    driver.tell(m.Stop())
    driver.exit(Exit(code=0))
    assert driver.is_in(Phase.STOPPED)


def test_a_failed_child_starts_again_only_by_order() -> None:
    driver = started()
    driver.exit(Exit(code=78))
    driver.wait(10_000)
    assert driver.is_in(Phase.FAILED)
    driver.tell(m.Restart())
    assert driver.is_in(Phase.STARTING)


def test_not_ready_in_time_is_stopped_and_retried() -> None:
    driver = Driver()
    driver.tell(m.Start())
    driver.wait(121)
    assert driver.is_in(Phase.STOPPING)
    assert "not_ready" in driver.reports
    driver.exit(Exit(code=0))
    assert driver.is_in(Phase.BACKOFF)


def test_told_to_stop_before_there_is_a_process() -> None:
    child = replace(Child(), phase=Phase.STARTING, wanted=True, timer=1.0)
    child, effects = step(child, m.Stop(), 0.0, POLICY)
    assert effects == ()
    child, effects = step(child, m.Spawned(7), 0.0, POLICY)
    assert effects == (m.Send(signal.SIGTERM),)


def test_who_is_to_blame_for_an_end() -> None:
    def end(how: Exit, *before: Input) -> bool:
        driver = Driver()
        for event in (m.Start(), m.BecameReady(), *before):
            driver.tell(event)
        driver.pid = None
        driver.tell(m.Exited(how))
        assert driver.child.last_exit is not None
        return driver.child.last_exit.blameless

    killed = Exit(signal=signal.SIGKILL)
    assert end(killed)
    assert end(Exit(code=0))
    assert end(Exit(code=1), m.Restart())
    assert end(killed, m.Stop(), m.Kill())
    assert not end(Exit(code=1))
    assert not end(Exit(signal=signal.SIGSEGV))
    assert not end(replace(killed, oom=True))
    assert not end(killed, m.Unresponsive("stuck"))
