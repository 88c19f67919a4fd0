"""Connections to Redis or Valkey, without the retries that would append twice."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rsky_pipeline.streams.errors import (
    StoreRejectedError,
    StoreUnavailableError,
    WritesRefusedError,
)

Argument = str | bytes | int | float

_UNAVAILABLE = (redis.ConnectionError, redis.TimeoutError, OSError)
_CREDENTIALS = (redis.AuthenticationError, redis.exceptions.AuthorizationError)
# Refusals that are about the server and not about the command: it is a replica now (fail-over
# behind one address), starts, has no replicas or disk or memory, or the key has moved to another.
# A pause helps, or a new connection, which may lead to another server; redis-py keeps the old one.
# The client cuts the code off in some of its own exceptions, and Redis 6.2 puts the code of a
# command within a script behind a text of its own.
_WRONG_SERVER = (
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
    redis.exceptions.MovedError,
    redis.exceptions.AskError,
)
_REFUSES_WRITES = re.compile(r"(?:^|-)(?:NOREPLICAS|MISCONF) ")
_WRONG_SERVER_CODES = re.compile(
    r"(?:^|-)(?:LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MOVED|ASK|BUSY)"
    r" |UNBLOCKED.* instance state changed"
)


class Store:
    """One connection, for one thread at a time. Every call raises only this package's errors.

    After StoreUnavailableError the next call connects anew: the library would keep the connection
    to a server that answers, even if all it answers is that it is a replica now.
    """

    def __init__(self, client: redis.Redis, timeout_seconds: float) -> None:
        self._client = client
        self._digests: dict[str, bytes] = {}
        self.timeout_seconds = timeout_seconds
        # Of `append`: when it asks for the server's memory again, or after how many bytes more.
        self.memory_check_at, self.memory_left = 0.0, 0.0

    def call(self, *command: Argument) -> Any:
        """Send one command and return its reply, in bytes. Raises the errors of this package."""
        with self._translated():
            return self._send(*command)

    def script(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run `NAME.lua` of this package on the server, loading it where it is not known."""
        with self._translated():
            digest = self._digests.get(name) or self._load(name)
            try:
                return self._send("EVALSHA", digest, len(keys), *keys, *arguments)
            except redis.exceptions.NoScriptError:  # the server was restarted; nothing has run
                return self._send("EVALSHA", self._load(name), len(keys), *keys, *arguments)

    def ping(self) -> None:
        """Make sure that the server answers."""
        self.call("PING")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with translated_errors():
                yield
        except StoreUnavailableError:
            self.close()
            raise

    def _load(self, name: str) -> bytes:
        text = (files(__package__) / f"{name}.lua").read_text(encoding="utf-8")
        try:
            digest: bytes = self._send("SCRIPT", "LOAD", text)
        except redis.ResponseError as error:
            if "near '#'" not in str(error):
                raise
            # Before Redis 7 there was no line with flags, and what they ask for was the rule.
            digest = self._send("SCRIPT", "LOAD", text.partition("\n")[2])
        self._digests[name] = digest
        return digest

    def _send(self, *command: Argument) -> Any:
        return self._client.execute_command(*command)  # type: ignore[no-untyped-call]


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the client's errors into this package's."""
    try:
        yield
    except _CREDENTIALS as error:
        raise StoreRejectedError(
            f"Redis refuses the user or password of redis_url: {error}"
        ) from error
    except _UNAVAILABLE as error:
        raise StoreUnavailableError(f"Redis cannot be reached: {error}") from error
    except redis.DataError as error:
        raise ValueError(f"this cannot be sent to Redis: {error}") from error
    except redis.RedisError as error:
        text = str(error)
        if isinstance(error, redis.exceptions.OutOfMemoryError) or "OOM command" in text:
            raise WritesRefusedError(
                "Redis refuses writes because its memory is full: raise maxmemory, or lower the "
                "high-water marks below what fits into it"
            ) from error
        if _REFUSES_WRITES.search(text):
            raise WritesRefusedError(f"Redis refuses writes: {text}") from error
        if isinstance(error, _WRONG_SERVER) or _WRONG_SERVER_CODES.search(text):
            raise StoreUnavailableError(f"Redis cannot serve now: {text}") from error
        raise StoreRejectedError(f"Redis refused: {text}") from error


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
    return Store(client, timeout_seconds)
