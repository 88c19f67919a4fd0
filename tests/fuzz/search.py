"""Searches for faults: mutated inputs within bounds, and guided by coverage where atheris is."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import Target

MOST_SECONDS = 5.0  # of processor time, for one input
MOST_MEMORY = 300 * 1024  # KiB that all inputs of a search may add


def search(target: Target, examples: int, *, shrink: bool = True) -> None:
    """Try a target's seeds and mutations of them; raises what a fault raises, for a small input."""
    for seed in target.seeds():
        target.run(seed)
    phases = [phase for phase in Phase if shrink or phase is not Phase.shrink]

    @given(mutated(target))
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,  # an input may take MOST_SECONDS
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    def one(data: bytes) -> None:
        with _bounded():
            target.run(data)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


@contextmanager
def _bounded() -> Iterator[None]:
    """Fail where one input takes too much of the processor; the wait of a busy machine is none."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"one input takes more than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
