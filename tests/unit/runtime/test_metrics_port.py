"""Ports: the role's own for its first worker, free ones that belong to nobody else after it."""

import socket
from itertools import islice

import pytest
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import start_order
from rsky_pipeline.runtime.errors import SettingError
from rsky_pipeline.runtime.metrics_port import (
    candidates,
    open_metrics_server,
    planned,
    supervisor_instance,
)


def first(role: str, instance: int, count: int = 1) -> list[int]:
    return list(islice(candidates(Settings(), role, instance), count))


def test_first_workers_have_the_documented_ports() -> None:
    ports = [first(role, 1)[0] for role in ("ingester", "indexer", "backfiller", "supervisor")]
    assert ports == [9090, 9091, 9092, 9093]


def test_each_process_has_a_port_of_its_own_whatever_starts_first() -> None:
    supervisors = [first("supervisor", supervisor_instance([role]))[0] for role in start_order()]
    assert supervisors == [9093, 9094, 9095]
    assert supervisor_instance(start_order()) == 1
    further = [first(role, n)[0] for n in (2, 3) for role in ("indexer", "backfiller")]
    assert further == [9096, 9097, 9098, 9099]
    assert first("indexer", 2, 3) == [9096, 9097, 9098]  # where it is taken


def test_ports_are_planned_by_the_settings() -> None:
    settings = Settings(indexer_workers=3, expected_roles=("indexer", "ingester"))
    assert planned(settings, each_role=False) == {
        "ingester": [9090], "indexer": [9091, 9096, 9098], "supervisor": [9093],
    }  # fmt: skip
    assert planned(settings, each_role=True)["supervisor"] == [9093, 9095]


def test_zero_is_any_free_port() -> None:
    assert list(candidates(Settings(indexer_metrics_port=0), "indexer", 5)) == [0]


def test_a_taken_port_is_skipped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings(indexer_metrics_port=port)
        server = open_metrics_server(settings, "indexer", 1, CollectorRegistry(), lambda: (200, {}))
        try:
            assert server.port > port
        finally:
            server.close()


def test_an_address_that_is_not_ours_is_a_configuration_problem() -> None:
    settings = Settings(metrics_host="192.0.2.1", indexer_metrics_port=0)
    with pytest.raises(SettingError, match="change metrics_host or indexer_metrics_port"):
        open_metrics_server(settings, "indexer", 1, CollectorRegistry(), lambda: (200, {}))
