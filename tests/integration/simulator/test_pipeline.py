"""The whole pipeline on networks that are served by the simulator, in processes of its own."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.demo.processes import clean_environment
from rsky_pipeline.demo.simulator.compare import rows_to_form, table_report
from rsky_pipeline.demo.simulator.tables import TABLES
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.dead_letters import list_dead_letters
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, FIREHOSE_LIVE
from tests.data import test_data
from tests.pipelines import pipeline_on

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
OFFICIAL_TABLES = (
    "record", "post_embed_image", "post_embed_external", "post_embed_record", "thread_gate", "like",
    "repost", "follow", "actor_block", "list", "list_item", "feed_generator", "profile",
)  # fmt: skip


def test_the_demonstration_ends_without_a_difference() -> None:
    command = [sys.executable, "-m", "rsky_pipeline", "demo", "--seconds=8", "--rate=400"]
    result = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=False, timeout=250
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = re.search(r"0 differences in ([\d,]+) rows", result.stdout)
    assert found is not None
    assert int(found[1].replace(",", "")) > 10_000
    order = [
        result.stdout.index(f"{role} drained") for role in ("indexer", "backfiller", "ingester")
    ]
    assert order == sorted(order)


def test_interrupting_the_demonstration_ends_it_in_order() -> None:
    command = [sys.executable, "-m", "rsky_pipeline", "demo", "--seconds=100", "--rate=200"]
    process = subprocess.Popen(
        command,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if "indexer-1 ready" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.wait(120) == 0, rest
    assert "indexer drained" in rest
    assert "0 differences" in rest


def test_a_changed_row_is_a_difference() -> None:
    with pipeline_on("--rate=0", "--events=500", "--accounts=20") as running:
        running.wait_for(lambda: running.simulation.control.progress().stopped)
        running.wait_until_indexed()
        assert running.differences() == []
        with Database.connect(running.settings.database_url or "", name="test") as database:
            database.execute('UPDATE post_agg SET "likeCount" = "likeCount" + 1')
            database.execute('DELETE FROM "like" WHERE uri = (SELECT min(uri) FROM "like")')
        wrong = {report.name: report for report in running.differences()}
        assert set(wrong) == {"like", "post_agg.likeCount"}
        assert wrong["like"].missing == 1
        assert wrong["post_agg.likeCount"].different > 10


def test_the_recorded_official_network_runs_through_all_roles() -> None:
    """Nothing is dead-lettered but what the official indexer refuses, and its rows are there."""
    folder = test_data("recorded")
    lines = (folder / "appview-errors.jsonl").read_text("utf-8").splitlines()
    refused = {json.loads(line)["uri"] for line in lines}
    options = (f"--replay={folder / 'firehose.frames'}", "--rate=0")
    with pipeline_on(*options) as running:
        running.wait_until_indexed()
        assert set(running.observer.dead_letters()) <= {
            f"{FIREHOSE_LIVE}_dlq",
            f"{FIREHOSE_BACKFILL}_dlq",
        }
        assert dead_uris(running.settings) <= refused
        gone = deleted_accounts(folder)
        assert len(gone) == 3
        for name in OFFICIAL_TABLES:
            check_official_table(running.settings, folder, name, gone, refused)


def dead_uris(settings: Settings) -> set[str]:
    """Return the records among the dead letters."""
    store = connect(settings.redis_url or "", name="test")
    found = set()
    for stream in (FIREHOSE_LIVE, FIREHOSE_BACKFILL):
        for letter in list_dead_letters(store, stream):
            event = json.loads(letter.fields[b"event"])
            found.add(f"at://{event['did']}/{event['collection']}/{event['rkey']}")
    store.close()
    return found


def deleted_accounts(folder: Path) -> set[str]:
    """Return the accounts that their host does not know any more."""
    index = json.loads((folder / "cars" / "index.json").read_text("utf-8"))
    return {item["did"] for item in index if item.get("error", {}).get("error") == "RepoNotFound"}


def check_official_table(
    settings: Settings, folder: Path, name: str, gone: set[str], excused: set[str]
) -> None:
    """Check that all official rows are there, and no others without a reason."""
    table = TABLES[name]
    lines = (folder / "appview-expected" / f"{name}.jsonl").read_text("utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    official = [tuple(row[column] for column in (*table.key, *table.columns)) for row in rows]
    with Database.connect(settings.database_url or "", name="test") as database:
        found = rows_to_form(table, database.query(table.query))
    known = {
        key: row
        for key, row in found.items()
        if key[0] not in excused and key[0][5:].partition("/")[0] not in gone
    }
    # Officially a profile without a time has that of its indexing.
    ignored = [table.columns.index("createdAt")] if name == "profile" else []
    report = table_report(table, rows_to_form(table, official), known, ignored)
    assert report.examples == ()
