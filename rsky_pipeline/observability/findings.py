"""What a running worker finds wrong by itself: the kinds, and their metrics.

A finding is active while its rule holds (`rules.py`). Every series exists at 0 from the start.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge

ACTIVE = "rsky_finding"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a finding means and what an operator does about it.

    `of_stream` if it is about one; `severe` if something is broken, not only to be looked at.
    """

    meaning: str
    remedy: str
    of_stream: bool = False
    severe: bool = False


KINDS: Mapping[str, Kind] = {
    "polluted_stream": Kind(
        "repo events are in the live stream, where only operations on records belong",
        "stop what writes them; `rsky-pipeline streams purge firehose_live --type repo`",
        of_stream=True,
        severe=True,
    ),
    "rate_out_of_band": Kind(
        "live events come at a rate outside of expected_rate_min to expected_rate_max",
        "`rsky-pipeline streams inspect firehose_live`; see connections and errors",
    ),
    "stale_writes": Kind(
        "much of what comes as history is older than what is stored, and was refused",
        "see whether something queues old states again and again",
        of_stream=True,
    ),
    "no_progress": Kind(
        "something is tried again and again and never succeeds",
        "see the worker's log for the reason",
        severe=True,
    ),
    "missing_metrics": Kind(
        "metrics are declared and not exported",
        "the program is at fault: report it",
        severe=True,
    ),
    "consumer_stall": Kind(
        "entries wait and none is delivered",
        "see whether the group's workers run and their stores answer; "
        "`rsky-pipeline streams groups repair`",
        of_stream=True,
        severe=True,
    ),
    "unread_removed": Kind(
        "entries were removed that a group had not read",
        "see who trims the stream; what is lost comes again by backfill of the repos",
        of_stream=True,
    ),
    "pending_without_body": Kind(
        "entries were removed that a consumer still works on",
        "see who trims the stream; `rsky-pipeline streams groups repair`",
        of_stream=True,
    ),
    "cursor_stuck": Kind(
        "messages come from the relay and the cursor does not move",
        "see the ingester's log",
        severe=True,
    ),
    "redis_memory": Kind(
        "the memory of Redis is nearly used up; producers stop at 90%",
        "raise maxmemory, lower the high-water marks, or add consumers",
    ),
    "back_pressure": Kind(
        "a producer waits because a stream is at its high-water mark, or Redis is full",
        "see why consumers are slower; add workers",
        of_stream=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong now; `subject` is a stream, or empty."""

    kind: str
    subject: str
    detail: str


class FindingMetrics:
    """The findings of one worker as metrics; `streams` are those that it watches."""

    def __init__(self, registry: CollectorRegistry, streams: Iterable[str]) -> None:
        self.active = Gauge(
            ACTIVE, "1 while this worker finds something wrong", ["finding", "subject"],
            registry=registry,
        )  # fmt: skip
        self.begun = Counter(
            "rsky_findings_total", "How often a finding became active", ["finding"],
            registry=registry,
        )  # fmt: skip
        self._series = [
            (name, subject)
            for name, kind in KINDS.items()
            for subject in (streams if kind.of_stream else ("",))
        ]
        for name, subject in self._series:
            self.active.labels(name, subject)
            self.begun.labels(name)
        self._now: set[tuple[str, str]] = set()

    def show(self, findings: Iterable[Finding]) -> list[Finding]:
        """Let the metrics show these findings; return those that were not active before."""
        found = {(item.kind, item.subject): item for item in findings}
        for name, subject in self._series:
            self.active.labels(name, subject).set((name, subject) in found)
        new = [item for key, item in found.items() if key not in self._now]
        for item in new:
            self.begun.labels(item.kind).inc()
        self._now = set(found)
        return new


def active_findings(registry: CollectorRegistry) -> list[str]:
    """Return the active findings of a worker, `KIND` or `KIND SUBJECT`, for its health document."""
    return sorted(
        f"{sample.labels['finding']} {sample.labels['subject']}".strip()
        for metric in registry.restricted_registry([ACTIVE]).collect()
        for sample in metric.samples
        if sample.value
    )
