"""The conditions of the watched rules: what is found, and what is not, from made-up histories."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.health.conditions import CONDITIONS
from rsky_pipeline.health.rules import OF_ROLES, OF_STORES, WATCHED, finding_of, finding_series
from rsky_pipeline.health.samples import Expectations, Exported, Labels, Sample
from rsky_pipeline.health.self_check import SelfCheck
from rsky_pipeline.observability.findings import FAILS, WARNS, FindingMetrics, active_findings
from rsky_pipeline.streams.lag import GroupReport, ServerMemory, StreamReport

LIVE, BACKFILL = "firehose_live", "firehose_backfill"
MARKS = {LIVE: 100, BACKFILL: 100}
RATED, UNRATED = Expectations((100.0, 3_000.0), "", MARKS), Expectations(None, "", MARKS)
WAITED, LAG = "ingester_backpressure_seconds_total", "ingester_event_lag_seconds"
LAG_INDEXED = "indexer_event_lag_seconds"
EVENTS, STALE = "indexer_batch_events_sum", "indexer_stale_writes_total"
MESSAGES, CURSOR = "ingester_firehose_messages_total", "ingester_cursor_seq"


def stream(name: str = LIVE, *groups: GroupReport, **values: Any) -> StreamReport:
    return replace(StreamReport(name, 0, 0, "1-0", "9-0", 0.0, groups), **values)


def group(**values: Any) -> GroupReport:
    return replace(GroupReport("g", 0, 0, 0.0, "5-0", 1), **values)


def exporting(*series: tuple[str, float, dict[str, str]]) -> tuple[Exported, ...]:
    samples: dict[str, dict[Labels, float]] = {}
    for name, value, labels in series:
        samples.setdefault(name, {})[tuple(sorted(labels.items()))] = value
    return (Exported("worker-1", samples),)


def seen(*streams: StreamReport, **values: Any) -> Sample:
    return Sample(0.0, streams, **values)


def statuses(
    samples: Sequence[Sample], expected: Expectations = RATED
) -> list[tuple[str, str, str]]:
    """Return what a worker finds at the last of these samples, five seconds apart."""
    check = SelfCheck(CollectorRegistry(), "backfiller", Settings(), (LIVE, BACKFILL))
    check._samples, check._expected = [], expected
    result: list[tuple[str, str, str]] = []
    for number, sample in enumerate(samples):
        result = [
            (finding_of(each.rule), each.subject, each.status)
            for each in check.observe(replace(sample, moment=5.0 * number))
        ]
    return result


def found(samples: Sequence[Sample], expected: Expectations = UNRATED) -> list[tuple[str, str]]:
    return [(finding, subject) for finding, subject, _ in statuses(samples, expected)]


def rates(per_second: float, count: int = 4, lag_seconds: float = 0.0) -> list[Sample]:
    return [
        seen(stream(added=int(5 * per_second * n)), workers=exporting((LAG, lag_seconds, {})))
        for n in range(count)
    ]


def test_every_watched_rule_has_a_condition() -> None:
    assert [rule for rules in CONDITIONS for rule in rules] == list(
        dict.fromkeys(rule for rules in CONDITIONS for rule in rules)
    )
    others = {*OF_STORES, *OF_ROLES}  # of links, and judged by the roles themselves
    watched = {rule for rule in WATCHED if rule.name not in others}
    assert {rule for rules in CONDITIONS for rule in rules} == watched


def test_nothing_is_wrong_with_a_quiet_worker() -> None:
    assert found([seen()] * 20, RATED) == []
    assert found(rates(1_000.0), RATED) == []


def test_repo_events_are_seen_in_the_stream_and_by_the_indexer() -> None:
    polluted = seen(stream(added=10_000), looked_at=50, misplaced=3)
    assert found([polluted]) == [("polluted_stream", LIVE)]
    met = [
        seen(workers=exporting(("indexer_misplaced_events_total", count, {})))
        for count in (7.0, 7.0, 8.0)
    ]
    assert statuses(met) == [("polluted_stream", LIVE, "fail")]
    assert found(met[:2]) == []  # what was met before the history began is over
    assert found([*met, *met[2:] * 7]) == []


@pytest.mark.parametrize(
    ("rate", "lag", "expected"), [(4_658.0, 1.0, True), (5.0, 1.0, True), (5_000.0, 900.0, False)]
)
def test_a_rate_out_of_the_band(rate: float, lag: float, expected: bool) -> None:
    assert (("rate_out_of_band", "") in found(rates(rate, lag_seconds=lag), RATED)) is expected
    assert found(rates(rate, count=2), RATED) == []  # too short to tell
    assert found([seen(stream(counts_added=False))] * 5, RATED) == []
    assert found(rates(rate)) == []  # another worker judges it


def test_no_rate_is_expected_while_reading_is_held_up() -> None:
    def held(seconds: float) -> list[tuple[str, str]]:
        samples = [
            replace(each, workers=exporting((WAITED, seconds * n, {}), (LAG, 0.0, {})))
            for n, each in enumerate(rates(0.0, 6))
        ]
        return found(samples, RATED)

    assert held(2.0) == [("back_pressure", LIVE)]
    assert held(0.1) == [("rate_out_of_band", "")]  # too short to explain it


def test_much_old_history_is_told_and_a_little_or_live_events_are_not() -> None:
    def written(stale: float, name: str = BACKFILL) -> list[Sample]:
        labels = {"stream": name}
        return [
            seen(workers=exporting((EVENTS, 100.0 * n, labels), (STALE, stale * n, labels)))
            for n in range(4)
        ]

    assert found(written(30.0, LIVE)) == []
    assert statuses(written(30.0)) == [("stale_writes", BACKFILL, "warn")]
    assert found(written(5.0)) == []
    lag = exporting((LAG_INDEXED, 3_600.0, {"stream": LIVE}))
    behind = [replace(each, workers=(*each.workers, *lag)) for each in written(30.0)]
    assert found(behind) == []  # live events overtake the history that waits behind them


def listing(failed: float, pages: float, host: str = "a", done: float = 0.0) -> Exported:
    labels = {"host": host, "source": "listRepos"}
    [worker] = exporting(
        ("ingester_listing_failures_total", failed, labels),
        ("ingester_listing_pages_total", pages, labels),
        ("ingester_listing_done", done, labels),
    )
    return replace(worker, worker=host)


def listed(*workers: Exported) -> Sample:
    return seen(workers=workers)


def test_a_loop_that_only_fails_is_found_and_one_that_moves_is_not() -> None:
    """The third incident: one page of listRepos fails for ever."""
    failing = [listed(listing(n, 1_000.0)) for n in range(7)]
    assert statuses(failing) == [("no_progress", "", "fail")]
    assert found(failing[:3]) == []
    moving = [listed(listing(n, 1_000.0 + n // 3)) for n in range(7)]
    assert found(moving) == []
    assert found(failing + failing[-1:] * 25) == []  # it is not tried any more
    ended = [listed(listing(n, 1_000.0, done=1.0)) for n in range(7)]
    assert found(ended) == []  # repos that its host cannot list are tried again


def test_a_loop_is_found_although_waits_grow_and_others_move() -> None:
    tries = (0, 4, 4, 5, 5, 5)  # the first ones within seconds, then one wait of half a minute
    slower = [
        listed(listing(0, 30.0 * n, "a"), listing(tried, 9.0 if n else 8.0, "b"))
        for n, tried in enumerate(tries)
    ]
    assert found(slower) == [("no_progress", "")]
    assert found(slower[:3]) == []  # it may have moved after the tries, and none failed since
    assert found([*slower, listed(listing(0, 500.0, "a"))]) == []


@pytest.mark.parametrize(
    ("tried", "labels", "done"),
    [
        ("ingester_store_retries_total", {"action": "rejected"}, "ingester_stream_events_total"),
        ("ingester_disconnects_total", {"reason": "x"}, "ingester_labeler_events_total"),
        ("backfiller_repos_failed_total", {}, "backfiller_repos_processed_total"),
        ("indexer_unexpected_errors_total", {}, "indexer_batches_total"),
    ],
)
def test_each_activity_that_may_turn_in_circles_is_found(
    tried: str, labels: dict[str, str], done: str
) -> None:
    failing = [seen(workers=exporting((tried, n, labels), (done, 7.0, {}))) for n in range(5)]
    assert found(failing) == [("no_progress", "")]
    moving = [seen(workers=exporting((tried, n, labels), (done, n, {}))) for n in range(5)]
    assert found(moving) == []


def memory(used: int, limit: int) -> ServerMemory:
    return ServerMemory(used, limit, 0, "noeviction")


def test_missing_metrics_and_memory_are_found_at_once() -> None:
    assert found([seen(missing_metrics=("a",))]) == [("missing_metrics", "")]
    assert statuses([seen(memory=memory(76, 100))]) == [("redis_memory", "", "warn")]
    assert statuses([seen(memory=memory(85, 100))]) == [("redis_memory", "", "fail")]
    assert found([seen(memory=memory(76, 0))]) == []


@pytest.mark.parametrize(("name", "looks"), [(LIVE, 5), (BACKFILL, 25)])
def test_entries_that_wait_must_be_delivered(name: str, looks: int) -> None:
    waiting = [seen(stream(name, group(lag=9)))] * looks
    assert statuses(waiting, UNRATED) == [("consumer_stall", name, "fail")]
    assert found(waiting[:-1]) == []
    moving = [seen(stream(name, group(lag=9, last_delivered_id=f"{n}-0"))) for n in range(looks)]
    assert found(moving) == []


def test_removed_entries_that_nobody_had_read_are_told_for_a_while() -> None:
    before = seen(stream(LIVE, group(read=5), length=10, added=15))
    after = seen(stream(LIVE, group(read=5), length=3, added=15))
    assert statuses([before, after], UNRATED) == [("unread_removed", LIVE, "warn")]
    assert found([before, after] + [after] * 60) == []
    # What every group has read may go, and what the server does not know is not judged.
    read = seen(stream(LIVE, group(read=15), length=0, added=15))
    unknown = seen(stream(LIVE, group(), length=0, added=15))
    assert found([before, read]) == found([before, unknown]) == []


def test_a_read_counter_that_falls_back_is_no_removal() -> None:
    # A promoted replica has the counter of when it began to copy; a group made anew has its own.
    before = seen(stream(LIVE, group(read=50), length=0, added=50))
    promoted = seen(stream(LIVE, group(read=40), length=0, added=60))
    reading = seen(stream(LIVE, group(read=45), length=0, added=65))
    assert found([before, promoted]) == found([before, promoted, reading]) == []
    # So does one whose consumer has read on since.
    assert found([before, before, promoted, promoted]) == []
    # What is removed after that is found all the same.
    cut = seen(stream(LIVE, group(read=45), length=0, added=68))
    assert found([before, promoted, reading, cut]) == [("unread_removed", LIVE)]


def test_pending_entries_without_a_body_are_found() -> None:
    cut = seen(stream(LIVE, group(pending=1, oldest_pending_id="3-0"), first_id="4-0"))
    assert found([cut]) == [("pending_without_body", LIVE)]
    empty = seen(stream(LIVE, group(pending=1, oldest_pending_id="3-0"), first_id=None))
    assert found([empty]) == [("pending_without_body", LIVE)]
    good = seen(stream(LIVE, group(pending=1, oldest_pending_id="10-0"), first_id="9-0"))
    assert found([good]) == []


def test_a_cursor_must_move_while_messages_come() -> None:
    def reading(messages: float, cursor: float, waited: float = 0.0) -> Sample:
        labels = {"stream": LIVE, "host": "a"}
        return seen(workers=exporting(
            (MESSAGES, messages, {}), (CURSOR, cursor, labels), (WAITED, waited, {})
        ))  # fmt: skip

    stuck = [reading(100.0 * n, 7.0) for n in range(6)]
    assert statuses(stuck) == [("cursor_stuck", "", "fail")]
    assert found([reading(100.0 * n, 7.0, 0.1 * n) for n in range(6)]) == []
    assert found([reading(100.0 * n, float(n)) for n in range(6)]) == []
    assert found([reading(5.0, 7.0)] * 6) == []


def test_a_policy_that_evicts_is_found() -> None:
    evicting = ServerMemory(1, 100, 0, "allkeys-lru")
    assert statuses([seen(memory=evicting)]) == [("eviction", "", "fail")]
    assert found([seen(memory=ServerMemory(1, 100, 0, ""))]) == []  # it is hidden


def test_old_entries_that_nobody_finishes_are_found() -> None:
    def aged(name: str, seconds: float) -> list[tuple[str, str, str]]:
        return statuses([seen(stream(name, group(oldest_unacked_age_seconds=seconds)))], UNRATED)

    assert aged(LIVE, 59.0) == aged(BACKFILL, 3_600.0) == []
    assert aged(LIVE, 60.0) == [("oldest", LIVE, "warn")]
    assert aged(LIVE, 600.0) == [("oldest", LIVE, "fail")]


def test_a_quiet_relay_is_progress_as_long_as_its_connection_stands() -> None:
    def quiet(count: int, stands: float) -> Sample:
        return seen(workers=exporting(
            ("ingester_disconnects_total", float(count), {"reason": "idle"}),
            ("ingester_firehose_messages_total", 0.0, {}),
            ("ingester_connected_seconds_total", stands, {"host": "a"}),
        ))  # fmt: skip

    assert found([quiet(n, 55.0 * n) for n in range(9)]) == []
    # A host that accepts and closes at once gets nowhere.
    assert found([quiet(n, 0.0) for n in range(9)]) == [("no_progress", "")]


def test_back_pressure_names_the_full_stream() -> None:
    assert statuses([seen(stream(BACKFILL, length=100))]) == [("back_pressure", BACKFILL, "warn")]
    assert statuses([seen(stream(LIVE, length=100))]) == [("back_pressure", LIVE, "fail")]
    assert found([seen(stream(BACKFILL, length=99))]) == []
    waited = [seen(stream(), workers=exporting((WAITED, 3.0 * n, {}))) for n in range(3)]
    assert found(waited) == [("back_pressure", LIVE)]
    assert found(waited[:2]) == []  # three seconds in half a minute


def test_findings_are_metrics_from_the_start() -> None:
    registry = CollectorRegistry()
    metrics = FindingMetrics(registry, finding_series((LIVE, BACKFILL)))
    series = {"finding": "polluted_stream", "subject": LIVE}
    assert registry.get_sample_value("rsky_finding", series) == 0
    assert (
        registry.get_sample_value("rsky_finding", {"finding": "redis_memory", "subject": ""}) == 0
    )
    item = ("polluted_stream", LIVE)
    assert metrics.show({item: WARNS}) == [item]
    assert metrics.show({item: FAILS}) == []
    assert registry.get_sample_value("rsky_finding", series) == 2
    total = {"finding": "polluted_stream"}
    assert registry.get_sample_value("rsky_findings_total", total) == 1
    assert active_findings(registry) == active_findings(registry, FAILS) == [" ".join(item)]
    metrics.show({("redis_memory", ""): WARNS})
    assert active_findings(registry) == ["redis_memory"]
    assert active_findings(registry, FAILS) == []
    assert registry.get_sample_value("rsky_findings_total", total) == 1
