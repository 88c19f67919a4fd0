"""A relay that lies in every way it can: in the end the true repos stand, and only they."""

import json
import re
import urllib.request
from collections import Counter

import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.demo.simulator.compare import TableReport, compare, rows_to_form
from rsky_pipeline.demo.simulator.faults import FAULTS
from rsky_pipeline.demo.simulator.tables import TABLES
from tests.hostile import EVIDENCE, OPTIONS, unseen
from tests.pipelines import Running, pipeline_on

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
WORLD = ("--rate=400", "--accounts=60", "--history=15", "--seed=7")
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

    Reposts and quotes of a post stay if the relay kept from us that it ever was: both that it was
    written and that it was deleted. What was deleted here has a tombstone, and they may not stay.
    """
    truth = running.simulation.control.truth(handles=True)
    url, schema = running.settings.database_url or "", running.settings.database_schema
    with Database.connect(url, schema=schema, name="test") as database:
        deleted = {uri for (uri,) in database.query("SELECT uri FROM rsky_pipeline.tombstone")}
        for name, column, source in (
            ("feed_item", "postUri", "repost"), ("quote", "subject", "post"),
        ):  # fmt: skip
            table = TABLES[name]
            for key, row in rows_to_form(table, database.query(table.query)).items():
                subject = row[table.columns.index(column)]
                unheard_of = (subject,) not in truth["record"] and subject not in deleted
                if unheard_of and key in truth[source] and key not in truth[name]:
                    truth[name][key] = row
                    if name == "quote":
                        before = truth["post_agg.quoteCount"].get((subject,), (0,))[0]
                        assert isinstance(before, int)
                        truth["post_agg.quoteCount"][subject,] = (before + 1,)
    return [report for report in compare(url, schema, truth) if report.differences]


def test_in_the_end_the_database_holds_the_true_repos() -> None:
    with pipeline_on(*WORLD, *OPTIONS, **SETTINGS) as running:
        control = running.simulation.control
        running.wait_for(lambda: samples(running)["ingester_firehose_messages_total"] > 2_500, 120)
        control.fall_silent(3_600)
        silence = EVIDENCE["silence"].series
        running.wait_for(lambda: samples(running)[silence] > 0)
        running.wait_for(lambda: min(control.faults().values()) > 0)
        seen = samples(running)["ingester_firehose_messages_total"]
        running.wait_for(
            lambda: samples(running)["ingester_firehose_messages_total"] > seen + 2_500, 120
        )
        control.stop()
        running.wait_until_indexed(200)
        found = differences(running)
        assert found == [], (*found, running.observer.dead_letters())
        assert forged_rows(running) == 0
        faults = control.faults()
        assert faults.keys() == set(FAULTS)
        log = running.log.read_text("utf-8").splitlines()
        lines = [json.loads(line) for line in log if line[:1] == "{"]
        assert unseen(faults | {"silence": 1}, samples(running).__getitem__, lines) == []
