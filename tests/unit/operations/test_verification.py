"""The rules of `verify`, on made-up figures."""

from collections import Counter
from dataclasses import replace

import pytest

from rsky_pipeline.cli.verify import exit_code
from rsky_pipeline.configuration.expectations import Band, expected_band
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.catalogue import declared
from rsky_pipeline.operations.inspection import Inspection
from rsky_pipeline.operations.scrape import Labels, Scrape, Target
from rsky_pipeline.operations.verification import flow, relay, streams, workers
from rsky_pipeline.operations.verification.report import Check, Report, passed
from tests.unit.operations.figures import measurement, scraped, stream

BAND = Band(100, 3_000)


@pytest.mark.parametrize(
    ("length", "status"), [(79_999, "pass"), (80_000, "warn"), (100_000, "fail")]
)
def test_lengths_are_held_against_the_mark(length: int, status: str) -> None:
    checks = {c.name: c for c in streams.check_lengths(measurement(stream(length=length)))}
    assert checks["length:firehose_live"].status == status


def test_history_may_fill_its_stream() -> None:
    found = streams.check_lengths(measurement(stream("firehose_backfill", length=100_000)))
    assert {c.status for c in found if c.name == "length:firehose_backfill"} == {"warn"}


@pytest.mark.parametrize(
    ("rate", "lag", "status"),
    [(4_658.0, 1.0, "fail"), (1_000.0, 1.0, "pass"), (3.0, 1.0, "fail"), (9_000.0, 4_000.0, "warn"),
     (None, None, "skip")],
)  # fmt: skip
def test_the_rate_of_the_seed_is_out_of_band(
    rate: float | None, lag: float | None, status: str
) -> None:
    assert streams.check_rate(measurement(stream(rate=rate)), BAND, lag).status == status


def test_the_default_band_is_for_the_public_network() -> None:
    assert expected_band(Settings()).why_not == ""
    local = Settings(relay_hosts=("ws://127.0.0.1:1", "ws://localhost:2"))
    assert "no public relay" in expected_band(local).why_not
    assert expected_band(replace(local, expected_rate_min=5)).low == 5


def sample(**types: int) -> Inspection:
    return Inspection("firehose_live", 100, 100, "1-0", "2-0", Counter(types), Counter(), (1,), {})


def test_pollution_is_seen_in_the_stream_and_by_indexers() -> None:
    assert streams.check_pollution(sample(create=100), 0).status == "pass"
    assert streams.check_pollution(sample(create=99, repo=1), 0).status == "fail"
    found = streams.check_pollution(sample(create=100), 7)
    assert found.status == "fail"
    assert "purge firehose_live --type repo" in found.remedy


def test_a_growing_backlog_is_told() -> None:
    before = {"firehose_live": 100}
    grown = measurement(stream(lag=40_000, rate=2_000.0, length=40_000))
    found = {c.name: c.status for c in streams.check_balance(before, grown)}
    assert found["balance:firehose_live"] == "warn"
    small = measurement(stream(lag=900, rate=2_000.0))
    assert next(iter(streams.check_balance(before, small))).status == "pass"


@pytest.mark.parametrize(
    ("name", "position", "seconds", "status"),
    [("firehose_live", "5-0", 30.0, "fail"), ("firehose_live", "6-0", 30.0, "pass"),
     ("firehose_live", "5-0", 2.0, "warn"), ("firehose_backfill", "5-0", 30.0, "warn")],
)  # fmt: skip
def test_waiting_entries_must_be_delivered(
    name: str, position: str, seconds: float, status: str
) -> None:
    before = measurement(stream(name, lag=10))
    after = measurement(stream(name, lag=10, position=position), seconds=seconds)
    found = {c.name: c.status for c in streams.check_stalls(before, after)}
    assert found[f"delivery:{name}"] == status


@pytest.mark.parametrize(("age", "status"), [(59.0, "pass"), (61.0, "warn"), (601.0, "fail")])
def test_old_live_entries_are_told(age: float, status: str) -> None:
    found = streams.check_stalls(measurement(), measurement(stream(age=age)))
    assert {c.status for c in found if c.name == "oldest:firehose_live"} == {status}


def test_dead_letters_are_a_warning_with_their_growth() -> None:
    found = streams.check_dead_letters(measurement(stream(dead=2)), measurement(stream(dead=5)))
    first = next(iter(found))
    assert (first.status, first.figure) == ("warn", "5 dead letters, 3 more in the window")


@pytest.mark.parametrize(("used", "status"), [(50, "pass"), (75, "warn"), (86, "fail")])
def test_memory_is_held_against_its_limit(used: int, status: str) -> None:
    found = {c.name: c for c in streams.check_memory(measurement(used=used, limit=100))}
    assert found["memory"].status == status


def test_a_queue_must_not_be_evicted_and_marks_must_fit() -> None:
    full = measurement(stream(bytes_each=1_000.0), limit=10_000_000, policy="allkeys-lru")
    found = {c.name: c for c in streams.check_memory(full)}
    assert found["eviction"].status == "fail"
    assert found["capacity:firehose_live"].status == "warn"
    assert found["capacity:firehose_live"].remedy == "a mark of 7,000 fits"
    assert found["capacity:label_live"].status == "skip"


