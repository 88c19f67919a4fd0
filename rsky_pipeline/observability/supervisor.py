"""The supervisor's metrics: computed at each scrape from its status document."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

STATES = ("stopped", "starting", "ready", "stopping", "backoff", "crashloop", "failed")


class SupervisorCollector(Collector):
    """Exports one series a child for each metric, whether or not it ever ran."""

    def __init__(self, children: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """`children` returns `processes` of the status document."""
        self._children = children

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
        for child in self._children():
            who = [child["name"], child["role"]]
            up.add_metric(who, float(child["state"] == "ready"))
            looping.add_metric(who, float(child["crash_looping"]))
            restarts.add_metric(who, child["restarts"])
            kills.add_metric(who, child["kills"])
            memory.add_metric(who, float(child["rss_bytes"] or 0))
            for name in STATES:
                state.add_metric([*who, name], float(child["state"] == name))
        yield from (up, state, looping, restarts, kills, memory)
