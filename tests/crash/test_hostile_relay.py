"""A relay that lies in every way it can: in the end the true repos stand, and only they."""

import json
import re
import urllib.request
from collections import Counter

import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.simulator.compare import TableReport, compare, rows_to_form
from rsky_pipeline.simulator.faults import FAULTS
from rsky_pipeline.simulator.tables import TABLES
from tests.pipelines import Running, pipeline_on

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
RATES = {
    "drop": 0.01, "repeat": 0.02, "reorder": 0.01, "corrupt": 0.02, "truncate": 0.01,
    "jump": 0.002, "forge": 0.01, "smuggle": 0.01, "hide": 0.01, "too_big": 0.005, "sync": 0.005,
    "rotate": 0.003, "rotate_quietly": 0.003,
}  # fmt: skip
OPTIONS = (
    "--rate=400", "--accounts=60", "--history=15", "--seed=7",
    *(f"--fault={name}={rate}" for name, rate in RATES.items()),
)  # fmt: skip
SETTINGS = {
    "RSKY_PIPELINE_VERIFY": "full",
    "RSKY_PIPELINE_INGESTER_IDLE_TIMEOUT_SECONDS": "3",
    "RSKY_PIPELINE_LOG_FORMAT": "json",
}


def samples(running: Running) -> Counter[str]:
    """Return the ingester's counters by name and labels; none before it is ready."""
    ports = [
        item["metrics_port"]
        for item in running.observer.look().processes
        if item["role"] == "ingester" and item["state"] == "ready" and item["metrics_port"]
    ]
    if not ports:
        return Counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: Counter[str] = Counter()
    for name, value in re.findall(r"^(ingester_\S+) (\S+)$", text, re.MULTILINE):
        found[name] += float(value)  # type: ignore[assignment]
    return found


def forged_rows(running: Running) -> int:
    """Return how many rows hold something that nobody wrote."""
    url, schema = running.settings.database_url or "", running.settings.database_schema
    query = """SELECT count(*) FROM record WHERE uri LIKE '%/forged%' OR json LIKE '%forged%'"""
    with Database.connect(url, schema=schema, name="test") as database:
        return int(database.query(query)[0][0])


def differences(running: Running) -> list[TableReport]:
    """Compare all tables; return those that differ.

    Reposts of a post stay in feeds if the relay kept from us that it ever was: both that it was
    written and that it was deleted. What was deleted here has a tombstone, and may not stay.
    """
    truth = running.simulation.control.truth(handles=True)
    url, schema = running.settings.database_url or "", running.settings.database_schema
    items = TABLES["feed_item"]
    with Database.connect(url, schema=schema, name="test") as database:
        found = rows_to_form(items, database.query(items.query))
        deleted = {uri for (uri,) in database.query("SELECT uri FROM rsky_pipeline.tombstone")}
    for key, row in found.items():
        subject = row[items.columns.index("postUri")]
        unheard_of = (subject,) not in truth["record"] and subject not in deleted
        if key in truth["repost"] and unheard_of:
            truth["feed_item"].setdefault(key, row)
    return [report for report in compare(url, schema, truth) if report.differences]


def test_in_the_end_the_database_holds_the_true_repos() -> None:
    with pipeline_on(*OPTIONS, **SETTINGS) as running:
        control = running.simulation.control
        running.wait_for(lambda: samples(running)["ingester_firehose_messages_total"] > 2_000, 120)
        control.fall_silent(3_600)
        running.wait_for(lambda: samples(running)['ingester_disconnects_total{reason="idle"}'] > 0)
        running.wait_for(lambda: min(control.faults().values()) > 0)
        control.stop()
        running.wait_until_indexed(200)  # a repo that breaks again waits for a minute
        found = differences(running)
        assert found == [], (*found, running.observer.dead_letters())
        assert forged_rows(running) == 0
        faults = control.faults()
        assert faults.keys() == set(FAULTS)
        check_metrics(samples(running), faults)
        check_log(running.log.read_text("utf-8"))


def check_metrics(found: Counter[str], faults: dict[str, int]) -> None:
    """Check that each kind of fault has moved a counter."""

    def errors(*reasons: str) -> float:
        return sum(found[f'ingester_error_reasons_total{{reason="{name}"}}'] for name in reasons)

    def resyncs(*reasons: str) -> float:
        return sum(found[f'ingester_resyncs_total{{reason="{name}"}}'] for name in reasons)

    assert found["ingester_duplicate_frames_total"] >= faults["repeat"]
    assert found['ingester_frames_total{type="undecodable"}'] >= faults["truncate"] * 0.9
    assert found["ingester_quarantined_frames_total"] > 0
    assert found['ingester_verifications_total{verdict="forged"}'] >= faults["forge"]
    assert errors("inversion", "invalid_operation") > 0
    assert resyncs("broken_chain") > 0
    assert resyncs("too_big") > 0
    assert resyncs("sync") > 0


def check_log(text: str) -> None:
    """Check that the log tells of what an operator should know."""
    messages = Counter(json.loads(line)["msg"] for line in text.splitlines() if line[:1] == "{")
    assert messages["cannot use a frame, or a part of it"] > 0
    assert messages["disconnected"] > 0
