"""The checks of `verify`, on made-up figures."""

from dataclasses import replace
from pathlib import Path

import pytest

from rsky_pipeline.cli.verify import GROUPS, exit_code, show
from rsky_pipeline.configuration.expectations import expected_band
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded.locations import store_urls
from rsky_pipeline.health import rules
from rsky_pipeline.health.rules import LATENCY, RATE, RuleVerdict, Status
from rsky_pipeline.health.samples import Expectations, Exported, Labels, Sample, SampleWindow
from rsky_pipeline.observability.catalogue import shown_by
from rsky_pipeline.observability.server import process_registry, serve
from rsky_pipeline.operations.scrape import Scrape, ScrapeTarget, scrape, targets
from rsky_pipeline.operations.stream_figures import Measurement
from rsky_pipeline.operations.verification import checks, outside
from rsky_pipeline.operations.verification.run import (
    Look,
    VerificationReport,
    compare,
    nothing_answers,
)
from rsky_pipeline.runtime.health import Health
from rsky_pipeline.runtime.health_document import pipeline_of, read_health
from tests.unit.operations.figures import look, measurement, scraped, stream

SETTINGS = Settings(expected_rate_min=100, expected_rate_max=3_000, live_high_water_mark=100_000,
                    backfill_high_water_mark=100_000)  # fmt: skip
NOTHING = measurement()


def compared(before: Look, after: Look) -> dict[str, RuleVerdict]:
    return {found.check: found for found in compare(SETTINGS, before, after, [])}


def measured(
    after: Measurement, before: Measurement = NOTHING, *, seconds: float = 30.0,
    then: tuple[Scrape, ...] = (), now: tuple[Scrape, ...] = (),
) -> dict[str, RuleVerdict]:  # fmt: skip
    return compared(look(before, 0.0, then), look(after, seconds, now))


@pytest.mark.parametrize(
    ("length", "status"), [(79_999, "pass"), (80_000, "warn"), (100_000, "fail")]
)
def test_lengths_are_held_against_the_mark(length: int, status: str) -> None:
    assert measured(measurement(stream(length=length)))["length:firehose_live"].status == status


def test_history_may_fill_its_stream() -> None:
    found = measured(measurement(stream("firehose_backfill", length=100_000)))
    assert found["length:firehose_backfill"].status == "warn"


@pytest.mark.parametrize(
    ("rate", "lag", "status"),
    [(4_658, 1.0, "fail"), (1_000, 1.0, "pass"), (3, 1.0, "fail"), (9_000, 4_000.0, "pass"),
     (None, None, "skip")],
)  # fmt: skip
def test_the_rate_of_the_seed_is_out_of_band(
    rate: int | None, lag: float | None, status: str
) -> None:
    after = measurement(stream(added=30 * (rate or 0), counts_added=rate is not None))
    scrape = scraped({} if lag is None else {"ingester_event_lag_seconds": lag}, "ingester")
    found = measured(after, measurement(stream(added=0)), now=(scrape,))["rate:firehose_live"]
    assert (found.status, found.value) == (status, rate)


def test_the_default_band_is_for_the_public_network() -> None:
    assert expected_band(Settings()).why_not == ""
    local = Settings(relay_hosts=("ws://127.0.0.1:1", "ws://localhost:2"))
    assert "no relay of the whole network" in expected_band(local).why_not
    quiet = Settings(relay_hosts=("relay.small.example",))  # public, and of a few accounts
    assert expected_band(quiet).why_not
    assert not expected_band(Settings(relay_hosts=("relay1.us-east.bsky.network",))).why_not
    assert expected_band(replace(local, expected_rate_min=5)).low == 5


def test_pollution_is_seen_in_the_stream_and_by_indexers() -> None:
    def polluted(misplaced: int, met: float) -> RuleVerdict:
        before, after = (
            look(NOTHING, 0.0),
            look(NOTHING, 30.0, (scraped({"indexer_misplaced_events_total": met}),)),
        )
        after = replace(after, sample=replace(after.sample, looked_at=100, misplaced=misplaced))
        return compared(before, after)["pollution:firehose_live"]

    assert polluted(0, 0.0).status == "pass"
    assert polluted(1, 0.0).status == "fail"
    found = polluted(0, 7.0)
    assert found.status == "fail"
    assert "purge firehose_live --type repo" in found.to_do


def test_a_growing_backlog_is_told() -> None:
    before = measurement(stream(lag=100))
    grown = measurement(stream(lag=40_000, rate=2_000.0, length=40_000))
    assert measured(grown, before)["balance:firehose_live"].status == "warn"
    small = measurement(stream(lag=900, rate=2_000.0))
    assert measured(small, before)["balance:firehose_live"].status == "pass"


