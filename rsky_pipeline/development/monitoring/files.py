"""The files of docs/monitoring as text: recording rules, alerts of the health rules, dashboards."""

import json
from collections.abc import Iterator, Mapping, Sequence

from rsky_pipeline.development.monitoring.dashboards import dashboards
from rsky_pipeline.development.monitoring.expressions import RECORDED, RECORDING, checked
from rsky_pipeline.health.rules import FINDING_ALERTS, RULES, Alert

_NOTE = (
    "# Generated from the declarations by `make docs`; "
    "change rsky_pipeline/development/monitoring instead.\n"
)


def files() -> Mapping[str, str]:
    """Return every generated file by its path below docs/monitoring."""
    found = {
        "recording.rules.yml": _NOTE + rule_file(recording_groups()),
        "alerts.rules.yml": _NOTE + rule_file(alert_groups()),
    }
    for name, document in dashboards().items():
        found[f"grafana/{name}.json"] = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    return found


def rule_file(groups: Sequence[Mapping[str, object]]) -> str:
    """Return a rule file; texts are quoted as JSON does it, which YAML reads alike."""
    lines = ["groups:"]
    for group in groups:
        lines += [f"  - name: {group['name']}", "    rules:"]
        rules = group["rules"]
        assert isinstance(rules, list)
        for rule in rules:
            first, *rest = rule.items()
            lines.append(f"      - {first[0]}: {first[1]}")
            for key, value in rest:
                lines += _entry(key, value, "        ")
    return "\n".join(lines) + "\n"


def _entry(key: str, value: object, indent: str) -> list[str]:
    if isinstance(value, dict):
        inner = [line for name, text in value.items() for line in _entry(name, text, indent + "  ")]
        return [f"{indent}{key}:", *inner]
    return [f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}"]


def recording_groups() -> list[dict[str, object]]:
    """Return the rule groups as Prometheus reads them."""
    rules = [{"record": name, "expr": checked(expr)} for name, expr in RECORDING.items()]
    return [{"name": "rsky-pipeline", "rules": rules}]


def alerts() -> Iterator[tuple[Alert, str]]:
    """Yield every alert with its expression, thresholds filled in."""
    for rule in RULES:
        yield from ((alert, rule.expression(alert)) for alert in rule.alerts)
    yield from ((alert, alert.expr) for alert in FINDING_ALERTS)


def alert_groups() -> list[dict[str, object]]:
    """Return the rule groups as Prometheus reads them."""
    return [{"name": "rsky-health", "rules": [_rule(*each) for each in alerts()]}]


def _rule(alert: Alert, expression: str) -> Mapping[str, object]:
    return {
        "alert": alert.name,
        "expr": checked(expression, RECORDED),
        "for": alert.holds,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook": f"docs/{alert.page}"},
    }
