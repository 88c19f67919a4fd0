"""A relay faster than the database: memory bounded, streams near their mark, nothing lost."""

import urllib.request

import pytest

from rsky_pipeline.atproto.rules import MAX_OPS
from rsky_pipeline.configuration.settings import Settings
from tests.pipelines import pipeline_on

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
EVENTS = 20_000
MARK = 2_000
MOST_BYTES = 300 * 1024 * 1024
# The batch that meets the mark is appended whole; its last commit may bring more than its size.
MOST_ENTRIES = MARK + Settings().ingester_batch_size + MAX_OPS


def waits_for_room(port: int) -> float:
    """Return how often the ingester found a stream at its mark."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    name = 'ingester_store_retries_total{action="full"} '
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])


def test_a_relay_that_is_too_fast_is_slowed_down() -> None:
    options = ("--rate=0", f"--prepare={EVENTS}", f"--events={EVENTS}", "--buffer-events=0")
    largest: dict[str, int] = {}
    longest: dict[str, int] = {}
    changes = {
        "RSKY_PIPELINE_LIVE_HIGH_WATER_MARK": str(MARK),
        "RSKY_PIPELINE_VERIFY": "none",  # so that the ingester is faster than the indexer
    }
    with pipeline_on(*options, **changes) as running:

        def is_done() -> bool:
            look = running.observer.look()
            for process in look.processes:
                if process["kind"] == "worker" and process["rss_bytes"]:
                    name, size = process["name"], int(process["rss_bytes"])
                    largest[name] = max(size, largest.get(name, 0))
            for stream, length in look.streams.items():
                longest[stream] = max(length, longest.get(stream, 0))
            return not running.observer.waiting(running.simulation.control.progress())

        running.wait_for(is_done, 200)
        running.wait_until_indexed()
        assert running.differences() == []
        assert running.observer.dead_letters() == {}
        (ingester,) = (
            item for item in running.observer.look().processes if item["name"] == "ingester-1"
        )
        assert waits_for_room(ingester["metrics_port"]) > 0, "the relay was not too fast"
    assert longest["firehose_live"] <= MOST_ENTRIES
    assert largest.keys() == {"ingester-1", "backfiller-1", "indexer-1"}
    assert all(size < MOST_BYTES for size in largest.values()), largest
