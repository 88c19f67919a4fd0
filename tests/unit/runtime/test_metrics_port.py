"""Ports: the role's own for its first worker, free ones that belong to nobody else after it."""

import socket
from itertools import islice

import pytest
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.errors import SettingError
from rsky_pipeline.runtime.metrics_port import candidates, open_metrics_server


def first(role: str, instance: int, count: int = 1) -> list[int]:
    return list(islice(candidates(Settings(), role, instance), count))


def test_first_workers_have_the_documented_ports() -> None:
    ports = [first(role, 1)[0] for role in ("ingester", "indexer", "backfiller", "supervisor")]
    assert ports == [9090, 9091, 9092, 9093]


def test_further_workers_leave_the_ports_of_others_alone() -> None:
    assert first("indexer", 2, 3) == [9094, 9095, 9096]
    assert first("backfiller", 3) == [9095]


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
