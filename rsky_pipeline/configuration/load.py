"""The effective configuration: defaults, then the TOML file, then the environment, then flags."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rsky_pipeline.configuration.redaction import redacted
from rsky_pipeline.configuration.settings import SettingInfo, Settings, declarations
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.configuration.values import parse

PREFIX = "RSKY_PIPELINE_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
DEFAULT_FILES = (Path("rsky-pipeline.toml"), Path("/etc/rsky-pipeline/rsky-pipeline.toml"))

# Names of the original services that have no counterpart; worth a remark, not an error.
UNUSED_LEGACY = {
    "INGESTER_MODE": "choose with run --role",
    "INDEXER_MODE": "choose with run --role",
    "INDEXER_CONSUMER": "consumers name themselves",
    "BACKFILLER_CONSUMER": "consumers name themselves",
    "INDEXER_CONCURRENCY": "batches replace tasks; see indexer_batch_size and indexer_workers",
    "DB_POOL_MAX_SIZE": "each worker has one writing connection",
    "DB_POOL_MIN_IDLE": "each worker has one writing connection",
    "METRICS_PORT": "each role has a port: ingester_metrics_port and so on",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, where each value came from, and remarks that are no errors."""

    settings: Settings
    origins: Mapping[str, str]
    remarks: tuple[str, ...]


class ConfigurationError(ValueError):
    """The configuration cannot be used; `problems` has a line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(config_file: Path | None, environ: Mapping[str, str], flags: Mapping[str, str]) -> Loaded:
    """Read and check everything. Raises ConfigurationError with all problems at once.

    `flags` maps setting names to the texts given on the command line.
    """
    known = declarations()
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, "default")
    problems: list[str] = []

    def take(name: str, raw: object, origin: str) -> None:
        info = known.get(name)
        if info is None:
            problems.append(f"{origin}: there is no setting {name}{_nearest(name, known)}")
            return
        try:
            values[name] = parse(name, info, raw)
            origins[name] = origin
        except ValueError as error:
            shown = redacted(str(raw)) if info.secret else str(raw)
            problems.append(f"{name} = {shown[:200]!r} (from {origin}): {error}")

    path = _file(config_file, environ)
    if path is not None:
        for name, raw in _read_file(path, problems):
            take(name, raw, f"{path}")
    for name, raw, origin in _environment(environ, known, problems):
        take(name, raw, origin)
    for name, text in flags.items():
        take(name, text, f"flag --{name.replace('_', '-')}")
    if not problems:
        problems += _contradictions(Settings(**values), origins)
    if problems:
        raise ConfigurationError(problems)
    remarks = tuple(
        f"{name} has no meaning here: {why}"
        for name, why in UNUSED_LEGACY.items()
        if name in environ
    )
    return Loaded(Settings(**values), origins, remarks)


def _file(given: Path | None, environ: Mapping[str, str]) -> Path | None:
    if given is not None:
        return given
    if environ.get(CONFIG_VARIABLE):
        return Path(environ[CONFIG_VARIABLE])
    return next((path for path in DEFAULT_FILES if path.is_file()), None)


def _read_file(path: Path, problems: list[str]) -> list[tuple[str, object]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
        return []
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path}: is not TOML: {error}")
        return []
    return list(content.items())


def _environment(
    environ: Mapping[str, str], known: Mapping[str, SettingInfo], problems: list[str]
) -> Iterator[tuple[str, str, str]]:
    own = {f"{PREFIX}{name.upper()}": name for name in known}
    problems += [
        f"{variable}: there is no such variable{_nearest(variable, own)}"
        for variable in sorted(environ)
        if variable.startswith(PREFIX) and variable not in own and variable != CONFIG_VARIABLE
    ]
    for name, info in known.items():
        candidates = (f"{PREFIX}{name.upper()}", *info.legacy_environment)
        given = next((item for item in candidates if environ.get(item, "").strip()), None)
        if given is not None:
            yield name, environ[given], f"environment variable {given}"


def _contradictions(settings: Settings, origins: Mapping[str, str]) -> Iterator[str]:
    """Yield problems that no single setting shows."""
    taken: dict[int, str] = {}
    names = [f"{process}_metrics_port" for process in (*ROLE_NAMES, "supervisor")]
    # Defaults first, so that the blame is on what somebody set.
    for name in sorted(names, key=lambda item: origins[item] != "default"):
        port = getattr(settings, name)
        if port and port in taken:
            yield f"{name} = {port} (from {origins[name]}): {taken[port]} has the same port"
        taken[port] = name
    if settings.backfiller_retry_max_ms < settings.backfiller_retry_initial_ms:
        yield (
            f"backfiller_retry_max_ms = {settings.backfiller_retry_max_ms} "
            f"(from {origins['backfiller_retry_max_ms']}): allowed is "
            f"backfiller_retry_initial_ms ({settings.backfiller_retry_initial_ms}) or more"
        )


def _nearest(name: str, known: Mapping[str, object]) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
