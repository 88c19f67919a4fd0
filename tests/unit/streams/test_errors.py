"""What the client reports, as what a caller can do about it."""

import pytest
import redis

from rsky_pipeline.health import rules
from rsky_pipeline.health.rules import Rule
from rsky_pipeline.runtime.errors import StoreError
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
    ("error", "kind", "text"),
    [
        (redis.exceptions.MovedError("3999 127.0.0.1:6381"), StoreUnavailableError, "moves the"),
        (redis.exceptions.AskError("3999 127.0.0.1:6381"), StoreUnavailableError, "moves the"),
        (redis.exceptions.ClusterDownError("The cluster is down"), StoreUnavailableError, "nobody"),
        (
            redis.ResponseError("Script attempted to access a non local key in a cluster node"),
            StoreUnavailableError, "moves the",
        ),
        (
            redis.exceptions.ClusterCrossSlotError("Keys in request don't hash to the same slot"),
            StoreUnavailableError, "name its nodes",
        ),
        (
            redis.ResponseError("Script accesses keys that do not hash to the same slot"),
            StoreUnavailableError, "name its nodes",
        ),
        (
            redis.ResponseError("SELECT is not allowed in cluster mode"),
            StoreRejectedError, "database 0 alone",
        ),
    ],
)  # fmt: skip
def test_what_only_a_cluster_says(error: Exception, kind: type[StoreError], text: str) -> None:
    with pytest.raises(kind, match=text), translated_errors():
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


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        (redis.ConnectionError("refused"), rules.REDIS),
        (redis.TimeoutError("no answer"), rules.REDIS),
        (ConnectionResetError("reset"), rules.REDIS),
        (redis.exceptions.BusyLoadingError("Redis is loading"), rules.REDIS_LOADING),
        (redis.exceptions.ReadOnlyError("You can't write"), rules.REDIS_READ_ONLY),
        (redis.ResponseError("Error: @user_script: 4: -READONLY no"), rules.REDIS_READ_ONLY),
        (redis.exceptions.MasterDownError("Link with MASTER is down"), rules.REDIS_READ_ONLY),
        (redis.ResponseError("UNBLOCKED force, instance state changed"), rules.REDIS_READ_ONLY),
        (redis.ResponseError("MISCONF Redis is configured to save"), rules.REDIS_CANNOT_SAVE),
        (redis.ResponseError("Error: @user_script: 4: -MISCONF x"), rules.REDIS_CANNOT_SAVE),
        (redis.ResponseError("NOREPLICAS Not enough"), rules.REDIS_NO_REPLICAS),
        (redis.exceptions.OutOfMemoryError("command not allowed"), rules.REDIS_FULL),
        (redis.ResponseError("BUSY Redis is busy running a script."), rules.REDIS_BUSY),
        (redis.exceptions.NoPermissionError("no permissions to run"), rules.REDIS_DENIED),
        (redis.ResponseError("Error: @user_script: 4: -NOPERM x"), rules.REDIS_DENIED),
        (redis.AuthenticationError("invalid password"), rules.REDIS_DENIED),
        (redis.ResponseError("WRONGTYPE Operation against a key"), rules.REDIS_REFUSES),
    ],
)
def test_each_kind_of_trouble_has_a_rule_of_health(error: Exception, rule: Rule) -> None:
    with pytest.raises(StoreError) as raised, translated_errors():
        raise error
    assert rules.OF_STORES[raised.value.finding] is rule
    assert raised.value.retryable


def test_a_server_that_loads_can_be_reached() -> None:
    with pytest.raises(StoreUnavailableError, match="cannot serve now"), translated_errors():
        raise redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory")


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
