"""The rules of self-detection: what is found, and what is not, from made-up histories."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from rsky_pipeline.observability.findings import (
    KINDS,
    Finding,
    FindingMetrics,
    active_findings,
)
from rsky_pipeline.observability.rules import (
    GroupSample,
    History,
    Limits,
    Loop,
    Sample,
    StreamSample,
    Written,
)

LIVE, BACKFILL = "firehose_live", "firehose_backfill"
LIMITS = Limits((LIVE,), LIVE, 100.0, 3_000.0)


def stream(name: str = LIVE, *groups: GroupSample, **values: int | str | None) -> StreamSample:
    return replace(StreamSample(name, 0, 0, "1-0", groups=groups), **values)  # type: ignore[arg-type]


def group(**values: int | str | None) -> GroupSample:
    return replace(GroupSample("g", 0, 0, "5-0"), **values)  # type: ignore[arg-type]


def found(samples: Sequence[Sample], limits: Limits = LIMITS) -> list[tuple[str, str]]:
    history, result = History(limits), list[Finding]()
    for number, sample in enumerate(samples):
        result = history.observe(replace(sample, moment=5.0 * number))
    assert {item.kind for item in result} <= set(KINDS)
    return [(item.kind, item.subject) for item in result]


def rates(per_second: float, count: int = 4, lag_seconds: float = 0.0) -> list[Sample]:
    return [
        Sample(0.0, (stream(added=int(5 * per_second * n)),), lag_seconds=lag_seconds)
        for n in range(count)
    ]


def test_nothing_is_wrong_with_a_quiet_worker() -> None:
    assert found([Sample(0.0)] * 20) == []
    assert found(rates(1_000.0)) == []


def test_repo_events_are_seen_in_the_stream_and_by_the_indexer() -> None:
    seen = Sample(0.0, (stream(misplaced=3, added=10_000),))
    assert found([seen], Limits((LIVE,), LIVE)) == [("polluted_stream", LIVE)]
    met = [Sample(0.0, written=(Written(LIVE, 100.0, 0.0, n),)) for n in (7.0, 7.0, 8.0)]
    assert found(met) == [("polluted_stream", LIVE)]
    assert found(met[:2]) == []  # what was met before the history began is over
    assert found([*met, *met[2:] * 7]) == []


@pytest.mark.parametrize(
    ("rate", "lag", "expected"), [(4_658.0, 1.0, True), (5.0, 1.0, True), (5_000.0, 900.0, False)]
)
def test_a_rate_out_of_the_band(rate: float, lag: float, expected: bool) -> None:
    assert (("rate_out_of_band", "") in found(rates(rate, lag_seconds=lag))) is expected
    assert found(rates(rate, count=2)) == []  # too short to tell
    assert found([Sample(0.0, (stream(added=-1),))] * 5) == []  # the server does not count


def test_no_rate_is_expected_while_reading_is_held_up() -> None:
    held = [replace(s, waited_seconds=0.5 * n) for n, s in enumerate(rates(0.0, 6))]
    assert found(held) == []


def test_much_old_history_is_told_and_a_little_or_live_events_are_not() -> None:
    def written(stale: float, stream: str = BACKFILL) -> list[Sample]:
        return [Sample(0.0, written=(Written(stream, 100.0 * n, stale * n, 0.0),))
                for n in range(4)]  # fmt: skip

    assert found(written(30.0, LIVE)) == []
    assert found(written(30.0)) == [("stale_writes", BACKFILL)]
    assert found(written(5.0)) == []


def test_a_loop_that_only_fails_is_found_and_one_that_moves_is_not() -> None:
    """The third incident: one page of listRepos fails for ever."""
    failing = [Sample(0.0, loops=(Loop("listing repos", n, 1_000.0),)) for n in range(7)]
    assert found(failing) == [("no_progress", "")]
    assert found(failing[:3]) == []
    moving = [Sample(0.0, loops=(Loop("listing repos", n, 1_000.0 + n // 3),)) for n in range(7)]
    assert found(moving) == []
    assert found(failing + failing[-1:] * 25) == []  # it is not tried any more


def test_a_loop_is_found_although_waits_grow_and_others_move() -> None:
    tries = (0, 4, 4, 5, 5, 5)  # the first ones within seconds, then one wait of half a minute
    slower = [
        Sample(0.0, loops=(Loop("a", 0, 30.0 * n), Loop("b", tried, 9.0 if n else 8.0)))
        for n, tried in enumerate(tries)
    ]
    assert found(slower) == [("no_progress", "")]
    assert found(slower[:3]) == []  # it may have moved after the tries, and none failed since
    ended = [*slower, Sample(0.0, loops=(Loop("a", 0, 500.0),))]
    assert found(ended) == []


def test_missing_metrics_and_memory_are_found_at_once() -> None:
    assert found([Sample(0.0, missing_metrics=("a",))]) == [("missing_metrics", "")]
    assert found([Sample(0.0, memory_used=76, memory_limit=100)]) == [("redis_memory", "")]
    assert found([Sample(0.0, memory_used=76, memory_limit=0)]) == []


@pytest.mark.parametrize(("name", "looks"), [(LIVE, 5), (BACKFILL, 25)])
def test_entries_that_wait_must_be_delivered(name: str, looks: int) -> None:
    waiting = [Sample(0.0, (stream(name, group(lag=9)),))] * looks
    limits = Limits((LIVE,), LIVE)
    assert found(waiting, limits) == [("consumer_stall", name)]
    assert found(waiting[:-1], limits) == []
    moving = [Sample(0.0, (stream(name, group(lag=9, position=f"{n}-0")),)) for n in range(looks)]
    assert found(moving, limits) == []


def test_removed_entries_that_nobody_had_read_are_told_for_a_while() -> None:
    limits = Limits((LIVE,), LIVE)
    before = Sample(0.0, (stream(LIVE, group(read=5), length=10, added=15),))
    after = Sample(0.0, (stream(LIVE, group(read=5), length=3, added=15),))
    assert found([before, after], limits) == [("unread_removed", LIVE)]
    assert found([before, after] + [after] * 60, limits) == []
    # What every group has read may go, and what the server does not know is not judged.
    read = Sample(0.0, (stream(LIVE, group(read=15), length=0, added=15),))
    unknown = Sample(0.0, (stream(LIVE, group(), length=0, added=15),))
    assert found([before, read], limits) == found([before, unknown], limits) == []


def test_pending_entries_without_a_body_are_found() -> None:
    limits = Limits((LIVE,), LIVE)
    cut = Sample(0.0, (stream(LIVE, group(pending=1, oldest_pending="3-0"), first_id="4-0"),))
    assert found([cut], limits) == [("pending_without_body", LIVE)]
    empty = Sample(0.0, (stream(LIVE, group(pending=1, oldest_pending="3-0"), first_id=None),))
    assert found([empty], limits) == [("pending_without_body", LIVE)]
    good = Sample(0.0, (stream(LIVE, group(pending=1, oldest_pending="10-0"), first_id="9-0"),))
    assert found([good], limits) == []


def test_a_cursor_must_move_while_messages_come() -> None:
    stuck = [Sample(0.0, messages=100.0 * n, cursor=7.0) for n in range(6)]
    assert found(stuck) == [("cursor_stuck", "")]
    held = [replace(s, waited_seconds=0.1 * n) for n, s in enumerate(stuck)]
    assert found(held) == []
    assert found([replace(s, cursor=float(n)) for n, s in enumerate(stuck)]) == []
    assert found([replace(s, messages=5.0) for s in stuck]) == []


def test_back_pressure_names_the_full_stream() -> None:
    full = Sample(0.0, (stream(BACKFILL, length=100, mark=100),))
    assert found([full]) == [("back_pressure", BACKFILL)]
    waited = [Sample(0.0, (stream(),), waited_seconds=3.0 * n) for n in range(3)]
    assert found(waited, Limits((LIVE,), LIVE)) == [("back_pressure", LIVE)]


def test_findings_are_metrics_from_the_start() -> None:
    registry = CollectorRegistry()
    metrics = FindingMetrics(registry, (LIVE, BACKFILL))
    series = {"finding": "polluted_stream", "subject": LIVE}
    assert registry.get_sample_value("rsky_finding", series) == 0
    assert (
        registry.get_sample_value("rsky_finding", {"finding": "redis_memory", "subject": ""}) == 0
    )
    item = Finding("polluted_stream", LIVE, "3 repo events")
    assert metrics.show([item]) == [item]
    assert metrics.show([item]) == []
    assert registry.get_sample_value("rsky_finding", series) == 1
    total = {"finding": "polluted_stream"}
    assert registry.get_sample_value("rsky_findings_total", total) == 1
    assert active_findings(registry) == [f"polluted_stream {LIVE}"]
    metrics.show([])
    assert active_findings(registry) == []
    assert registry.get_sample_value("rsky_findings_total", total) == 1
