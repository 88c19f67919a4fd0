"""The HTTP port of a process, asked over a real socket."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from rsky_pipeline import __version__
from rsky_pipeline.observability import server as server_module
from rsky_pipeline.observability.build import _from_working_copy, build
from rsky_pipeline.observability.server import MAX_CONNECTIONS, process_registry, serve
from rsky_pipeline.observability.streams import StreamMetrics


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_health_and_nothing_else() -> None:
    registry = process_registry()
    Counter("things_total", "Things", registry=registry)
    server = serve(registry, "127.0.0.1", 0, lambda: (503, {"state": "starting"}))
    try:
        status, text = get(server.port, "/metrics")
        assert status == 200
        assert "things_total 0.0" in text
        told = build()
        assert told.version == __version__
        labels = f'built_at="{told.built_at}",commit="{told.commit}",version="{told.version}"'
        assert f"rsky_build_info{{{labels}}} 1.0" in text
        assert "process_cpu_seconds_total" in text
        status, text = get(server.port, "/healthz")
        assert (status, json.loads(text)) == (503, {"state": "starting"})
        assert get(server.port, "/other")[0] == 404
    finally:
        server.close()


def test_a_health_document_that_cannot_be_made_is_an_answer_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def health() -> tuple[int, dict[str, object]]:
        raise KeyError("state")

    server = serve(CollectorRegistry(), "127.0.0.1", 0, health)
    try:
        status, text = get(server.port, "/healthz")
        assert (status, json.loads(text)["trouble"]) == (500, "KeyError")
        assert "the health document cannot be made" in caplog.text
        assert get(server.port, "/metrics")[0] == 200
    finally:
        server.close()


def test_slow_connections_take_neither_descriptors_nor_the_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "LIMIT_SECONDS", 3_600.0)
    server = serve(CollectorRegistry(), "127.0.0.1", 0, lambda: (200, {}))
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    try:
        for each in slow:
            each.sendall(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
        assert get(server.port, "/healthz")[0] == 200
        for each in slow[: 100 - MAX_CONNECTIONS]:
            each.settimeout(10)
            assert each.recv(1) == b""
        assert get(server.port, "/metrics")[0] == 200
        assert sum(thread.name.endswith("process_request_thread)")
                   for thread in threading.enumerate()) <= MAX_CONNECTIONS  # fmt: skip
    finally:
        for each in slow:
            each.close()
        server.close()


def test_a_request_that_drips_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LIMIT_SECONDS", 0.5)
    server = serve(CollectorRegistry(), "127.0.0.1", 0, lambda: (200, {}))
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as slow:

            def drip() -> None:
                while True:
                    slow.sendall(b"G")
                    time.sleep(0.05)

            with pytest.raises(OSError, match=r"roken|reset"):
                drip()
    finally:
        server.close()


def test_starting_says_that_metrics_are_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server = serve(CollectorRegistry(), "127.0.0.1", 0, lambda: (200, {}))
    server.close()
    (record,) = [record for record in caplog.records if record.message == "Metrics initialized"]
    assert vars(record)["port"] == server.port


def test_the_commit_of_a_working_copy(tmp_path: Path) -> None:
    git = tmp_path / ".git"
    git.mkdir()
    assert _from_working_copy(tmp_path) is None
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text("# packed\nbbbb refs/heads/main\n")
    assert _from_working_copy(tmp_path) == "bbbb"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text("aaaa\n")
    assert _from_working_copy(tmp_path) == "aaaa"
    (git / "HEAD").write_text("cccc\n")
    assert _from_working_copy(tmp_path) == "cccc"


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
