"""The forms of the status document; docs/status.schema.json is made of them (`make docs`).

A contract for programs: fields are only added while `SCHEMA_VERSION` stays the same; readers ignore
unknown fields. Times are seconds.
"""

from typing import Literal, NotRequired, TypedDict

from rsky_pipeline.runtime.health_document import HealthDocument

SCHEMA_VERSION = 1
SupervisorPhase = Literal["starting", "running", "stopping"]


class FindingStatus(TypedDict):
    """A rule that a worker finds violated: its name, what about, and what to do."""

    kind: str  # as in `rsky_finding`
    subject: str  # a stream, a host, a listing; empty for the worker itself
    verdict: Literal["warn", "fail"]
    title: str
    figure: str  # the value, or the reason, that was found
    remedy: str


class ProblemStatus(TypedDict):
    """A reason why a worker is not well. `text` is for people."""

    code: Literal["unhealthy", "degraded", "relays"]
    text: str


class ExitStatus(TypedDict):
    """How a process ended: by a code or a signal, and its own reason."""

    code: int | None
    signal: int | None
    reason: str | None


class ProcessStatus(TypedDict):
    """A store or worker. Figures are None where there is no process, or it has not reported any."""

    name: str
    role: str
    instance: int | None  # None for a store
    kind: Literal["store", "worker"]
    pid: int | None
    state: Literal["stopped", "starting", "ready", "stopping", "backoff", "crashloop", "failed"]
    state_seconds: float
    wanted: bool  # False after a stop on purpose
    uptime_seconds: float | None
    restarts: int
    kills: int
    crash_looping: bool
    last_exit: ExitStatus | None
    metrics_port: int | None
    rss_bytes: int | None
    rate: float | None  # events per second
    lag: int | None  # entries that wait, of a consumer
    lag_seconds: float | None  # age of the newest event, of the ingester
    trouble: str | None  # why it is not well: that it hangs, or the findings that fail
    problems: list[ProblemStatus]
    findings: list[FindingStatus]
    health: HealthDocument  # as the worker last reported it


class SupervisorStatus(TypedDict):
    """The document of one supervisor, by its control socket and its port."""

    schema_version: int
    version: str
    commit: str | None
    built_at: str | None
    time: float
    pid: int
    state: SupervisorPhase
    roles: list[str]
    uptime_seconds: float
    run_dir: str
    healthy: bool
    processes: list[ProcessStatus]
    streams: dict[str, int]  # entries by stream, as the workers last saw them
    dead_letters: dict[str, int]  # by the stream that they came from
    steps: list[str]  # lines of the start


class SupervisorSummary(TypedDict):
    """One of the supervisors of a run directory; None where an older version has no such field."""

    pid: int
    state: str
    roles: list[str]
    uptime_seconds: float
    version: str | None
    commit: str | None
    built_at: str | None
    healthy: bool


class PipelineStatus(TypedDict):
    """`status --json`: the documents of all supervisors of a run directory in one."""

    schema_version: int
    healthy: bool
    roles: list[str]
    processes: list[ProcessStatus]
    streams: dict[str, int]
    dead_letters: dict[str, int]
    supervisors: list[SupervisorSummary]
    findings: list[FindingStatus]  # of no single process: a role that does not run here
    deployment: NotRequired[str]  # one was interrupted, and what to do
    problem: NotRequired[str]  # why there is no supervisor to show
