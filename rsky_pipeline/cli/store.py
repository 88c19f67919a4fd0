"""A connection to the configured Redis for commands, and how its failures are told."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import loaded
from rsky_pipeline.cli.output import fail

if TYPE_CHECKING:
    from rsky_pipeline.configuration.settings import Settings
    from rsky_pipeline.streams.connection import Store


def resolved(parameters: dict[str, Any]) -> "Settings":
    """Return the configured settings with directories and the URLs of embedded stores."""
    from rsky_pipeline.embedded.locations import resolve_directories, store_urls

    return store_urls(resolve_directories(loaded(parameters).settings))


@contextmanager
def opened_store(parameters: dict[str, Any], name: str) -> Iterator[tuple["Settings", "Store"]]:
    """Yield the settings and a connection; a failure is one line and an exit code."""
    from rsky_pipeline.streams.connection import connect

    settings = resolved(parameters)
    with told(settings), closing(connect(settings.redis_url or "", name=name)) as store:
        yield settings, store


@contextmanager
def told(settings: "Settings") -> Iterator[None]:
    """Turn the errors of Redis into one line and an exit code."""
    from rsky_pipeline.configuration.redaction import redacted
    from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable

    url = redacted(settings.redis_url or "")
    try:
        yield
    except StoreUnavailable as error:
        hint = "check redis_url; an embedded Valkey runs only while `rsky-pipeline run` does"
        raise fail(f"{url}: {error}; {hint}", ExitCode.UNAVAILABLE) from error
    except StoreRejected as error:
        raise fail(f"{url}: {error}", ExitCode.FAILED) from error
