"""The four incidents of the original services, provoked: noticed by metric and by `verify`."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import REPO_STREAMS, STREAMS
from rsky_pipeline.database.connection import Database
from rsky_pipeline.health.self_check import SelfCheck, watch
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.observability.server import process_registry, serve
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.operations.scrape import ScrapeTarget, scrape, targets
from rsky_pipeline.operations.verification.checks import check_workers
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.event import EVENT_FIELD, encode_record_event
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, FIREHOSE_LIVE
from tests.integration.operations.entries import CID, commit, fill
from tests.pipelines import Running, pipeline_on

PROFILE = "app.bsky.actor.profile"


@contextmanager
def broken_relay() -> Iterator[str]:
    """A relay that fails on listRepos, for ever, as one did on the page of one broken repo."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"ws://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def value(pipeline: Running, name: str, **labels: str) -> float:
    """Return the sum of a metric over all workers."""
    found = [scrape(pipeline.settings, target) for target in targets(pipeline.settings)]
    return sum(one.value(name, **labels) or 0.0 for one in found)


def is_found(pipeline: Running, finding: str, subject: str = "") -> bool:
    return value(pipeline, "rsky_finding", finding=finding, subject=subject) > 0


def command(pipeline: Running, *arguments: str) -> tuple[int, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "rsky_pipeline", *arguments], env=pipeline.environ,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result.returncode, json.loads(result.stdout)


def checks(pipeline: Running) -> tuple[int, dict[str, Any]]:
    code, report = command(pipeline, "verify", "--window", "3s", "--json")
    return code, {check["name"]: check for check in report["checks"]}


@pytest.mark.slow
def test_pollution_stale_writes_and_a_loop_are_noticed_by_the_running_system() -> None:
    with (
        broken_relay() as broken,
        pipeline_on("--rate=40", "--accounts=20", RSKY_PIPELINE_VERIFY="none") as pipeline,
    ):
        relays = f"{pipeline.environ['RSKY_PIPELINE_RELAY_HOSTS']},{broken}"
        pipeline.process.end()
        pipeline.environ["RSKY_PIPELINE_RELAY_HOSTS"] = relays
        pipeline.start_again()
        pipeline.wait_for(lambda: len(pipeline.pids()) >= 5, 90)
        with (
            closing(connect(pipeline.settings.redis_url or "", name="test")) as store,
            Database.connect(pipeline.settings.database_url or "", name="test") as database,
        ):
            _endless_retry(pipeline)
            _pollution(pipeline, store)
            _stale_writes(pipeline, store, database)


def _pollution(pipeline: Running, store: Store) -> None:
    """Incident 1: a repo event after every commit."""
    stop = threading.Event()

    def pollute() -> None:
        own = connect(pipeline.settings.redis_url or "", name="polluter")
        number = 0
        while not stop.is_set():
            fill(own, [commit(number)] * 5)
            number += 1
            time.sleep(0.2)
        own.close()

    thread = threading.Thread(target=pollute)
    thread.start()
    try:
        pipeline.wait_for(lambda: is_found(pipeline, "polluted_stream", FIREHOSE_LIVE), 30)
        pipeline.wait_for(lambda: value(pipeline, "indexer_misplaced_events_total") > 0, 30)
        code, found = checks(pipeline)
        assert code == 6
        assert found["pollution:firehose_live"]["status"] == "fail"
        _, status = command(pipeline, "status", "--json")
        findings = [name for item in status["processes"]
                    for name in item["health"].get("findings") or []]  # fmt: skip
        assert f"polluted_stream {FIREHOSE_LIVE}" in findings
    finally:
        stop.set()
        thread.join()


