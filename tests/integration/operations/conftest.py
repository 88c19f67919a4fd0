"""A connection to an empty server."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from rsky_pipeline.streams.connection import Store, connect


@pytest.fixture
def store(clean_redis: str) -> Iterator[Store]:
    """A store that holds nothing."""
    with closing(connect(clean_redis, name="test")) as connection:
        yield connection
