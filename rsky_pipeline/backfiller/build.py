"""A fetcher with all its parts, for the worker and for commands that fetch repos themselves."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from rsky_pipeline.backfiller.addresses import Addresses
from rsky_pipeline.backfiller.budget import Budget, Slots
from rsky_pipeline.backfiller.fetch import Fetcher
from rsky_pipeline.backfiller.host import LONGEST_PARKING_SECONDS, HostRules
from rsky_pipeline.backfiller.hosts import Hosts
from rsky_pipeline.backfiller.identities import Identities
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.directory import Directory
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.observability.backfiller import BackfillerMetrics

MAX_CACHED_ACCOUNTS = 20_000  # documents; one is needed once or twice, soon after it is fetched
# Shorter than a firehose needs it: of one account few repos are fetched, and turns are limited.
FORCED_PAUSE_SECONDS = 5.0
DIRECTORY_CONCURRENCY = 16
DIRECTORY_PATIENCE_SECONDS = 60.0
_MB = 1024 * 1024


@asynccontextmanager
async def build_fetcher(settings: Settings, metrics: BackfillerMetrics) -> AsyncIterator[Fetcher]:
    """Open a fetcher for the length of the block."""
    async with HttpClient(
        allow_private=settings.allow_private_hosts,
        silence_seconds=settings.backfiller_http_timeout_seconds,
        max_connections=5 * settings.backfiller_concurrency + 2 * DIRECTORY_CONCURRENCY,
    ) as http:
        directory = Directory(
            http,
            settings.plc_url,
            allow_private=settings.allow_private_hosts,
            max_cached=MAX_CACHED_ACCOUNTS,
            forced_pause=FORCED_PAUSE_SECONDS,
        )
        rules = host_rules(settings)
        hosts = Hosts(rules)
        plc = replace(
            rules,
            concurrency=DIRECTORY_CONCURRENCY,
            rate=settings.backfiller_directory_rate,
            waiting=1_000_000,
            patience=DIRECTORY_PATIENCE_SECONDS,
        )
        fetcher = Fetcher(
            http,
            Identities(directory, settings.plc_url, Hosts(plc), hosts),
            hosts,
            Addresses(),
            settings,
            Budget(settings.backfiller_memory_mb * _MB),
            Budget(settings.backfiller_disk_mb * _MB),
            Slots(settings.backfiller_concurrency, 3 * settings.backfiller_concurrency),
            (settings.data_dir or Path.cwd()) / "backfill",
            metrics,
            trio.CapacityLimiter(2),
        )
        # Read from other threads: nothing but numbers.
        metrics.memory.set_function(lambda: fetcher.memory.used)
        metrics.disk.set_function(lambda: fetcher.disk.used)
        metrics.downloads.set_function(lambda: fetcher.slots.busy)
        yield fetcher


def host_rules(settings: Settings) -> HostRules:
    """Return what every PDS is asked for at most."""
    return HostRules(
        settings.backfiller_host_concurrency,
        settings.backfiller_host_rate,
        pause_base=settings.backfiller_retry_initial_ms / 1000,
        pause_cap=min(LONGEST_PARKING_SECONDS, settings.backfiller_retry_max_ms / 1000),
    )
