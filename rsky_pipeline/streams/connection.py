"""Connections to Redis or Valkey, without the retries that would append twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable

_UNAVAILABLE = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
)


class Store:
    """One connection, for one thread at a time. Every call raises only this package's errors."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._scripts: dict[str, Any] = {}

    def call(self, *command: Any) -> Any:
        """Send one command and return its reply, in bytes. Raises the errors of this package."""
        with translated_errors():
            return self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    def script(self, name: str, keys: list[str], arguments: list[Any]) -> Any:
        """Run `NAME.lua` of this package on the server, loading it where it is not known."""
        script = self._scripts.get(name)
        if script is None:
            text = (files(__package__) / f"{name}.lua").read_text()
            script = self._scripts[name] = self._client.register_script(text)
        with translated_errors():
            return script(keys=keys, args=arguments)

    def ping(self) -> None:
        """Make sure that the server answers."""
        self.call("PING")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the client's errors into this package's."""
    try:
        yield
    except _UNAVAILABLE as error:
        raise StoreUnavailable(f"Redis cannot be reached: {error}") from error
    except redis.RedisError as error:
        raise StoreRejected(f"Redis refused: {error}") from error


def connect(url: str, *, name: str, timeout_seconds: float = 10.0) -> Store:
    """Return a store that connects when it is first used.

    `timeout_seconds` bounds every reply; a blocking read must block for less. Raises ValueError
    for a malformed URL.
    """
    # The library repeats a command whose reply was lost, which would append its entries twice.
    client = redis.Redis.from_url(
        url,
        client_name=name,
        protocol=2,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=5.0,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        decode_responses=False,
        max_connections=2,
    )
    # Replies stay as the server sends them: the library's own shapes differ between its versions.
    client.response_callbacks.clear()
    return Store(client)
