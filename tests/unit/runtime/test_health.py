"""Health is bad while starting, when the loop hangs, and when work stands still."""

import json
from contextlib import suppress

import pytest

from rsky_pipeline.configuration.endpoints import HostKey
from rsky_pipeline.runtime.health import Health
from rsky_pipeline.runtime.health_document import (
    CursorHealth,
    ListingHealth,
    RoleHealth,
    read_health,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ready_health() -> tuple[Health, Clock]:
    clock = Clock()
    health = Health("indexer", 2, clock)
    health.state = "ready"
    return health, clock


def test_starting_is_not_healthy() -> None:
    status, document = Health("indexer", 1).answer()
    assert status == 503
    assert document["state"] == "starting"
    assert document["trouble"] == "starting"


def test_ready_is_healthy_and_shows_the_roles_details() -> None:
    health, _ = ready_health()
    health.report({"rate": 5})
    health.report({"lag": 7, "role": "impostor"})  # type: ignore[typeddict-unknown-key]
    status, document = health.answer()
    assert status == 200
    assert (document["rate"], document["lag"]) == (5, 7)
    assert (document["role"], document["instance"], document["trouble"]) == ("indexer", 2, None)


def test_a_loop_that_hangs_is_noticed() -> None:
    health, clock = ready_health()
    clock.now = 14
    assert health.answer()[0] == 200
    clock.now = 16
    assert health.answer()[0] == 503
    assert health.trouble() == "event loop stuck for 16 s"
    health.beat()
    assert health.answer()[0] == 200


def test_work_that_stands_still_is_noticed() -> None:
    health, clock = ready_health()
    with health.activity("reading") as reading:
        clock.now = 60
        with health.activity("writing"):
            clock.now = 121
            health.beat()
            assert health.answer()[0] == 503
            assert health.trouble() == "no progress of reading for 121 s"
            assert health.document()["progress_age_seconds"] == {"reading": 121, "writing": 61}
            reading.progress()
            assert health.trouble() is None


def test_work_that_stands_still_for_long_is_a_reason_to_start_again() -> None:
    health, clock = ready_health()
    with health.activity("applying") as applying:
        clock.now = 299
        assert health.document()["stalled"] is None
        clock.now = 301
        assert health.document()["stalled"] == "no progress of applying for 301 s"
        applying.progress()  # it waits for something that has a name
        assert health.stalled() is None


def test_nothing_is_expected_of_work_that_ended() -> None:
    health, clock = ready_health()
    with health.activity("reading"), suppress(OSError), health.activity("recovery"):
        raise OSError
    clock.now = 1_000
    health.beat()
    assert health.trouble() is None
    assert health.document()["progress_age_seconds"] == {}


def test_of_two_with_one_name_the_slower_counts() -> None:
    health, clock = ready_health()
    with health.activity("reading") as first:
        clock.now = 100
        with health.activity("reading"):
            clock.now = 130
            health.beat()
            assert health.trouble() == "no progress of reading for 130 s"
        first.progress()
        assert health.trouble() is None


def test_draining_is_healthy() -> None:
    health, _ = ready_health()
    health.state = "stopping"
    assert health.answer()[0] == 200


def test_a_document_is_read_as_it_was_written() -> None:
    health, _ = ready_health()
    host = HostKey("relay.test")
    health.observe({"streams": {"firehose_live": 3}, "findings": ["redis_memory"]})
    health.report(
        RoleHealth(
            rate=5, degraded=None, held_up=True,
            cursors=[CursorHealth(stream="firehose_live", host=host, seq=None)],
            listings=[ListingHealth(host=host, source="listRepos", summary="", problem=None)],
        )
    )  # fmt: skip
    document = health.document()
    assert read_health(json.loads(json.dumps(document))) == document


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", "5"), ("rate", True), ("held_up", 1), ("pending", 2.5), ("trouble", 7),
        ("streams", [1]), ("streams", {"firehose_live": "3"}), ("findings", "redis_memory"),
        ("failing", [None]), ("cursors", {}), ("listings", [{"host": "relay.test"}]),
    ],
)  # fmt: skip
def test_a_field_of_another_form_is_unknown(name: str, value: object) -> None:
    read = read_health({name: value, "state": "ready", "of_a_later_version": [1]})
    assert read == {"state": "ready", "of_a_later_version": [1], "cursors": []}


@pytest.mark.parametrize("document", [None, [], "ready", 7])
def test_a_document_that_is_no_object_is_empty(document: object) -> None:
    assert read_health(document) == {}
