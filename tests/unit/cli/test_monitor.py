"""The views of `monitor`: a line a sample in a log, a table on a terminal."""

import io

import pytest
from rich.console import Console

from rsky_pipeline.cli.monitor import _line, _table
from rsky_pipeline.health.rules import BACKFILL, CONSUMER_STALL, RATE, RuleVerdict
from rsky_pipeline.operations.monitoring import Monitoring
from rsky_pipeline.operations.verification.run import VerificationReport

CHECKS = (
    RuleVerdict(RATE, "", "pass", "as expected", 1_234.5),
    RuleVerdict(CONSUMER_STALL, "label_live", "fail", "9 wait"),
    RuleVerdict(BACKFILL, "", "warn", "5 repos wait"),
)
FOUND = Monitoring(1_000.0, 30.0, [VerificationReport(1_030.0, 30.0, CHECKS)])


def test_a_line_names_rates_and_failed_checks(capsys: pytest.CaptureFixture[str]) -> None:
    _line(FOUND)
    line = "30 s fail: rate:firehose_live 1,234.5; delivery:label_live: 9 wait"
    assert capsys.readouterr().err == f"rsky-pipeline: {line}\n"


def test_a_table_names_what_is_not_good() -> None:
    screen = io.StringIO()
    Console(file=screen, width=100).print(_table(FOUND))
    shown = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert "fail  delivery:label_live: 9 wait" in shown
    assert "warn  backfill: 5 repos wait" in shown
