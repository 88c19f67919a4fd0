"""A condition has one threshold, and it stands in the table of rules."""

import ast
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import trio
from prometheus_client import CollectorRegistry

import rsky_pipeline
from rsky_pipeline.cli.status import troubles
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES, STREAMS
from rsky_pipeline.database.errors import DatabaseUnavailableError
from rsky_pipeline.embedded.locations import store_urls
from rsky_pipeline.health import conditions, rules, self_check
from rsky_pipeline.health.rules import Rule, RuleVerdict
from rsky_pipeline.health.samples import Sample
from rsky_pipeline.health.self_check import SelfCheck
from rsky_pipeline.observability.catalogue import declared, missing_metrics
from rsky_pipeline.observability.findings import FAILS, FindingMetrics, active_findings
from rsky_pipeline.operations import monitoring, trace
from rsky_pipeline.operations.scrape import Scrape, ScrapeTarget
from rsky_pipeline.operations.verification import checks, run
from rsky_pipeline.runtime.errors import StoreError
from rsky_pipeline.runtime.findings import complaint, found, written
from rsky_pipeline.runtime.health import Health
from rsky_pipeline.runtime.health_document import read_health
from rsky_pipeline.runtime.link import StoreTrouble
from rsky_pipeline.streams.errors import WritesRefusedError
from rsky_pipeline.streams.lag import ServerMemory
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.children import worker_policy
from rsky_pipeline.supervisor.machine import Phase
from rsky_pipeline.supervisor.spawn import ChildProcess
from rsky_pipeline.supervisor.status import child_document
from rsky_pipeline.supervisor.status_document import ProcessStatus

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


def test_the_findings_of_a_worker_of_an_older_version_have_title_and_remedy() -> None:
    health = read_health(
        {"findings": ["redis_memory", "no_progress", "back_pressure firehose_live", "new x"],
         "failing": ["back_pressure firehose_live"]}
    )  # fmt: skip
    seen = {each["finding"]: (each["verdict"], each["remedy"]) for each in found(health)}
    assert seen == {
        "no_progress": ("fail", rules.NO_PROGRESS.remedy),
        "back_pressure": ("fail", rules.BACK_PRESSURE.remedy),
        "redis_memory": ("warn", rules.REDIS_MEMORY.remedy), "new": ("warn", ""),
    }  # fmt: skip


async def shown_by(child: ChildDriver) -> ProcessStatus:
    await trio.lowlevel.checkpoint()
    return child_document(child)


def test_everybody_has_the_same_verdict_figure_and_remedy() -> None:
    own = "decide where to go on: `rsky-pipeline cursor reset a.test --force`"
    verdicts = [
        RuleVerdict(rules.CURSOR_REFUSED, "a.test", "fail", "it is at 7", remedy=own),
        RuleVerdict(rules.REDIS_MEMORY, "", "warn", "80 of 100 MB (80%)"),
    ]
    health = read_health({"state": "ready", "reports": written(verdicts)})
    child = ChildDriver("ingester", 1, worker_policy(Settings()), never)
    child.health = health
    child.state = replace(child.state, phase=Phase.READY)
    shown = trio.run(shown_by, child)
    scrape = Scrape(ScrapeTarget("ingester-1", "ingester", 1), {}, health)
    by_status = [(each["kind"], each["verdict"], each["remedy"]) for each in shown["findings"]]
    by_verify = [(each.rule.name, each.status, each.to_do) for each in
                 checks.check_findings([scrape])]  # fmt: skip
    assert by_status == by_verify == [
        ("cursor_refused", "fail", own), ("redis_memory", "warn", rules.REDIS_MEMORY.remedy),
    ]  # fmt: skip
    assert shown["findings"][0]["figure"] == "it is at 7"
    assert shown["trouble"] == f"{rules.CURSOR_REFUSED.title} (a.test): it is at 7"
    lines = list(troubles({"processes": [shown], "findings": []}))
    assert lines[0].startswith("ingester-1: failure: cursor_refused a.test: ")
    assert lines[0].endswith(f"it is at 7; to do: {own}")


def test_only_what_fails_makes_a_worker_unhealthy() -> None:
    health = Health("indexer", 1, lambda: 0.0)
    health.state = "ready"
    warning = RuleVerdict(rules.REDIS_MEMORY, "", "warn", "80%")
    health.report({"reports": written([warning])})
    assert (health.answer()[0], complaint(health.answer()[1])) == (200, None)
    health.report({"reports": written([replace(warning, status="fail")])})
    assert health.answer()[0] == 503
    assert complaint(health.answer()[1]) == f"{rules.REDIS_MEMORY.title}: 80%"


def test_the_disk_of_data_dir_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged_with(free: int, files: int = 900) -> list[tuple[str, str]]:
        values = os.statvfs_result((4096, 4096, 1_000, free, free, 1_000, files, files, 0, 255))
        monkeypatch.setattr("os.statvfs", lambda _: values)
        check = SelfCheck(CollectorRegistry(), "indexer", Settings(data_dir=tmp_path), STREAMS)
        return [(each.rule.name, each.status) for each in check.look_at_stores([])]

    assert judged_with(500) == []
    assert judged_with(90) == [("data_disk", "warn")]
    assert judged_with(5) == judged_with(500, files=1) == [("data_disk", "fail")]


