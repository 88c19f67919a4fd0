"""Problems that no single setting shows: values that contradict each other."""

from collections.abc import Iterator, Mapping
from typing import Any

from rsky_pipeline.configuration.addresses import search_path_of
from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES


def contradictions(settings: Settings, origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each problem: the key, its value, where it came from, what is allowed."""

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
    # Defaults first, so that the blame is on what somebody set.
    for name in sorted(names, key=lambda item: origins[item] != "default"):
        port: int = getattr(settings, name)
        if port and port in taken:
            allowed = f"{taken[port]} has the same port; 0 picks a free one"
            yield f"{name} = {port} (from {origins[name]}): {allowed}"
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
