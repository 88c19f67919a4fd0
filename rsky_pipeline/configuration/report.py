"""The configuration as operators read it."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from rsky_pipeline.configuration.load import PREFIX, Loaded
from rsky_pipeline.configuration.redaction import HIDDEN, redacted
from rsky_pipeline.configuration.settings import SettingInfo, Settings, declarations


def effective(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """Return every setting with its value, secrets redacted, and where it came from."""
    return {
        name: {
            "value": shown(getattr(loaded.settings, name), info),
            "origin": loaded.origins[name],
        }
        for name, info in declarations().items()
    }


def shown(value: object, info: SettingInfo) -> Any:
    """Return the value of a setting as JSON has it, a secret redacted."""
    if info.secret and isinstance(value, str):
        return HIDDEN if info.hidden else redacted(value)
    return plain(value)


def plain(value: object) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Path):
        return str(value)
    return value


def reference_markdown() -> str:
    """Return the table of all settings for docs/configuration.md."""
    defaults = {item.name: item.default for item in fields(Settings)}
    lines = [
        "| setting | default | allowed | meaning | applied by | environment |",
        "|---|---|---|---|---|---|",
    ]
    for name, info in declarations().items():
        variables = ", ".join(
            f"`{item}`" for item in (f"{PREFIX}{name.upper()}", *info.legacy_environment)
        )
        default = _default(defaults[name])
        allowed = _allowed(defaults[name], info)
        applied = _applied(info)
        lines.append(
            f"| `{name}` | {default} | {allowed} | {info.help} | {applied} | {variables} |"
        )
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _allowed(default: object, info: SettingInfo) -> str:
    if info.choices:
        return ", ".join(f"`{choice}`" for choice in info.choices)
    if isinstance(default, bool):
        return "`true`, `false`"
    if not isinstance(default, int):
        return ""
    low = 0 if info.minimum is None else info.minimum
    bounds = f"{low} or more" if info.maximum is None else f"{low} to {info.maximum}"
    return f"{bounds} {info.unit}".rstrip()


def _applied(info: SettingInfo) -> str:
    if info.applies == "start":
        return "start"
    if info.applies == "command":
        return "next command"
    return f"restart of {', '.join(info.roles)}" if info.roles else "restart"