@pytest.mark.parametrize(
    ("embedded", "free", "expected"),
    [(True, 5, ["data_disk"]), (False, 5, ["data_disk", "database_disk", "redis_cannot_save"]),
     (True, 500, ["database_disk", "redis_cannot_save"])],
)  # fmt: skip
def test_a_full_disk_is_one_finding(
    monkeypatch: pytest.MonkeyPatch, embedded: bool, free: int, expected: list[str]
) -> None:
    """What embedded stores cannot write to it has the same remedy."""
    folder = Path("/srv/data")
    settings = Settings(data_dir=folder, redis_url="redis://h", database_url="postgresql://h/d")
    if embedded:
        settings = store_urls(replace(settings, redis_url=None, database_url=None))
    values = os.statvfs_result((4096, 4096, 1_000, free, free, 1_000, 900, 900, 0, 255))
    monkeypatch.setattr("os.statvfs", lambda _: values)
    check = SelfCheck(CollectorRegistry(), "indexer", settings, STREAMS)
    met = [
        trouble(WritesRefusedError("MISCONF", rules.REDIS_CANNOT_SAVE.name), 90.0),
        trouble(DatabaseUnavailableError("full", finding=rules.DATABASE_DISK.name), 90.0),
    ]
    found = check.look_at_stores(met)
    assert sorted(each.rule.name for each in found) == expected


def never(_: bool) -> ChildProcess:
    raise OSError("nothing is started here")


def trouble(error: StoreError, seconds: float) -> StoreTrouble:
    return StoreTrouble("reading", error, seconds)


def test_stores_that_fail_are_findings_while_they_last() -> None:
    registry = CollectorRegistry()
    check = SelfCheck(registry, "indexer", Settings(), STREAMS)
    misconf = WritesRefusedError("Redis refuses writes: MISCONF x", "redis_cannot_save")
    full = DatabaseUnavailableError("too many clients", finding="database_connections")
    check.observe(Sample(1.0, memory=ServerMemory(86, 100, 0, "noeviction")))
    assert check.look_at_stores([trouble(misconf, rules.STORE_SECONDS - 0.1)]) == []
    seen = check.look_at_stores([trouble(misconf, 4.0), trouble(misconf, 9.0), trouble(full, 3.0)])
    assert [(each.rule, each.status) for each in seen] == [
        (rules.REDIS_CANNOT_SAVE, "fail"), (rules.DATABASE_CONNECTIONS, "fail")
    ]  # fmt: skip
    assert seen[0].figure == "Redis refuses writes: MISCONF x (reading, for 9 s)"
    assert "disk of Redis" in seen[0].to_do
    names = ["database_connections", "redis_cannot_save", "redis_memory"]
    assert active_findings(registry, FAILS) == names
    locked = RuleVerdict(rules.DATABASE_LOCKED, "", "fail", "1 statement waits for 4 s")
    assert check.look_at_stores([], [locked])
    assert active_findings(registry, FAILS) == ["database_locked", "redis_memory"]
    assert check.look_at_stores([]) == []
    assert active_findings(registry) == ["redis_memory"]


@pytest.mark.parametrize(("of_sample", "of_role"), [(87, "warn"), (76, "fail")])
def test_of_two_verdicts_on_one_subject_the_failure_is_shown(
    of_sample: int, of_role: Literal["warn", "fail"]
) -> None:
    registry = CollectorRegistry()
    check = SelfCheck(registry, "indexer", Settings(), STREAMS)
    check.observe(Sample(1.0, memory=ServerMemory(of_sample, 100, 0, "noeviction")))
    check.look_at_stores([], [RuleVerdict(rules.REDIS_MEMORY, "", of_role, "x")])
    assert [each.status for each in check.found] == ["fail"]
    assert active_findings(registry, FAILS) == ["redis_memory"]


@pytest.mark.parametrize("rule", rules.OF_STORES.values(), ids=lambda rule: rule.name)
def test_each_trouble_of_a_store_has_a_remedy_and_is_shown(rule: Rule) -> None:
    assert rule.watched
    assert (rule.name, "") in rules.finding_series(STREAMS)
    assert rule.limits.fail is not None
    assert rule.remedy not in {other.remedy for other in rules.RULES if other is not rule}


def test_verify_shows_why_a_store_keeps_a_worker_waiting() -> None:
    health = {
        "findings": ["redis_cannot_save"], "failing": ["redis_cannot_save"],
        "stores": [f"{rules.REDIS_CANNOT_SAVE.title}: MISCONF x (append, for 9 s)"],
    }  # fmt: skip
    scrape = Scrape(ScrapeTarget("ingester-1", "ingester", 1), {}, read_health(health))
    (check,) = checks.check_findings([scrape])
    assert (check.check, check.status) == ("redis_cannot_save", "fail")
    assert "MISCONF x" in check.figure
    assert check.to_do == rules.REDIS_CANNOT_SAVE.remedy


def test_a_worker_that_waits_for_a_store_is_unhealthy_and_not_started_again() -> None:
    now = 0.0
    health = Health("indexer", 1, lambda: now)
    health.state = "ready"
    assert health.answer()[0] == 200
    away = RuleVerdict(rules.DATABASE, "", "fail", "x")
    health.report({"reports": written([away])})
    status, document = health.answer()
    assert (status, document["trouble"], document["stalled"]) == (503, None, None)
    assert complaint(document) == "PostgreSQL cannot be reached: x"
