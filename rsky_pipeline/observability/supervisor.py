"""The supervisor's metrics: computed at each scrape from its children's states."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

STATES = ("stopped", "starting", "ready", "stopping", "backoff", "crashloop", "failed")


@dataclass(frozen=True, slots=True)
class ChildSample:
    """The exported state of one child."""

    name: str
    role: str
    state: str
    restarts: int
    kills: int
    crash_looping: bool
    rss_bytes: int | None


class SupervisorCollector(Collector):
    """Exports one series a child for each metric, whether or not it ever ran."""

    def __init__(self, sample: Callable[[], Iterable[ChildSample]]) -> None:
        self._sample = sample

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics at this moment."""
        labels = ["process", "role"]
        up = GaugeMetricFamily("rsky_process_up", "1 when the process is ready", labels=labels)
        state = GaugeMetricFamily(
            "rsky_process_state", "1 for the state the process is in", labels=[*labels, "state"]
        )
        looping = GaugeMetricFamily(
            "rsky_process_crash_looping", "1 while the process fails too often", labels=labels
        )
        restarts = CounterMetricFamily(
            "rsky_process_restarts", "Starts after the first one", labels=labels
        )
        kills = CounterMetricFamily(
            "rsky_process_kills", "Times the process had to be killed", labels=labels
        )
        memory = GaugeMetricFamily(
            "rsky_process_resident_bytes", "Memory the process holds", labels=labels
        )
        for child in self._sample():
            who = [child.name, child.role]
            up.add_metric(who, float(child.state == "ready"))
            looping.add_metric(who, float(child.crash_looping))
            restarts.add_metric(who, child.restarts)
            kills.add_metric(who, child.kills)
            memory.add_metric(who, float(child.rss_bytes or 0))
            for name in STATES:
                state.add_metric([*who, name], float(child.state == name))
        yield from (up, state, looping, restarts, kills, memory)
