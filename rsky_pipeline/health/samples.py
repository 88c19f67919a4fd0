"""The inputs of rules: samples of the streams, of Redis, and of the metrics of workers.

A worker samples itself every few seconds, `verify` all workers before and after its window. Times
are monotonic seconds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rsky_pipeline.streams.lag import GroupReport, ServerMemory, StreamReport

Labels = tuple[tuple[str, str], ...]
Samples = Mapping[str, Mapping[Labels, float]]


@dataclass(frozen=True, slots=True)
class Exported:
    """The metrics of one worker at one moment: the values of its series by name and labels."""

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
    """All figures of one moment; unknown ones keep their defaults."""

    moment: float
    streams: tuple[StreamReport, ...] = ()
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    looked_at: int = 0  # of the newest entries of the live stream
    misplaced: int = 0  # of these do not belong there
    memory: ServerMemory | None = None
    workers: tuple[Exported, ...] = ()
    missing_metrics: tuple[str, ...] = ()

    def stream(self, name: str) -> StreamReport | None:
        """Return the report of a stream, None if it was not sampled."""
        return next((item for item in self.streams if item.name == name), None)

    def group(self, stream: str, name: str) -> GroupReport | None:
        """Return the report of a group, None if it does not exist or was not sampled."""
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
    """Expected values from the settings; `band` None means any rate of live events."""

    band: tuple[float, float] | None = None
    why_no_band: str = ""
    marks: Mapping[str, int] = field(default_factory=dict)


class SampleWindow:
    """Samples in order, the newest last, and the expected values."""

    def __init__(self, samples: Sequence[Sample], expected: Expectations) -> None:
        self.samples = samples
        self.expected = expected
        self.now = samples[-1]
        self.first = samples[0]

    @property
    def seconds(self) -> float:
        """The seconds that the samples cover."""
        return self.now.moment - self.first.moment

    def before(self, seconds: float) -> Sample | None:
        """Return the newest sample at least `seconds` old, None if there is none."""
        limit = self.now.moment - seconds
        return next((item for item in reversed(self.samples) if item.moment <= limit), None)

    def over(self, seconds: float) -> Sample:
        """Return the sample that begins the last `seconds`, or the first there is."""
        return self.before(seconds) or self.first

    def grown(self, then: Sample, name: str, **labels: str) -> float:
        """Return the increase of a counter since `then`, over all workers.

        A worker that restarted, or that is missing in `then`, counts from 0.
        """
        earlier = {worker.worker: worker for worker in then.workers}
        total = 0.0
        for worker in self.now.workers:
            new = worker.value(name, **labels) or 0.0
            before = earlier.get(worker.worker)
            old = (before.value(name, **labels) if before else None) or 0.0
            total += new - old if new >= old else new
        return total
