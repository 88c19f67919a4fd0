"""Fixtures of the indexer's tests."""

from collections.abc import Iterator

import pytest

from tests.integration.indexer.kit import Network, Tables


@pytest.fixture
def tables(schema_database: str) -> Iterator[Tables]:
    """A database with the schema, to apply events to."""
    made = Tables(schema_database)
    yield made
    made.database.close()


@pytest.fixture
def net() -> Network:
    """A maker of live events."""
    return Network()
