"""The configuration as operators read it."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from rsky_pipeline.configuration.load import PREFIX, Loaded
from rsky_pipeline.configuration.redaction import redacted
from rsky_pipeline.configuration.settings import Settings, declarations


def effective(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """Return every setting with its value, secrets redacted, and where it came from."""
    return {
        name: {
            "value": plain(getattr(loaded.settings, name), secret=info.secret),
            "origin": loaded.origins[name],
        }
        for name, info in declarations().items()
    }


def plain(value: object, *, secret: bool = False) -> Any:
    """Return a value as JSON has it, a secret redacted."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Path):
        return str(value)
    return redacted(value) if secret and isinstance(value, str) else value


def reference_markdown() -> str:
    """Return the table of all settings for docs/configuration.md."""
    defaults = {item.name: item.default for item in fields(Settings)}
    lines = ["| setting | default | meaning | environment |", "|---|---|---|---|"]
    for name, info in declarations().items():
        default = defaults[name]
        if isinstance(default, tuple):
            shown = ", ".join(default) or "none"
        else:
            shown = "unset" if default is None else str(default).lower()
        unit = f" {info.unit}" if info.unit else ""
        variables = ", ".join(
            f"`{item}`" for item in (f"{PREFIX}{name.upper()}", *info.legacy_environment)
        )
        lines.append(f"| `{name}` | {shown}{unit} | {info.help} | {variables} |")
    return "\n".join(lines) + "\n"
