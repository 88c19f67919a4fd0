"""Rules and alerts, as Prometheus itself reads and evaluates them."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rsky_pipeline.development.documents import ROOT
from rsky_pipeline.development.monitoring.expressions import DECLARED, RECORDED, checked, names_in
from rsky_pipeline.development.monitoring.files import alerts
from rsky_pipeline.health.rules import Alert
from tests.unit.monitoring.scenarios import SCENARIOS, Scenario

ALERTS = [alert for alert, _ in alerts()]
FOLDER = ROOT / "docs" / "monitoring"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        [PROMTOOL or "", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_configuration_and_rules() -> None:
    promtool("check", "config", str(FOLDER / "prometheus.yml"))
    promtool("check", "rules", *map(str, sorted(FOLDER.glob("*.rules.yml"))))


def test_every_alert_has_a_scenario() -> None:
    assert SCENARIOS.keys() == {alert.name for alert in ALERTS}


def test_alerts_read_only_what_is_declared_or_recorded() -> None:
    for _, expression in alerts():
        assert names_in(expression) <= DECLARED.keys() | RECORDED
        assert names_in(expression) or "up{" in expression
        assert not set("{}") & set(re.sub(r"\{[a-z]+[!=]?[=~]", "", expression).replace('"}', ""))


@pytest.mark.parametrize("expression", ["rate(ingester_no_such_total[1m])", "rsky:no:rule"])
def test_an_expression_about_nothing_is_an_error(expression: str) -> None:
    with pytest.raises(ValueError, match="nobody declares"):
        checked(expression, RECORDED)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_says_where_to_read_on(alert: Alert) -> None:
    page, _, section = alert.page.partition("#")
    text = (ROOT / "docs" / page).read_text()
    headings = [re.sub(r"[^a-z0-9 -]", "", line.lower().lstrip("# ")).replace(" ", "-")
                for line in text.splitlines() if line.startswith("#")]  # fmt: skip
    assert not section or section in headings, f"docs/{page} has no section {section}"


@needs_promtool
def test_each_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    tests = [case(alert, SCENARIOS[alert.name]) for alert in ALERTS]
    document = {
        "rule_files": [str(path) for path in sorted(FOLDER.glob("*.rules.yml"))],
        "evaluation_interval": "1m",
        "tests": tests,
    }
    path = tmp_path / "alerts.json"  # JSON is YAML too
    path.write_text(json.dumps(document))
    promtool("test", "rules", str(path))


def case(alert: Alert, scenario: Scenario) -> dict[str, Any]:
    """Return a test for promtool: which of this name fire at a minute."""
    # `ALERTS` has no value or annotation: the fact that it fires is what is asked for.
    labels = {"alertname": alert.name, "alertstate": "firing", "severity": alert.severity}
    series = ", ".join(f'{key}="{value}"' for key, value in (labels | scenario.labels).items())
    queries = [
        {"expr": f'ALERTS{{alertname="{alert.name}", alertstate="firing"}}',
         "eval_time": f"{scenario.minute}m",
         "exp_samples": [{"labels": f"ALERTS{{{series}}}", "value": 1}]}
    ]  # fmt: skip
    if scenario.quiet_at is not None:
        queries.append(
            {"expr": f'ALERTS{{alertname="{alert.name}", alertstate="firing"}}',
             "eval_time": f"{scenario.quiet_at}m", "exp_samples": []}
        )  # fmt: skip
    return {
        "name": alert.name,
        "interval": "1m",
        "input_series": [
            {"series": name, "values": values} for name, values in scenario.series.items()
        ],
        "promql_expr_test": queries,
    }