def _stale_writes(pipeline: Running, store: Store, database: Database) -> None:
    """Incident 2: history that is older than what is stored."""
    query = f"SELECT did, rev FROM record WHERE uri LIKE '%/{PROFILE}/self' LIMIT 1"
    pipeline.wait_for(lambda: bool(database.query(query)))
    did, rev = database.query(query)[0]
    old: dict[str, Any] = {"$type": PROFILE, "displayName": "an old name"}
    stale = [
        encode_record_event(
            "create", seq=-1, time="2024-01-01T00:00:00.000Z", did=did, commit=CID,
            rev="3aaaaaaaaaa22", collection=PROFILE, rkey="self", cid=CID, record=old,
        )
        for _ in range(200)
    ]  # fmt: skip
    fill(store, stale, FIREHOSE_BACKFILL)
    name = "indexer_stale_writes_total"
    pipeline.wait_for(lambda: value(pipeline, name, stream=FIREHOSE_BACKFILL) >= 200, 30)
    pipeline.wait_for(lambda: is_found(pipeline, "stale_writes", FIREHOSE_BACKFILL), 30)
    standing = database.query(
        "SELECT cid, rev, json FROM record WHERE uri = %s", [f"at://{did}/{PROFILE}/self"]
    )
    assert standing[0][1] >= rev
    assert standing[0][0] != CID
    assert "an old name" not in standing[0][2]
    _, found = checks(pipeline)
    assert found["rev_guard"]["status"] == "pass"
    assert found["deleted_stays_deleted"]["status"] == "pass"


def _endless_retry(pipeline: Running) -> None:
    """Incident 3: the relay fails on one page of listRepos for ever."""
    failures = "ingester_backfill_fetch_errors_total"
    pipeline.wait_for(lambda: value(pipeline, failures) >= 1)
    pipeline.wait_for(lambda: is_found(pipeline, "no_progress"), 30)
    assert value(pipeline, failures) >= 3
    findings = value(pipeline, "rsky_findings_total", finding="no_progress")
    assert findings >= 1
    code, report = command(pipeline, "verify", "--window", "3s", "--json")
    found = {check["name"]: check for check in report["checks"]}
    assert code == 6
    assert any(
        check["name"].startswith("relay:") and check["status"] == "warn" for check in found.values()
    )
    assert found["no_progress"]["status"] == "fail"
    assert "ingester-1" in found["no_progress"]["figure"]
    assert found["pollution:firehose_live"]["status"] == "pass"


def test_a_declared_metric_that_is_missing_is_noticed(store: Store, clean_redis: str) -> None:
    """Incident 4: metrics that were declared and did not appear."""
    registry = process_registry()
    metrics = BackfillerMetrics(registry)
    gauges = StreamMetrics(registry, "backfiller", dict.fromkeys(STREAMS, ("g",)))
    settings = Settings(redis_url=clean_redis)
    check = SelfCheck(registry, "backfiller", settings, STREAMS)
    server = serve(registry, "127.0.0.1", 0, lambda: (200, {"state": "ready"}))
    target = ScrapeTarget("backfiller-1", "backfiller", server.port)
    missing = "backfiller_verification_errors_total"
    finding = {"finding": "missing_metrics", "subject": ""}
    try:
        watch(store, gauges, REPO_STREAMS, check)
        assert registry.get_sample_value("rsky_finding", finding) == 0
        found = {c.check: c for c in check_workers([scrape(settings, target)], ["backfiller"])}
        assert found["metrics:backfiller-1"].status == "pass"

        registry.unregister(metrics.verification_errors)
        watch(store, gauges, REPO_STREAMS, check)
        assert registry.get_sample_value("rsky_finding", finding) == 2
        found = {c.check: c for c in check_workers([scrape(settings, target)], ["backfiller"])}
        assert found["metrics:backfiller-1"].status == "fail"
        assert missing in found["metrics:backfiller-1"].figure
    finally:
        server.close()


def test_nothing_is_wrong_with_an_entry_that_only_looks_like_pollution(store: Store) -> None:
    registry = CollectorRegistry()
    check = SelfCheck(registry, "ingester", Settings(relay_hosts=("ws://127.0.0.1:1",)), STREAMS)
    gauges = StreamMetrics(registry, "ingester", dict.fromkeys(STREAMS, ("g",)))
    store.call(
        "XADD", FIREHOSE_LIVE, "*", EVENT_FIELD, b'{"type":"create","record":{"type":"repo"}}'
    )
    watch(store, gauges, STREAMS, check)
    series = {"finding": "polluted_stream", "subject": FIREHOSE_LIVE}
    assert registry.get_sample_value("rsky_finding", series) == 0
    fill(store, [commit(1)])
    watch(store, gauges, STREAMS, check)
    assert registry.get_sample_value("rsky_finding", series) == 2
