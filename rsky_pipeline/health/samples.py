"""What rules look at: samples of the streams, of Redis, and of the metrics of workers.

A worker takes a sample of itself every few seconds, `verify` one of all workers before and after
its window. Moments are monotonic seconds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from rsky_pipeline.streams.lag import GroupReport, ServerMemory, StreamReport

Labels = tuple[tuple[str, str], ...]
Samples = Mapping[str, Mapping[Labels, float]]


@dataclass(frozen=True, slots=True)
class Exported:
    """What one worker exports at one moment: the values of its series by name and labels."""

    worker: str
    samples: Samples = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float | None:
        """Return the sum of the series with these labels, None if there is none."""
        wanted = set(labels.items())
        found = [
            value for series, value in self.samples.get(name, {}).items() if wanted <= set(series)
        ]
        return sum(found) if found else None


@dataclass(frozen=True, slots=True)
class Sample:
    """Everything that was seen at one moment; unknown figures keep their defaults."""

    moment: float
    streams: tuple[StreamReport, ...] = ()
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    looked_at: int = 0  # of the newest entries of the live stream
    misplaced: int = 0  # of these do not belong there
    memory: ServerMemory | None = None
    workers: tuple[Exported, ...] = ()
    missing_metrics: tuple[str, ...] = ()

    def stream(self, name: str) -> StreamReport | None:
        """Return a stream, None where it was not looked at."""
        return next((item for item in self.streams if item.name == name), None)

    def group(self, stream: str, name: str) -> GroupReport | None:
        """Return a group of a stream, None where it was not looked at or is not there."""
        report = self.stream(stream)
        return report.group(name) if report else None

    def values(self, name: str, **labels: str) -> list[float]:
        """Return the value of each worker that has series with these labels."""
        found = (worker.value(name, **labels) for worker in self.workers)
        return [value for value in found if value is not None]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum over all workers."""
        return sum(self.values(name, **labels))

    def series(self, name: str) -> Iterator[tuple[str, dict[str, str], float]]:
        """Yield worker, labels and value of every series."""
        for worker in self.workers:
            for labels, value in worker.samples.get(name, {}).items():
                yield worker.worker, dict(labels), value


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the settings expect; the rate of live events is not judged where `band` is None."""

    band: tuple[float, float] | None = None
    why_no_band: str = ""
    marks: Mapping[str, int] = field(default_factory=dict)


class SampleWindow:
    """Samples in order, the newest last, and the expectations that they are held against."""

    def __init__(self, samples: Sequence[Sample], expected: Expectations) -> None:
        self.samples = samples
        self.expected = expected
        self.now = samples[-1]
        self.first = samples[0]

    @property
    def seconds(self) -> float:
        """How much time the samples cover."""
        return self.now.moment - self.first.moment

    def before(self, seconds: float) -> Sample | None:
        """Return the newest sample that is at least so old, None if there is none."""
        limit = self.now.moment - seconds
        return next((item for item in reversed(self.samples) if item.moment <= limit), None)

    def over(self, seconds: float) -> Sample:
        """Return the sample that begins the last `seconds`, or the first there is."""
        return self.before(seconds) or self.first

    def grown(self, then: Sample, name: str, **labels: str) -> float:
        """Return by how much a counter grew since, over all workers; one that restarted began at 0.

        A worker that was not there `then` counts from 0.
        """
        return grown(then, self.now, name, **labels)


def grown(then: Sample, now: Sample, name: str, **labels: str) -> float:
    """Return by how much a counter grew between two samples, over all workers."""
    earlier = {worker.worker: worker for worker in then.workers}
    total = 0.0
    for worker in now.workers:
        new = worker.value(name, **labels) or 0.0
        before = earlier.get(worker.worker)
        old = (before.value(name, **labels) if before else None) or 0.0
        total += new - old if new >= old else new
    return total


def exported(registry: CollectorRegistry, worker: str, names: Iterable[str]) -> Exported:
    """Return the samples with these names that a worker has in its own registry."""
    samples: dict[str, dict[Labels, float]] = {}
    wanted = set(names)
    for metric in registry.restricted_registry(wanted).collect():
        for sample in metric.samples:
            if sample.name in wanted:
                series = tuple(sorted(sample.labels.items()))
                samples.setdefault(sample.name, {})[series] = sample.value
    return Exported(worker, samples)