@pytest.mark.parametrize(
    ("name", "position", "seconds", "status"),
    [("firehose_live", "5-0", 30.0, "fail"), ("firehose_live", "6-0", 30.0, "pass"),
     ("firehose_live", "5-0", 19.0, "warn"), ("firehose_backfill", "5-0", 30.0, "warn"),
     ("firehose_backfill", "5-0", 120.0, "fail")],
)  # fmt: skip
def test_waiting_entries_must_be_delivered(
    name: str, position: str, seconds: float, status: str
) -> None:
    before = measurement(stream(name, lag=10))
    after = measurement(stream(name, lag=10, position=position), seconds=seconds)
    assert measured(after, before, seconds=seconds)[f"delivery:{name}"].status == status


def test_the_finding_of_a_worker_judges_a_stall_that_a_short_window_cannot() -> None:
    still = measurement(stream(lag=10))
    finding = read_health({"state": "ready", "findings": ["consumer_stall firehose_live"]})
    worker = replace(scraped({}), health=finding)
    assert measured(still, still, seconds=5.0)["delivery:firehose_live"].status == "warn"
    found = measured(still, still, seconds=5.0, now=(worker,))["delivery:firehose_live"]
    assert found.status == "fail"


def test_a_moving_group_does_not_hide_a_still_one() -> None:
    def of_two(position: str) -> Measurement:
        one = stream(lag=10)
        other = replace(one.groups[0], report=replace(one.groups[0].report, name="h",
                                                      last_delivered_id=position))  # fmt: skip
        groups = (other, *one.groups)
        report = replace(one.report, groups=tuple(each.report for each in groups))
        return measurement(replace(one, report=report, groups=groups))

    for seconds, status in ((5.0, "warn"), (30.0, "fail")):
        found = measured(of_two("6-0"), of_two("5-0"), seconds=seconds)
        assert found["delivery:firehose_live"].status == status


@pytest.mark.parametrize(("age", "status"), [(59.0, "pass"), (61.0, "warn"), (601.0, "fail")])
def test_old_live_entries_are_told(age: float, status: str) -> None:
    assert measured(measurement(stream(age=age)))["oldest:firehose_live"].status == status


@pytest.mark.parametrize(("more", "status"), [(3, "warn"), (99, "warn"), (100, "fail")])
def test_dead_letters_are_a_warning_and_many_at_a_time_a_failure(more: int, status: str) -> None:
    found = measured(measurement(stream(dead=2 + more)), measurement(stream(dead=2)))
    first = found["dead_letters:firehose_live"]
    figure = f"{2 + more} dead letters, {more} more in the window"
    assert (first.status, first.figure) == (status, figure)
    assert first.to_do.endswith("`rsky-pipeline dlq list firehose_live`")


@pytest.mark.parametrize(("used", "status"), [(50, "pass"), (75, "warn"), (86, "fail")])
def test_memory_is_held_against_its_limit(used: int, status: str) -> None:
    assert measured(measurement(used=used, limit=100))["memory"].status == status


def test_a_queue_must_not_be_evicted_and_marks_must_fit() -> None:
    full = measurement(stream(bytes_each=1_000.0), limit=10_000_000, policy="allkeys-lru")
    found = measured(full)
    assert found["eviction"].status == "fail"
    assert found["capacity:firehose_live"].status == "warn"
    assert found["capacity:firehose_live"].to_do == "a mark of 1,921 fits"
    assert found["capacity:label_live"].status == "skip"


def test_a_missing_metric_is_named() -> None:
    samples: dict[str, dict[Labels, float]] = {
        sample: {(): 0.0} for _, sample in shown_by("backfiller")
    }
    target = ScrapeTarget("backfiller-1", "backfiller", 1)
    assert checks.check_metrics(Scrape(target, samples)).status == "pass"
    samples["backfiller_verification_errors_total"] = {}  # declared, and without a series
    found = checks.check_metrics(Scrape(target, samples))
    assert (found.check, found.status) == ("metrics:backfiller-1", "fail")
    assert found.figure.endswith("missing: backfiller_verification_errors_total")


def test_a_role_without_workers_and_one_in_trouble_fail() -> None:
    def reporting(role: str = "indexer", **health: object) -> Scrape:
        return replace(scraped({}, role), health=read_health(health))

    ready = reporting("ingester", state="ready", uptime_seconds=1)
    troubled = reporting(state="ready", trouble="stuck")
    starting = reporting(state="starting")
    silent = replace(scraped({}), error="refused")
    all_of_them = [ready, troubled, starting, silent]
    found = {
        c.check: c.status for c in checks.check_workers(all_of_them, ["ingester", "backfiller"])
    }
    assert found["process:ingester-1"] == "pass"
    assert found["process:backfiller"] == "fail"
    for each in (troubled, starting, silent):
        first = next(iter(checks.check_workers([each], ["indexer"])))
        assert first.status == "fail"


