"""The files of docs/monitoring as text: what Prometheus scrapes, rules, alerts, dashboards."""

import json
from collections.abc import Iterator, Mapping, Sequence

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.development.monitoring.dashboards import dashboards
from rsky_pipeline.development.monitoring.expressions import RECORDED, RECORDING, checked
from rsky_pipeline.health.rules import FINDING_ALERTS, INHIBITED, RULES, Alert
from rsky_pipeline.runtime.metrics_port import planned

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
    for name, each_role in (("prometheus.yml", False), ("prometheus-units.yml", True)):
        found[name] = _NOTE + scrape_file(planned(Settings(), each_role=each_role))
    found["alertmanager.yml"] = _NOTE + inhibit_file()
    for name, document in dashboards().items():
        found[f"grafana/{name}.json"] = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    return found


def scrape_file(ports: Mapping[str, Sequence[int]]) -> str:
    """Return the configuration of a Prometheus for one host, with these ports by job."""
    lines = [
        "# Prometheus itself listens on 9090 by default, the port of the ingester: start it with",
        "# --web.listen-address=127.0.0.1:9099. Further workers and other ports: have",
        "# `rsky-pipeline targets --output FILE` write FILE, and use it in place of the jobs:",
        "#     - job_name: rsky",
        "#       file_sd_configs: [{files: [FILE]}]",
        "global:",
        "  scrape_interval: 15s",
        "  evaluation_interval: 15s",
        "",
        "rule_files:",
        "  - recording.rules.yml",
        "  - alerts.rules.yml",
        "",
        "scrape_configs:",
    ]
    for job, found in ports.items():
        targets = ", ".join(f'"127.0.0.1:{port}"' for port in found)
        lines += [f"  - job_name: rsky-{job}", "    static_configs:",
                  f"      - targets: [{targets}]"]  # fmt: skip
    return "\n".join(lines) + "\n"


def inhibit_file() -> str:
    """Return the rules by which Alertmanager keeps silent about consequences of another alert."""
    lines = [
        "# Put these rules into your Alertmanager's configuration: a store that is away makes one",
        "# alert, not one for each of its consequences. The route is an example.",
        "route:",
        "  receiver: operators",
        "  group_by: [alertname]",
        "receivers:",
        "  - name: operators",
        "inhibit_rules:",
    ]
    generic = "|".join(alert.name for alert in FINDING_ALERTS)
    for cause, (alerts, findings) in INHIBITED.items():
        follow = [[("alertname", "|".join(alerts))],
                  [("alertname", generic), ("finding", "|".join(findings))]]  # fmt: skip
        for matchers in follow:
            lines += [
                f"  - source_matchers: ['alertname=\"{cause}\"']",
                "    target_matchers:",
                *(f"      - '{name}=~\"{names}\"'" for name, names in matchers),
            ]
    return "\n".join(lines) + "\n"


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
