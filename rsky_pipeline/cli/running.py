"""What `status`, `stop` and `restart` share: where to look, and how failures are told."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rsky_pipeline.cli.options import loaded
from rsky_pipeline.cli.output import fail


def run_directory(parameters: dict[str, Any]) -> Path:
    """Return the run directory of the configuration."""
    from rsky_pipeline.embedded import locations

    return locations.run_directory(locations.resolve_directories(loaded(parameters).settings))


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors of asking a supervisor into one line and their exit code."""
    from rsky_pipeline.runtime.errors import WorkerError

    try:
        yield
    except WorkerError as error:
        raise fail(str(error), error.exit_code) from error
