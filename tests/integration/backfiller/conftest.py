"""Stores, hosts and settings of a backfiller."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.streams.connection import Store, connect
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.backfiller.kit import Configure, quick_settings


@pytest.fixture
def store(clean_redis: str) -> Iterator[Store]:
    """A connection of the test's own."""
    with closing(connect(clean_redis, name="test")) as connection:
        yield connection


@pytest.fixture
def hosts() -> Iterator[FakeHosts]:
    """A PDS and a PLC directory."""
    with FakeHosts() as running:
        yield running


@pytest.fixture
def configure(
    clean_redis: str, schema_database: str, hosts: FakeHosts, tmp_path: Path
) -> Configure:
    """Return what makes settings, quick to try again."""

    def make(**changes: Any) -> Settings:
        base = quick_settings(clean_redis, schema_database, hosts, tmp_path)
        return replace(base, **changes)

    return make
