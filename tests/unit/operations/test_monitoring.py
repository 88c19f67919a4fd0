"""Regressions and reports from made-up samples."""

from pathlib import Path

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.health.rules import RATE, Rule, RuleVerdict, Status
from rsky_pipeline.operations.monitoring import Monitoring, markdown, monitor, sparkline
from rsky_pipeline.operations.verification.run import VerificationReport

A = Rule("a", "a is wrong", "do this")


def watched(*statuses: Status | None, value: float = 1.0) -> Monitoring:
    """Return samples of one check; None leaves it out of a sample."""
    found = Monitoring(1_000.0, 30.0)
    for number, status in enumerate(statuses, start=1):
        checks = [RuleVerdict(RATE, "", "pass", "x", value * number)]
        if status is not None:
            checks.append(RuleVerdict(A, "", status, f"figure {number}"))
        found.reports.append(VerificationReport(1_000.0 + 30.0 * number, 30.0, tuple(checks)))
    return found


def test_a_failure_that_lasts_or_is_there_at_the_end_is_a_regression() -> None:
    assert watched("pass", "warn", "pass").ok
    assert watched("pass", "fail", "pass").ok
    assert not watched("pass", "fail", "fail", "pass").ok
    assert not watched("pass", "pass", "fail").ok
    assert watched("fail", "pass", "fail", "pass").ok
    assert not watched("fail", None, None, "fail", "pass").ok  # asked less often
    assert not Monitoring(0.0, 30.0).ok


def test_the_report_tells_when_and_what_to_do() -> None:
    text = markdown(watched("pass", "fail", "fail", "pass"))
    assert text.startswith("# Monitoring report\n\n**FAILED**: 120 s from 1970-01-01T00:16:40")
    assert "- **a**: 2 samples, 2 in a row, from 60 s to 90 s. figure 3. To do: do this." in text
    assert "| live events/s | 1.0 | 2.5 | 4.0 | 4.0 | ▃▅▇█ |" in text
    passing = markdown(watched("pass", "fail", "pass"))
    assert "## Failures that passed by themselves" in passing
    assert "## Regressions" not in passing
    document = watched("fail").document()
    assert (document["ok"], document["regressions"]) == (False, ["a"])
    assert document["samples"][0]["status"] == "fail"


def test_graphs_begin_at_0() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([0.0, 4.0, 8.0]) == "▁▅█"
    assert len(sparkline([1.0] * 100)) == 40


def test_what_was_seen_before_an_interruption_is_reported(tmp_path: Path) -> None:
    settings = Settings(
        redis_url=f"unix://{tmp_path}/none", database_url="postgresql://nobody@127.0.0.1:1/none",
        relay_hosts=("ws://127.0.0.1:1",), data_dir=tmp_path, run_dir=tmp_path,
        ingester_metrics_port=0, indexer_metrics_port=0, backfiller_metrics_port=0,
    )  # fmt: skip
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) > 1:
            raise KeyboardInterrupt

    found = monitor(settings, 60.0, 30.0, sleep=sleep)
    assert found.ended_early
    assert len(found.reports) == 1
    failed = {check.check for check in found.reports[0].of("fail")}
    assert {"redis", "database", "relay:127.0.0.1:1", "process:indexer-1"} <= failed
    assert not found.ok
