"""The HTTP port of a process, asked over a real socket."""

import json
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from rsky_pipeline.observability.server import serve
from rsky_pipeline.observability.streams import StreamMetrics


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_health_and_nothing_else() -> None:
    registry = CollectorRegistry()
    Counter("things_total", "Things", registry=registry)
    server = serve(registry, "127.0.0.1", 0, lambda: (503, {"state": "starting"}))
    try:
        status, text = get(server.port, "/metrics")
        assert status == 200
        assert "things_total 0.0" in text
        assert "rsky_build_info{" in text
        assert "process_cpu_seconds_total" in text
        status, text = get(server.port, "/healthz")
        assert (status, json.loads(text)) == (503, {"state": "starting"})
        assert get(server.port, "/other")[0] == 404
    finally:
        server.close()


def test_a_closed_port_is_free_again() -> None:
    first = serve(CollectorRegistry(), "127.0.0.1", 0, lambda: (200, {}))
    with pytest.raises(OSError, match="in use"):
        serve(CollectorRegistry(), "127.0.0.1", first.port, lambda: (200, {}))
    first.close()
    serve(CollectorRegistry(), "127.0.0.1", first.port, lambda: (200, {})).close()


def test_stream_gauges_exist_before_any_traffic() -> None:
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry, "ingester", {"firehose_live": ("firehose_group",)})
    assert registry.get_sample_value("rsky_stream_length", {"stream": "firehose_live"}) == 0
    labels = {"stream": "firehose_live", "group": "firehose_group"}
    assert registry.get_sample_value("rsky_stream_group_lag", labels) == 0
    metrics.set_length("firehose_live", 7)
    assert registry.get_sample_value("ingester_firehose_live_length") == 7
