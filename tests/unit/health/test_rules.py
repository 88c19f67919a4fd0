"""A condition has one threshold, and it stands in the table of rules."""

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import rsky_pipeline
from rsky_pipeline.cli.status import warnings
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES, STREAMS
from rsky_pipeline.health import conditions, rules, self_check
from rsky_pipeline.health.samples import Sample
from rsky_pipeline.health.self_check import SelfCheck
from rsky_pipeline.observability.catalogue import declared, missing_metrics
from rsky_pipeline.observability.findings import FindingMetrics
from rsky_pipeline.operations import monitoring, trace
from rsky_pipeline.operations.verification import checks, run
from rsky_pipeline.streams.lag import ServerMemory

ROOT = Path(rsky_pipeline.__file__).parent
JUDGES = [
    *sorted((ROOT / "health").glob("*.py")),
    *sorted((ROOT / "operations" / "verification").glob("*.py")),
    *sorted((ROOT / "development" / "monitoring").glob("*.py")),
    *(ROOT / name for name in (
        "operations/monitoring.py", "runtime/health.py", "supervisor/status.py", "cli/status.py",
        "cli/verify.py", "cli/monitor.py",
    )),
]  # fmt: skip
METRIC = re.compile(r'"((?:ingester|indexer|backfiller)_[a-z0-9_]+)"')
# What the durations and sizes of presentation are compared with.
HARMLESS = {"status.py": {60, 3600, 86_400}, "monitoring.py": {2}}


def thresholds(source: str) -> Iterator[float]:
    """Yield the numbers that a source compares something with, in code and in PromQL."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            for each in (node.left, *node.comparators):
                if isinstance(each, ast.Constant) and isinstance(each.value, int | float):
                    yield each.value
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for number in re.findall(r" [<>]=? (\d+(?:\.\d+)?(?:e\d+)?)", node.value):
                yield float(number)


@pytest.mark.parametrize("path", JUDGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_thresholds_stand_in_the_rules_only(path: Path) -> None:
    if path == ROOT / "health" / "rules.py":
        return
    allowed = {0, 1, *HARMLESS.get(path.name, ())}
    assert {number for number in thresholds(path.read_text()) if number not in allowed} == set()


@pytest.mark.parametrize("source", ["a >= 20.0", "'rsky_x > 300'", "x = 5 < y"])
def test_thresholds_are_noticed(source: str) -> None:
    assert len(list(thresholds(source))) == 1


def test_names_of_rules_and_alerts_are_used_once() -> None:
    names = [rule.name for rule in rules.RULES]
    assert len(set(names)) == len(names)
    alerts = [alert.name for rule in rules.RULES for alert in rule.alerts]
    assert len(set(alerts)) == len(alerts)


def test_streams_of_history_have_their_own_limits() -> None:
    stall = rules.CONSUMER_STALL
    assert [stall.verdict(seconds, "firehose_live") for seconds in (19, 20)] == ["pass", "fail"]
    assert [stall.verdict(seconds, "repo_backfill") for seconds in (119, 120)] == ["pass", "fail"]
    assert [rules.OLDEST.verdict(age, "label_live") for age in (59, 60, 600)] == [
        *("pass", "warn", "fail")
    ]


@pytest.mark.parametrize("module", [conditions, checks, run, trace, monitoring])
def test_metrics_that_are_read_are_declared(module: object) -> None:
    """A renamed metric would look like a healthy 0."""
    known = {name for role in ROLE_NAMES for name in declared(role)}
    read = set(METRIC.findall(Path(str(getattr(module, "__file__"))).read_text()))  # noqa: B009
    plain = {re.sub(r"_(count|sum)$", "", name) for name in read}
    assert plain - known == set()


def test_missing_metrics_are_named() -> None:
    registry = CollectorRegistry()
    FindingMetrics(registry, rules.finding_series(STREAMS))
    missing = missing_metrics(registry, "indexer")
    assert "indexer_batches_total" in missing
    assert "rsky_finding" not in missing


def test_a_finding_is_logged_by_its_title_and_severity(caplog: pytest.LogCaptureFixture) -> None:
    check = SelfCheck(CollectorRegistry(), "backfiller", Settings(), STREAMS)
    with caplog.at_level(logging.INFO, self_check.__name__):
        for used in (76, 86, 87):
            check.observe(Sample(1.0, memory=ServerMemory(used, 100, 0, "noeviction")))
    logged = [(record.levelname, record.getMessage()) for record in caplog.records]
    title = rules.REDIS_MEMORY.title
    assert logged == [("WARNING", title), ("ERROR", title)]  # the third one within a minute
    assert caplog.records[1].__dict__["to_do"] == rules.REDIS_MEMORY.remedy


def test_status_has_the_verdict_of_verify() -> None:
    health = {"findings": ["redis_memory", "no_progress", "back_pressure firehose_live"],
              "failing": ["back_pressure firehose_live"]}  # fmt: skip
    words = [line.split(": ")[1] for line in warnings([{"name": "x-1", "health": health}])]
    assert words == ["warning", "failure", "failure"]
