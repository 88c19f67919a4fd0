"""The effective configuration: defaults, then the TOML file, then the environment, then flags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsky_pipeline.configuration import legacy
from rsky_pipeline.configuration.consistency import contradictions
from rsky_pipeline.configuration.endpoints import shortened
from rsky_pipeline.configuration.redaction import redacted_invalid
from rsky_pipeline.configuration.settings import Settings, declarations
from rsky_pipeline.configuration.sources import (
    PREFIX,
    ConfigFile,
    Given,
    find_file,
    nearest,
    read_environment,
    read_file,
)
from rsky_pipeline.configuration.values import parse

__all__ = ["PREFIX", "ConfigurationError", "Loaded", "load"]

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, where each value came from, and remarks that are no errors."""

    settings: Settings
    origins: Mapping[str, str]
    remarks: Sequence[str] = ()
    file: ConfigFile | None = None


class ConfigurationError(ValueError):
    """The configuration cannot be used; `problems` has a line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def load(
    config_file: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, str],
    flag_origins: Mapping[str, str] | None = None,
) -> Loaded:
    """Read and check everything. Raises ConfigurationError with all problems at once.

    `flags` maps setting names to the texts given on the command line; `flag_origins` says how each
    was spelled there, where that is not `--name`.
    """
    problems: list[str] = []
    spelled = flag_origins or {}
    file = find_file(config_file, environ)
    given = read_file(file, problems) if file is not None else []
    given += read_environment(environ, declarations(), problems)
    given += [
        Given(name, text, f"flag {spelled.get(name, '--' + name.replace('_', '-'))}")
        for name, text in flags.items()
    ]
    values, origins = _checked(given, problems)
    settings = Settings(**values)
    # A setting that is wrong stands at its default here; what contradicts that is no news.
    if not problems:
        problems += contradictions(settings, origins)
    if problems:
        raise ConfigurationError(problems)
    return Loaded(settings, origins, legacy.remarks(environ), file)


def _checked(given: Sequence[Given], problems: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return values and origins; later values win, and wrong ones are told even when they lose."""
    known = declarations()
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, DEFAULT)
    for item in given:
        info = known.get(item.name)
        if info is None:
            name = shortened(item.name)
            hint = nearest(name, known)
            problems.append(f"{item.origin}: there is no setting {name}{hint}")
            continue
        try:
            values[item.name] = parse(item.name, info, item.raw)
            origins[item.name] = item.origin
        except ValueError as error:
            shown = redacted_invalid(str(item.raw)) if info.secret else str(item.raw)
            problems.append(f"{item.name} = {shortened(shown)!r} (from {item.origin}): {error}")
    return values, origins
