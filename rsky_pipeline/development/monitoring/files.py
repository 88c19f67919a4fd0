"""The files of docs/monitoring as text."""

import json
from collections.abc import Mapping, Sequence

from rsky_pipeline.development.monitoring import alerts, recording
from rsky_pipeline.development.monitoring.dashboards import dashboards

_NOTE = (
    "# Generated from the declarations by `make docs`; "
    "change rsky_pipeline/development/monitoring instead.\n"
)


def files() -> Mapping[str, str]:
    """Return every generated file by its path below docs/monitoring."""
    found = {
        "recording.rules.yml": _NOTE + rule_file(recording.groups()),
        "alerts.rules.yml": _NOTE + rule_file(alerts.groups()),
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
