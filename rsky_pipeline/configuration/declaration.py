"""How a setting is declared: its default, and what the loader and the reports must know of it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """What the loader and the reports need to know of a setting beyond its default."""

    help: str
    unit: str = ""
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()
    legacy_environment: tuple[str, ...] = ()  # names of the original services, first one wins
    secret: bool = False  # a URL whose password must never be printed


def setting(default: Any, help: str, **info: Any) -> Any:
    """Declare a setting with its default; see `SettingInfo` for the keywords."""
    declared = SettingInfo(help, **info)
    # A secret stays out of repr(), and so out of tracebacks and logs.
    return field(default=default, repr=not declared.secret, metadata={"setting": declared})