def test_a_missing_metric_is_named() -> None:
    metrics = declared("backfiller").values()
    samples: dict[str, dict[Labels, float]] = {
        f"{metric.name}{'_count' if metric.kind == 'histogram' else ''}": {(): 0.0}
        for metric in metrics
    }
    target = Target("backfiller-1", "backfiller", 1)
    assert workers.check_metrics(Scrape(target, samples)).status == "pass"
    samples["backfiller_verification_errors_total"] = {}  # declared, and without a series
    found = workers.check_metrics(Scrape(target, samples))
    assert found.status == "fail"
    assert found.figure.endswith("missing: backfiller_verification_errors_total")


def test_a_role_without_workers_and_one_in_trouble_fail() -> None:
    ready = replace(scraped({}, "ingester"), health={"state": "ready", "uptime_seconds": 1})
    troubled = replace(scraped({}), health={"state": "ready", "trouble": "stuck"})
    starting = replace(scraped({}), health={"state": "starting"})
    silent = replace(scraped({}), error="refused")
    checks = workers.check_workers([ready, troubled, starting, silent], ["ingester", "backfiller"])
    found = {c.name: c.status for c in checks}
    assert found["process:ingester-1"] == "pass"
    assert found["process:backfiller"] == "fail"
    for scrape in (troubled, starting, silent):
        first = next(iter(workers.check_workers([scrape], ["indexer"])))
        assert first.status == "fail"


@pytest.mark.parametrize(
    ("findings", "status"),
    [([], "pass"), (["back_pressure firehose_backfill"], "warn"),
     (["back_pressure x", "no_progress"], "fail"), (["of a later version"], "warn")],
)  # fmt: skip
def test_what_a_worker_finds_is_told(findings: list[str], status: str) -> None:
    scrape = replace(scraped({}), health={"state": "ready", "findings": findings})
    found = {c.name: c for c in workers.check_workers([scrape], ["indexer"])}
    assert found["findings:indexer-1"].status == status


def test_a_listing_that_only_fails_is_a_loop() -> None:
    def listing(failures: float, pages: float, done: float = 0.0) -> Scrape:
        broken, other = (("host", "a"), ("source", "listRepos")), (("host", "b"), ("source", "x"))
        return replace(scraped({}), samples={
            "ingester_listing_failures_total": {broken: failures, other: 0.0},
            "ingester_listing_pages_total": {broken: pages, other: 7.0 * failures},
            "ingester_listing_done": {broken: done, other: 0.0},
        })  # fmt: skip

    before = listing(10.0, 3.0)
    found = {c.name: c for c in flow.check_errors(flow.Counters([before], [listing(15.0, 3.0)]))}
    assert found["listing"].status == "fail"
    assert found["listing"].figure.endswith("none by a")
    for good in (listing(15.0, 4.0), listing(15.0, 3.0, done=1.0), listing(11.0, 3.0)):
        found = {c.name: c for c in flow.check_errors(flow.Counters([before], [good]))}
        assert found["listing"].status == "pass"


def test_counters_of_a_restarted_worker_begin_at_0() -> None:
    counters = flow.Counters([scraped({"x": 100.0})], [scraped({"x": 7.0})])
    assert counters.grown("x") == 7.0
    assert counters.largest("x") == 7.0
    assert counters.largest("y") is None


def test_latency_is_only_told_of_what_was_indexed() -> None:
    labels = (("stream", "firehose_live"),)
    quiet = replace(scraped({}), samples={"indexer_event_lag_seconds": {labels: 900.0}})
    assert flow.check_latency(flow.Counters([quiet], [quiet])).status == "skip"
    busy = replace(quiet, samples={**quiet.samples, "indexer_batch_events_count": {labels: 3.0}})
    assert flow.check_latency(flow.Counters([quiet], [busy])).status == "fail"


def test_backfill_moves_or_has_nothing_to_do() -> None:
    waiting = measurement(stream("repo_backfill_low", lag=5))
    none, some = scraped({}), scraped({"backfiller_repos_processed_total": 2.0})
    assert flow.check_backfill(flow.Counters([none], [none]), waiting).status == "warn"
    assert flow.check_backfill(flow.Counters([none], [some]), waiting).status == "pass"
    assert flow.check_backfill(flow.Counters([none], [none]), measurement()).status == "pass"


@pytest.mark.parametrize(
    ("ahead", "status"), [(0.4, "pass"), (-8.0, "warn"), (120.0, "fail"), (None, "skip")]
)
def test_clocks_are_compared(ahead: float | None, status: str) -> None:
    found = list(relay.check_relays([relay.Answered("r", 0.1, ahead)]))
    assert [c.status for c in found] == ["pass", status]
    assert [c.status for c in relay.check_relays([relay.Answered("r", error="no")])] == ["fail"]


def test_exit_codes_are_for_scripts() -> None:
    good, warned, failed = (
        Report(1.0, 30.0, (passed("a", "fine"), Check("b", status, "x", "do y")))
        for status in ("pass", "warn", "fail")
    )
    assert [exit_code(r, strict=False) for r in (good, warned, failed)] == [0, 0, 6]
    assert [exit_code(r, strict=True) for r in (good, warned, failed)] == [0, 1, 6]
    document = failed.document()
    assert (document["status"], document["counts"]["fail"]) == ("fail", 1)
    assert failed.find("b") is not None
