"""The effective configuration: defaults, the TOML file, credentials, the environment, flags.

All problems are found at once: of single settings (`values`), and of settings that contradict each
other (`contradictions`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsky_pipeline.configuration.endpoints import parse_endpoint, shortened
from rsky_pipeline.configuration.redaction import HIDDEN, redacted_invalid
from rsky_pipeline.configuration.settings import Settings, declarations
from rsky_pipeline.configuration.sources import (
    PREFIX,
    ConfigFile,
    Given,
    find_file,
    from_file,
    nearest,
    read_credentials,
    read_environment,
    read_file,
    remarks,
    together,
    units_environment,
)
from rsky_pipeline.configuration.store_urls import search_path_of
from rsky_pipeline.configuration.topology import ROLE_NAMES
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
    units_environment: Mapping[str, str] = field(default_factory=dict)  # read from their file


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
    file = find_file(config_file, environ, problems)
    given = read_file(file, problems) if file is not None else []
    given += read_credentials(environ, declarations(), problems)
    handed = units_environment(file, environ, problems)
    given += read_environment(environ, declarations(), problems, handed)
    given += [
        Given(name, text, f"flag {spelled.get(name, '--' + name.replace('_', '-'))}")
        for name, text in flags.items()
    ]
    values, origins = _checked(given, problems)
    settings = Settings(**values)
    # A setting that is wrong stands at its default here; a contradiction to that is no news.
    if not problems:
        problems += contradictions(settings, origins)
    if problems:
        raise ConfigurationError(problems)
    return Loaded(settings, origins, remarks(together(handed, environ)), file, handed)


def _checked(given: Sequence[Given], problems: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return values and origins; later values win.

    Invalid ones are reported even when they lose.
    """
    known = declarations()
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, DEFAULT)
    for one in given:
        item = from_file(one, known, problems)
        if item is None:
            continue
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
            shown = str(item.raw)
            if info.secret:
                shown = HIDDEN if info.hidden else redacted_invalid(shown)
            problems.append(f"{item.name} = {shortened(shown)!r} (from {item.origin}): {error}")
    return values, origins


def contradictions(settings: Settings, origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each problem: the key, its value and origin, and the allowed values."""

    def problem(name: str, value: Any, allowed: str) -> str:
        return f"{name} = {value!r} (from {origins[name]}): {allowed}"

    yield from _ports(settings, origins)
    for name in ("relay_hosts", "labeler_hosts"):
        hosts: tuple[str, ...] = getattr(settings, name)
        for first, second in _same_host(hosts):
            allowed = f"{first} and {second} are the same host: leave one out"
            yield problem(name, ",".join(hosts), allowed)
    for name, batch in (
        ("live_high_water_mark", "ingester_batch_size"),
        ("repo_high_water_mark", "ingester_batch_size"),
        ("backfill_high_water_mark", "ingester_batch_size"),
    ):
        value, least = getattr(settings, name), getattr(settings, batch)
        if value < least:
            yield problem(name, value, f"allowed is {batch} ({least}, {origins[batch]}) or more")
    longest, first_wait = settings.backfiller_retry_max_ms, settings.backfiller_retry_initial_ms
    if longest < first_wait:
        allowed = f"allowed is backfiller_retry_initial_ms ({first_wait}) or more"
        yield problem("backfiller_retry_max_ms", longest, allowed)
    if settings.seen_port and settings.seen_token is None:
        yield problem("seen_port", settings.seen_port, "seen_token has to be set as well")
    if settings.bsync_url and settings.bsync_key is None:  # it serves nobody without a key
        yield problem("bsync_url", settings.bsync_url, "bsync_key has to be set as well")
    path = search_path_of(settings.database_url) if settings.database_url else None
    if path is not None and path != settings.database_schema:
        allowed = (
            f"database_url has search_path {path}: set database_schema to {path}, or remove it"
        )
        yield problem("database_schema", settings.database_schema, allowed)


def _ports(settings: Settings, origins: Mapping[str, str]) -> Iterator[str]:
    """Further workers of a role look for free ports; the first ones must differ."""
    taken: dict[int, str] = {}
    names = [f"{process}_metrics_port" for process in (*ROLE_NAMES, "supervisor")]
    names += ["embedded_database_port", "seen_port"]
    # Defaults first, so that the blame is on what somebody set.
    for name in sorted(names, key=lambda item: origins[item] != "default"):
        port: int = getattr(settings, name)
        if port and port in taken:
            hint = "; 0 picks a free one" if name.endswith("metrics_port") else ""
            yield f"{name} = {port} (from {origins[name]}): {taken[port]} has the same port{hint}"
        taken[port] = name


def _same_host(hosts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Cursors are kept by host: two subscriptions to one would move the same cursor."""
    seen: dict[tuple[str, int], str] = {}
    for host in hosts:
        server = parse_endpoint(host)
        key = (server.host, server.port)
        if key in seen:
            yield seen[key], host
        seen.setdefault(key, host)
