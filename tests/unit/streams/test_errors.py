"""What the client reports, as what a caller can do about it."""

import pytest
import redis

from rsky_pipeline.streams.connection import translated_errors
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("refused"),
        redis.TimeoutError("no answer"),
        redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
        redis.exceptions.ReadOnlyError("You can't write against a read only replica."),
        redis.ResponseError("BUSY Redis is busy running a script."),
        redis.ResponseError("NOREPLICAS Not enough good replicas to write."),
        redis.ResponseError("Error running script: @user_script: 40: -READONLY You can't write"),
        ConnectionResetError("reset"),
    ],
)
def test_what_passes_is_unavailable(error: Exception) -> None:
    with pytest.raises(StoreUnavailable), translated_errors():
        raise error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (redis.exceptions.OutOfMemoryError("command not allowed"), "raise maxmemory"),
        (redis.ResponseError("Error running script: 40: -OOM command not"), "raise maxmemory"),
        (redis.ResponseError("WRONGTYPE Operation against a key"), "WRONGTYPE"),
        (redis.ResponseError("BUSYGROUP Consumer Group name already exists"), "BUSYGROUP"),
        (redis.AuthenticationError("invalid password"), "password of redis_url"),
        (redis.exceptions.NoPermissionError("no permissions"), "no permissions"),
    ],
)
def test_a_refusal_says_why(error: Exception, text: str) -> None:
    with pytest.raises(StoreRejected, match=text), translated_errors():
        raise error


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(KeyError), translated_errors():
        raise KeyError("ours")
