"""Asks `status`, health ports, metrics and `verify` about a pipeline, and evaluates alerts."""

import contextlib
import http.client
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from rsky_pipeline.cli.status import merged
from rsky_pipeline.development.monitoring.files import alerts
from rsky_pipeline.embedded.locations import run_directory
from rsky_pipeline.operations.verification.run import VerificationReport, verify
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.runtime.findings import found as findings_of
from rsky_pipeline.runtime.health_document import read_health
from rsky_pipeline.runtime.metrics_port import planned
from rsky_pipeline.supervisor import client
from tests.outages.surroundings import EACH, World

PROCESS = "process"  # the finding of a process that does not run or is not ready
_FINDING = re.compile(
    r'max by \(finding, subject\) \(rsky_finding\{finding(=|!~)"([^"]+)"\}\) (==|>) (\d)'
)
_PROCESS = re.compile(r"(rsky_process_crash_looping|rsky_process_up) == (\d)")
_UP = 'up{job=~"rsky-.*"} == 0'
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

Series = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(slots=True)
class Look:
    """What everybody says at one moment: findings by kind, with the worse verdict of each."""

    healthy: bool = False
    status: dict[str, str] = field(default_factory=dict)
    reports: dict[str, dict[str, str]] = field(default_factory=dict)  # the findings themselves
    healthz: dict[str, str] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, set[str]] = field(default_factory=dict)  # kinds by alert


def look(world: World) -> Look:
    """Ask `status`, every health port and every metrics port once."""
    found = Look()
    _ask_status(world, found)
    samples: list[dict[Series, float]] = []
    down = False
    ports = planned(world.settings, each_role=world.shape == EACH)
    for port in (port for each in ports.values() for port in each):
        try:
            found.codes.append(_ask_health(port, found))
            samples.append(_samples(port))
        except (OSError, ValueError, http.client.HTTPException):
            down = True
            found.codes.append(0)
            _worse(found.healthz, PROCESS, "fail")
            _worse(found.metrics, PROCESS, "fail")
    _judge(samples, down, found)
    return found


def _worse(kinds: dict[str, str], kind: str, verdict: str) -> None:
    if kinds.get(kind) != "fail":
        kinds[kind] = verdict


def _ask_status(world: World, found: Look) -> None:
    try:
        documents = [each.status for each in client.find(run_directory(world.settings))]
    except WorkerError:
        documents = []
    document = merged(documents, (), world.settings.expected_roles)
    found.healthy = bool(document["healthy"])
    for process in document["processes"]:
        for each in process["findings"]:
            _worse(found.status, each["kind"], each["verdict"])
            known = found.reports.setdefault(each["kind"], each)
            if known["verdict"] == "warn":
                found.reports[each["kind"]] = each
        if process["state"] != "ready" or (process["health"] or {}).get("trouble"):
            _worse(found.status, PROCESS, "fail")
    for each in document["findings"]:
        _worse(found.status, each["kind"], each["verdict"])
        found.reports.setdefault(each["kind"], each)


def _ask_health(port: int, found: Look) -> int:
    code, text = _get(port, "/healthz")
    document = json.loads(text)
    for each in document.get("processes", [document]):  # a supervisor's has those of its workers
        own = read_health(each.get("health", each))
        for finding in findings_of(own):
            _worse(found.healthz, finding["finding"], finding["verdict"])
        if each.get("state") != "ready":
            _worse(found.healthz, PROCESS, "fail")
    return code


def _get(port: int, path: str) -> tuple[int, str]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as asking:
        asking.request("GET", path)
        answer = asking.getresponse()
        return answer.status, answer.read().decode()


def _samples(port: int) -> dict[Series, float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(_get(port, "/metrics")[1])
        for sample in family.samples
        if sample.name in ("rsky_finding", "rsky_process_crash_looping", "rsky_process_up")
    }


def _judge(samples: list[dict[Series, float]], down: bool, found: Look) -> None:
    """Note the findings in the metrics, and which alerts' expressions hold."""
    values: dict[str, float] = {}
    processes: dict[str, set[float]] = {}
    for each in samples:
        for (name, labels), value in each.items():
            if name == "rsky_finding":
                kind = dict(labels)["finding"]
                values[kind] = max(value, values.get(kind, 0.0))
            else:
                processes.setdefault(name, set()).add(value)
    for kind, value in values.items():
        if value:
            _worse(found.metrics, kind, "fail" if value > 1 else "warn")
    if 0.0 in processes.get("rsky_process_up", set()):
        _worse(found.metrics, PROCESS, "fail")
    for alert, expression in alerts():
        kinds = set(_holds(expression, values, processes, down))
        if kinds:
            found.conditions[alert.name] = kinds


def _holds(
    expression: str, values: Mapping[str, float], processes: Mapping[str, set[float]], down: bool
) -> Iterator[str]:
    """Yield the kinds for which an alert's expression holds; others than these forms: none."""
    if match := _FINDING.fullmatch(expression):
        sign, names, comparison, number = match.groups()
        for kind, value in values.items():
            named = re.fullmatch(names, kind) is not None
            meets = value == float(number) if comparison == "==" else value > float(number)
            if named == (sign == "=") and meets:
                yield kind
    elif match := _PROCESS.fullmatch(expression):
        if float(match[2]) in processes.get(match[1], set()):
            yield PROCESS
    elif expression == _UP and down:
        yield PROCESS


def holding(alert_name: str) -> float:
    """Return for how many seconds an alert's expression has to hold."""
    holds = next(alert.holds for alert, _ in alerts() if alert.name == alert_name)
    return float(holds[:-1]) * _UNITS[holds[-1]]


class Verifier:
    """Runs `verify` again and again in a thread of its own."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ending = threading.Event()
        self.latest: VerificationReport | None = None
        self.began = 0.0  # the latest report's run
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Verifier":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ending.set()
        self._thread.join(120)

    def _run(self) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            self.latest = verify(
                self._world.settings, 1.0, roles=self._world.settings.expected_roles
            )
            self.began = began
            self._ending.wait(max(0.0, 1.0 - (time.monotonic() - began)))

    def kinds(self) -> dict[str, str]:
        """Return the rules that the latest report finds violated."""
        kinds: dict[str, str] = {}
        for check in self.latest.checks if self.latest else ():
            if check.status in ("warn", "fail"):
                _worse(kinds, check.rule.finding or check.rule.name, check.status)
        return kinds
