"""The alert file: the alerts of the health rules, as Prometheus reads them."""

from collections.abc import Iterator, Mapping

from rsky_pipeline.development.monitoring.expressions import checked
from rsky_pipeline.development.monitoring.recording import RECORDED
from rsky_pipeline.health.rules import FINDING_ALERTS, RULES, Alert


def alerts() -> Iterator[tuple[Alert, str]]:
    """Yield every alert with its expression, thresholds filled in."""
    for rule in RULES:
        yield from ((alert, rule.expression(alert)) for alert in rule.alerts)
    yield from ((alert, alert.expr) for alert in FINDING_ALERTS)


def groups() -> list[dict[str, object]]:
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
