"""A scratch pipeline for each test."""

from collections.abc import Iterator

import pytest

from tests.integration.supervisor.pipeline import Pipeline
from tests.stores import scratch_directory


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    with scratch_directory() as directory:
        scratch = Pipeline(directory)
        try:
            yield scratch
        finally:
            scratch.close()