@pytest.mark.parametrize(
    ("redis_url", "answers"),
    [("redis://:secret@here/0", True), ("redis://:other@here/0", True), ("redis://there/0", False),
     ("", True)],
)  # fmt: skip
def test_a_worker_of_another_pipeline_at_an_assumed_port_is_none_of_ours(
    tmp_path: Path, redis_url: str, answers: bool
) -> None:
    """Two pipelines of one host that are configured alike want the same ports."""
    health = Health("indexer", 1, pipeline=pipeline_of(Settings(redis_url=redis_url)))
    if not redis_url:  # of an older version
        health._base.pop("pipeline")
    server = serve(process_registry(), "127.0.0.1", 0, health.answer)
    try:
        settings = Settings(
            redis_url="redis://:secret@here/0", data_dir=tmp_path, run_dir=tmp_path,
            indexer_metrics_port=server.port,
        )  # fmt: skip
        (target,) = (each for each in targets(settings) if each.role == "indexer")
        found = scrape(settings, target)
    finally:
        server.close()
    assert (found.error is None) is answers
    if not answers:
        assert f"at port {server.port} is a worker of another pipeline" in str(found.error)
        assert nothing_answers([found])


def test_where_nothing_runs_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    silent = tuple(replace(scraped({}, role), error="refused") for role in ("ingester", "indexer"))
    found = tuple(checks.check_workers(silent, ["ingester", "indexer"]))
    assert nothing_answers(silent)
    assert not nothing_answers((*silent, scraped({}, "backfiller")))
    listed = replace(silent[0], target=replace(silent[0].target, state="starting"))
    assert not nothing_answers((listed, silent[1]))  # its supervisor answers
    show(VerificationReport(1_000.0, 30.0, found, nothing_runs=True))
    shown = capsys.readouterr().out
    assert shown.count("nothing is running") == 1
    assert "refused" not in shown
    assert shown.endswith("fail: 0 pass, 0 warn, 1 fail, 0 skip\n")  # as many as there are lines
    show(VerificationReport(1_000.0, 30.0, found))
    assert capsys.readouterr().out.count("refused") == 2


def test_checks_are_shown_by_groups(capsys: pytest.CaptureFixture[str]) -> None:
    found = (
        rules.judged(rules.OLDEST, "firehose_live", 0.0, "new"),
        rules.judged(rules.REDIS_MEMORY, "", 0.1, "much is left"),
        rules.judged(rules.LATENCY, "", 0.0, "young"),
        rules.judged(rules.BALANCE, "firehose_live", 0.0, "even"),
        rules.judged(rules.INDEXER_ERRORS, "", 0.0, "none"),
    )
    show(VerificationReport(1_000.0, 30.0, found))
    lines = [each.split()[0] if each.startswith("pass ") else each
             for each in capsys.readouterr().out.splitlines()]  # fmt: skip
    assert lines == [
        *("stores:", "pass", "live events:", "pass", "streams:", "pass", "pass", "work:", "pass"),
        "pass: 5 pass, 0 warn, 0 fail, 0 skip",
    ]


def test_every_group_has_rules_that_exist() -> None:
    known = {each.name for each in vars(rules).values() if isinstance(each, rules.Rule)}
    assert {name for names in GROUPS.values() for name in names} <= known


def test_an_embedded_store_starts_with_the_pipeline(tmp_path: Path) -> None:
    away = Look(Sample(0.0), (), problem="no socket")

    def remedies(settings: Settings) -> list[str]:
        found = [*compare(settings, away, away, []), *outside.check_database(settings)]
        return [each.to_do for each in found]

    embedded = store_urls(Settings(data_dir=tmp_path))
    assert remedies(embedded) == ["start the pipeline: `rsky-pipeline start`"] * 2
    own = replace(embedded, redis_url="redis://127.0.0.1:1",
                  database_url="postgresql://127.0.0.1:1/d?connect_timeout=2")  # fmt: skip
    assert not any("start" in text for text in remedies(own))


