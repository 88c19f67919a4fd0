"""What the client reports, as what a caller can do about it."""

import pytest
import redis

from rsky_pipeline.streams.connection import connect, translated_errors
from rsky_pipeline.streams.errors import (
    StoreRejectedError,
    StoreUnavailableError,
    WritesRefusedError,
)


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
        redis.ResponseError("MISCONF Redis is configured to save RDB snapshots, but it cannot"),
        redis.exceptions.MasterDownError("Link with MASTER is down"),
        redis.exceptions.ClusterDownError("The cluster is down"),
        redis.exceptions.TryAgainError("Multiple keys request during rehashing of slot"),
        redis.exceptions.MovedError("3999 127.0.0.1:6381"),
        redis.ResponseError(
            "UNBLOCKED force unblock from blocking operation, instance state changed "
            "(master -> replica?)"
        ),
        ConnectionResetError("reset"),
    ],
)
def test_what_passes_is_unavailable(error: Exception) -> None:
    with pytest.raises(StoreUnavailableError) as raised, translated_errors():
        raise error
    assert raised.value.reconnect
    assert raised.value.retryable


@pytest.mark.parametrize(
    "error",
    [
        redis.exceptions.MovedError("3999 127.0.0.1:6381"),
        redis.exceptions.ClusterDownError("The cluster is down"),
        redis.exceptions.ClusterCrossSlotError("Keys in request don't hash to the same slot"),
        redis.ResponseError("SELECT is not allowed in cluster mode"),
        redis.ResponseError("Script attempted to access keys that do not hash to the same slot"),
        redis.ResponseError("Script attempted to access a non local key in a cluster node"),
    ],
)
def test_a_cluster_is_named(error: Exception) -> None:
    with pytest.raises(StoreUnavailableError, match="cluster mode"), translated_errors():
        raise error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (redis.ResponseError("WRONGTYPE Operation against a key"), "WRONGTYPE"),
        (redis.ResponseError("UNBLOCKED the stream key no longer exists"), "UNBLOCKED"),
        (redis.ResponseError("BUSYGROUP Consumer Group name already exists"), "BUSYGROUP"),
        (redis.AuthenticationError("invalid password"), "password of redis_url"),
        (redis.exceptions.NoPermissionError("no permissions"), "no permissions"),
    ],
)
def test_a_refusal_says_why(error: Exception, text: str) -> None:
    with pytest.raises(StoreRejectedError, match=text), translated_errors():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        redis.exceptions.OutOfMemoryError("command not allowed"),
        redis.ResponseError("Error running script: 40: -OOM command not"),
    ],
)
def test_a_full_server_is_unavailable_and_the_remedy_named(error: Exception) -> None:
    with pytest.raises(WritesRefusedError, match="raise maxmemory"), translated_errors():
        raise error


def test_a_defect_of_the_client_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("proto")

    store = connect("redis://127.0.0.1:1", name="test")
    monkeypatch.setattr(redis.Redis, "execute_command", fail)
    with pytest.raises(StoreUnavailableError, match="KeyError: 'proto'"):
        store.ping()


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(KeyError), translated_errors():
        raise KeyError("ours")
