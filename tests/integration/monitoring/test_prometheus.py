"""The real Prometheus on a running pipeline: every panel of every dashboard shows data."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rsky_pipeline.development.documents import ROOT
from tests.integration.ingester.worker import free_port
from tests.pipelines import pipeline_on

PROMETHEUS = shutil.which("prometheus")
FOLDER = ROOT / "docs" / "monitoring"
PORTS = {"ingester": "9090", "indexer": "9091", "backfiller": "9092", "supervisor": "9093"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PROMETHEUS is None,
        reason="prometheus is not installed (Debian: apt-get install prometheus)",
    ),
]


@contextmanager
def prometheus(folder: Path, ports: dict[str, int]) -> Iterator[str]:
    """Run Prometheus with our configuration, looking every second; yield its address."""
    text = (FOLDER / "prometheus.yml").read_text().replace("15s", "1s")
    for role, default in PORTS.items():
        text = text.replace(f"127.0.0.1:{default}", f"127.0.0.1:{ports[role]}")
    text = text.replace(" recording.", f" {FOLDER}/recording.").replace(
        " alerts.", f" {FOLDER}/alerts."
    )
    configuration = folder / "prometheus.yml"
    configuration.write_text(text)
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [PROMETHEUS or "", f"--config.file={configuration}",
             f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield f"http://{address}/api/v1"
    finally:
        process.terminate()
        process.wait(20)


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)["data"]


def has_data(api: str, expression: str) -> bool:
    query = urllib.parse.urlencode({"query": expression.replace("$__rate_interval", "30s")})
    return bool(ask(f"{api}/query?{query}")["result"])


def expressions() -> set[str]:
    """Return the query of every panel of every dashboard."""
    return {
        target["expr"]
        for path in (FOLDER / "grafana").glob("*.json")
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
    }


def until_answering(api: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            ask(f"{api}/targets")
            return
        except OSError:
            assert time.monotonic() < deadline, "Prometheus does not answer"
            time.sleep(0.2)


@pytest.mark.timeout(300)
def test_every_panel_shows_data_while_the_pipeline_runs(tmp_path: Path) -> None:
    ports = {role: free_port() for role in PORTS}
    changes = {
        f"RSKY_PIPELINE_{role.upper()}_METRICS_PORT": str(port) for role, port in ports.items()
    }
    with (
        pipeline_on("--rate=50", "--accounts=40", **changes) as running,
        prometheus(tmp_path, ports) as api,
    ):
        until_answering(api)
        empty = expressions()
        assert len(empty) > 100

        def all_have_data() -> bool:
            nonlocal empty
            empty = {expression for expression in empty if not has_data(api, expression)}
            return not empty

        try:
            running.wait_for(all_have_data, 120)
        except AssertionError:
            pytest.fail("no data for\n" + "\n".join(sorted(empty)))
        targets = ask(f"{api}/targets")["activeTargets"]
        assert {target["labels"]["job"] for target in targets if target["health"] == "up"} == {
            f"rsky-{role}" for role in PORTS
        }
        rules = [rule for group in ask(f"{api}/rules")["groups"] for rule in group["rules"]]
        assert len(rules) > 30
        assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
        # A pipeline that is well alarms nobody.
        firing = [alert for alert in ask(f"{api}/alerts")["alerts"] if alert["state"] == "firing"]
        assert [alert["labels"]["alertname"] for alert in firing] == []