@pytest.mark.parametrize(
    ("findings", "failing", "check", "status"),
    [
        ([], [], "findings:indexer-1", "pass"),
        (["back_pressure firehose_backfill"], [], "length:firehose_backfill", "warn"),
        (["back_pressure firehose_live"], ["back_pressure firehose_live"],
         "length:firehose_live", "fail"),
        (["no_progress"], [], "no_progress", "fail"),
        (["redis_memory"], [], "memory", "warn"),
        (["of_a_later version"], [], "findings:indexer-1", "warn"),
    ],
)  # fmt: skip
def test_what_a_worker_finds_is_the_verdict_of_its_check(
    findings: list[str], failing: list[str], check: str, status: str
) -> None:
    health = {"state": "ready", "findings": findings, "failing": failing}
    scrape = replace(scraped({}), health=read_health(health))
    found = measured(NOTHING, now=(scrape,))
    assert found[check].status == status
    assert sum(each.status == "fail" and "indexer-1" in each.figure for each in found.values()) == (
        status == "fail"
    )


def test_a_listing_that_only_fails_is_a_loop() -> None:
    def listing(failures: float, pages: float, done: float = 0.0) -> tuple[Scrape]:
        broken, other = (("host", "a"), ("source", "listRepos")), (("host", "b"), ("source", "x"))
        return (replace(scraped({}), samples={
            "ingester_listing_failures_total": {broken: failures, other: 0.0},
            "ingester_listing_pages_total": {broken: pages, other: 7.0 * failures},
            "ingester_listing_done": {broken: done, other: 0.0},
        }),)  # fmt: skip

    before = listing(10.0, 3.0)
    for seconds in (30.0, 300.0):
        found = measured(NOTHING, seconds=seconds, then=before, now=listing(15.0, 3.0))["listing"]
        assert found.status == "fail"
        assert "listRepos of a" in found.figure
    for good in (listing(15.0, 4.0), listing(15.0, 3.0, done=1.0), listing(11.0, 3.0)):
        assert measured(NOTHING, then=before, now=good)["listing"].status == "pass"


def test_counters_of_a_restarted_worker_begin_at_0() -> None:
    then, now = (
        Sample(0.0, workers=(Exported("w", {"x": {(): value}}),)) for value in (100.0, 7.0)
    )
    assert SampleWindow([then, now], Expectations()).grown(then, "x") == 7.0
    assert now.values("x") == [7.0]
    assert now.values("y") == []


def test_latency_is_only_told_of_what_was_indexed() -> None:
    labels = (("stream", "firehose_live"),)
    quiet = replace(scraped({}), samples={"indexer_event_lag_seconds": {labels: 900.0}})
    assert measured(NOTHING, then=(quiet,), now=(quiet,))["latency"].status == "skip"
    busy = replace(quiet, samples={**quiet.samples, "indexer_batch_events_count": {labels: 3.0}})
    assert measured(NOTHING, then=(quiet,), now=(busy,))["latency"].status == "fail"


def test_backfill_moves_or_has_nothing_to_do() -> None:
    waiting = measurement(stream("repo_backfill_low", lag=5))

    def status(measurement: Measurement, **moved: float) -> str:
        now = (scraped({f"backfiller_{name}_total": count for name, count in moved.items()}),)
        return measured(measurement, waiting, seconds=30.0, now=now)["backfill"].status

    assert status(waiting, repos_processed=0.0, records_extracted=0.0) == "warn"
    assert status(waiting, records_extracted=9.0) == "pass"  # a large repo takes minutes
    assert status(waiting, repos_processed=2.0) == "pass"
    assert status(NOTHING) == "pass"


@pytest.mark.parametrize(
    ("ahead", "status"), [(0.4, "pass"), (-8.0, "warn"), (120.0, "fail"), (None, "skip")]
)
def test_clocks_are_compared(ahead: float | None, status: str) -> None:
    found = list(outside.check_relays([outside.RelayAnswer("r", 0.1, ahead)]))
    assert [c.status for c in found] == ["pass", status]
    failed = outside.check_relays([outside.RelayAnswer("r", error="no")])
    assert [(c.check, c.status) for c in failed] == [("relay:r", "fail")]
    both = [outside.RelayAnswer("r", error="no"), outside.RelayAnswer("s", 0.1, 0.0)]
    assert [(c.check, c.status) for c in outside.check_relays(both)] == [
        ("relay:r", "warn"), ("relay:s", "pass"), ("clock:s", "pass"),
    ]  # fmt: skip


def test_exit_codes_are_for_scripts() -> None:
    statuses: tuple[Status, ...] = ("pass", "warn", "fail")
    good, warned, failed = (
        VerificationReport(
            1.0,
            30.0,
            (RuleVerdict(RATE, "", "pass", "x"), RuleVerdict(LATENCY, "", status, "y")),
        )
        for status in statuses
    )
    assert [exit_code(r, strict=False) for r in (good, warned, failed)] == [0, 0, 6]
    assert [exit_code(r, strict=True) for r in (good, warned, failed)] == [0, 1, 6]
    document = failed.document()
    assert (document["status"], document["counts"]["fail"]) == ("fail", 1)
    assert failed.find("latency") is not None
