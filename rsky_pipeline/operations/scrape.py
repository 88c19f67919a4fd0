"""Reading the metrics and health ports of running processes."""

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from rsky_pipeline.configuration.advice import advised
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.embedded.locations import run_directory
from rsky_pipeline.health.rules import PROCESS, RuleVerdict
from rsky_pipeline.health.samples import Exported, Labels
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.runtime.further_workers import further_workers
from rsky_pipeline.runtime.health_document import HealthDocument, pipeline_of, read_health
from rsky_pipeline.supervisor import client
from rsky_pipeline.supervisor.status_document import FindingStatus
from rsky_pipeline.systemd.files import UNIT_FOLDER
from rsky_pipeline.systemd.systemctl import is_running

_TIMEOUT_SECONDS = 5.0
_MAX_BYTES = 16 * 1024 * 1024
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """A worker that a supervisor lists: its name, role, metrics port, and reported state.

    `pipeline`: of one that is only assumed to be at its port, where one of another pipeline may be.
    """

    name: str
    role: str
    port: int | None
    state: str = "unknown"
    trouble: str | None = None
    findings: Sequence[FindingStatus] = ()  # as its supervisor has them
    pipeline: str | None = None


@dataclass(frozen=True, slots=True)
class Scrape:
    """The exported metrics of a worker at one moment, or the `error` of the request."""

    target: ScrapeTarget
    samples: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    health: HealthDocument = field(default_factory=HealthDocument)
    error: str | None = None

    def value(self, name: str, **labels: str) -> float | None:
        """Return the sum of the series with these labels, None if there is none."""
        return Exported(self.target.name, self.samples).value(name, **labels)


def targets(settings: Settings) -> list[ScrapeTarget]:
    """Return the workers of the supervisors in the run directory, and those without one.

    Where there are none, the configured port of each role is assumed: workers may have been started
    by something else.
    """
    run_dir = run_directory(settings)
    further = [
        ScrapeTarget(each.name, each.role, each.port, "running")
        for each in further_workers(run_dir)
    ]
    try:
        documents = [each.status for each in client.find(run_dir)]
    except WorkerError:
        pipeline = pipeline_of(settings)
        return further or [
            ScrapeTarget(
                f"{role}-1", role, settings.metrics_port(role) or None, pipeline=pipeline
            )
            for role in ROLE_NAMES
        ]  # fmt: skip
    return further + [
        ScrapeTarget(
            item["name"],
            item["role"],
            item["metrics_port"],
            item["state"],
            item["trouble"],
            item.get("findings", ()),
        )
        for document in documents
        for item in document["processes"]
        if item["kind"] == "worker"
    ]


def absent(role: str) -> RuleVerdict:
    """Return the verdict on a role that has to run here and has no worker."""
    unit = f"rsky-{role}.service"
    start = advised("start", "--role", role)
    if is_running() and ("/" / UNIT_FOLDER / unit).exists():
        start = f"`systemctl start {unit}`"
    remedy = f"start it: {start}; where it runs on another host, leave it out of expected_roles"
    return RuleVerdict(PROCESS, role, "fail", "no worker is running", remedy=remedy)


def healthz(settings: Settings, port: int) -> HealthDocument:
    """Read a worker's /healthz. Raises OSError, ValueError, HTTPException."""
    host = _EVERYWHERE.get(settings.metrics_host, settings.metrics_host)
    return read_health(json.loads(_get(host, port, "/healthz")))


def scrape(settings: Settings, target: ScrapeTarget) -> Scrape:
    """Read a worker's /metrics and /healthz; a failure becomes the `error` of the result."""
    if target.port is None:
        return Scrape(target, error="it has no metrics port yet")
    host = _EVERYWHERE.get(settings.metrics_host, settings.metrics_host)
    try:
        text = _get(host, target.port, "/metrics")
        samples: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                series = tuple(sorted(sample.labels.items()))
                samples.setdefault(sample.name, {})[series] = sample.value
        health = json.loads(_get(host, target.port, "/healthz"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        where = f"http://{host}:{target.port}"
        return Scrape(target, error=f"{where} does not answer as a worker: {error}")
    known = read_health(health)
    # Workers of older versions do not say.
    if target.pipeline is not None and known.get("pipeline", target.pipeline) != target.pipeline:
        other = f"it does not run: at port {target.port} is a worker of another pipeline"
        return Scrape(target, error=other)
    return Scrape(target, samples, known)


def _get(host: str, port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(_MAX_BYTES)
        # An unhealthy worker answers /healthz with 503 and the reason.
        if response.status not in (200, 503):
            raise ValueError(f"{path} answered {response.status}")
        return body
    finally:
        connection.close()
