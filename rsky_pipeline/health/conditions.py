"""The conditions of the watched rules: samples in, diagnoses out. Pure.

Each function evaluates one condition and yields a verdict for each subject with enough data,
including good ones. Workers run all of them over the samples of the last minutes, `verify` over the
two samples of its window, beside the findings of the workers. A window that is too short for a rule
yields "skip" or nothing, and never "pass".
"""

from collections.abc import Callable, Iterator, Sequence

from rsky_pipeline.configuration.topology import FIREHOSE_BACKFILL, FIREHOSE_LIVE
from rsky_pipeline.health import rules
from rsky_pipeline.health.rules import Rule, RuleVerdict, judged
from rsky_pipeline.health.samples import Sample, SampleWindow
from rsky_pipeline.streams.lag import StreamReport

LISTING = "listing"  # the check of all listings together
Condition = Callable[[SampleWindow], Iterator[RuleVerdict]]

# Activities that may retry for ever: the counters of tries and failures, and those of progress.
# A listing is a loop for each host and source, see `_listings`.
_LOOPS: dict[str, tuple[tuple[tuple[str, dict[str, str]], ...], tuple[str, ...]]] = {
    "appending to Redis": (
        (("ingester_store_retries_total", {"action": "unavailable"}),
         ("ingester_store_retries_total", {"action": "rejected"})),
        ("ingester_stream_events_total", "ingester_labels_written_total",
         "ingester_backfill_repos_written_total"),
    ),
    "connecting to relays": (
        (("ingester_disconnects_total", {}),),
        ("ingester_firehose_messages_total", "ingester_labeler_events_total",
         "ingester_connected_seconds_total"),
    ),
    "fetching repos": (
        (("backfiller_repos_failed_total", {}),),
        ("backfiller_repos_processed_total", "backfiller_repos_dead_lettered_total"),
    ),
    "applying batches": (
        (("indexer_unexpected_errors_total", {}),),
        ("indexer_batches_total",),
    ),
}  # fmt: skip
_FAILURES, _PAGES = "ingester_listing_failures_total", "ingester_listing_pages_total"
_SKIPS, _DONE = "ingester_backfill_cursor_skips_total", "ingester_listing_done"
_WAITED, _LAG = "ingester_backpressure_seconds_total", "ingester_event_lag_seconds"
_MESSAGES, _CURSOR = "ingester_firehose_messages_total", "ingester_cursor_seq"
_STALE, _EVENTS = "indexer_stale_writes_total", "indexer_batch_events_sum"
_INDEXED_LAG = "indexer_event_lag_seconds"
_MISPLACED = "indexer_misplaced_events_total"
# The metrics that a worker reads of itself.
METRICS = (
    *(name for tried, done in _LOOPS.values() for name in (*(each for each, _ in tried), *done)),
    *(_FAILURES, _PAGES, _SKIPS, _DONE, _WAITED, _LAG, _MESSAGES, _CURSOR, _STALE, _EVENTS),
    *(_MISPLACED, _INDEXED_LAG),
)


def diagnose(window: SampleWindow) -> Iterator[RuleVerdict]:
    """Yield the verdicts of all conditions at the last sample of a window."""
    for condition in CONDITIONS.values():
        yield from condition(window)


def _memory(window: SampleWindow) -> Iterator[RuleVerdict]:
    memory = window.now.memory
    if memory is None:
        return
    used = f"{memory.used / 1e6:,.1f}"
    if memory.share is None:
        figure = f"{used} MB used, no maxmemory is set"
        yield RuleVerdict(rules.REDIS_MEMORY, "", "pass", figure, memory.used)
        return
    figure = f"{used} of {memory.limit / 1e6:,.1f} MB ({memory.share:.0%})"
    yield judged(rules.REDIS_MEMORY, "", memory.share, figure)


def _eviction(window: SampleWindow) -> Iterator[RuleVerdict]:
    memory = window.now.memory
    if memory is not None and memory.policy not in ("", "noeviction"):
        yield judged(rules.EVICTION, "", 1, f"maxmemory-policy is {memory.policy}")


def _ages(window: SampleWindow) -> Iterator[RuleVerdict]:
    for stream in window.now.streams:
        for group in stream.groups:
            age = group.oldest_unacked_age_seconds
            figure = f"the oldest entry that {group.name} has not finished is {age:,.1f} s old"
            yield judged(rules.OLDEST, stream.name, age, figure)


def _metrics(window: SampleWindow) -> Iterator[RuleVerdict]:
    missing = window.now.missing_metrics
    if missing:
        yield judged(rules.MISSING_METRICS, "", len(missing), ", ".join(missing))


def _polluted(window: SampleWindow) -> Iterator[RuleVerdict]:
    """Find misplaced entries in the live stream: by sampling it, or counted by an indexer."""
    now, then = window.now, window.over(rules.POLLUTED.seconds)
    met = window.grown(then, _MISPLACED)
    figure = (
        f"{now.misplaced:,} of the newest {now.looked_at:,} entries are repo events, and indexers "
        f"met {met:,.0f}"
    )
    if now.looked_at or now.values(_MISPLACED):
        yield judged(rules.POLLUTED, FIREHOSE_LIVE, now.misplaced + met, figure)


def _rate(window: SampleWindow) -> Iterator[RuleVerdict]:
    """Compare the rate of the live stream with the expected band.

    A higher rate is right while the ingester catches up. A lower one while it is held up has a
    finding of its own, `HELD_UP`.
    """
    band, why_not = window.expected.band, window.expected.why_no_band
    if band is None and not why_not:
        return
    then = window.before(rules.RATE.seconds)
    new = window.now.stream(FIREHOSE_LIVE)
    old = then.stream(FIREHOSE_LIVE) if then else None
    if then is None or new is None or old is None:
        why = f"not known: it takes {rules.RATE.seconds:.0f} s to measure it"
        yield RuleVerdict(rules.RATE, "", "skip", why)
        return
    if not (old.counts_added and new.counts_added) or new.added < old.added:
        why = "not known: the stream was begun anew, or Redis is older than 7"
        yield RuleVerdict(rules.RATE, "", "skip", why)
        return
    seconds = window.now.moment - then.moment
    rate = (new.added - old.added) / seconds
    if band is None:
        yield RuleVerdict(rules.RATE, "", "skip", f"{why_not} ({rate:,.1f}/s)", rate)
        return
    low, high = band
    figure = f"{rate:,.1f} events/s over {seconds:.0f} s, expected {low:,.0f} to {high:,.0f}"
    lag = max(window.now.values(_LAG), default=0.0)
    outside = not low <= rate <= high
    if rate > high and lag > rules.CATCHING_UP_SECONDS:
        outside, figure = False, f"{figure}; it catches up with {lag:,.0f} s"
    if rate < low and rules.HELD_UP.verdict(_held_share(window)) != "pass":
        outside, figure = False, f"{figure}; reading was held up"
    yield RuleVerdict(rules.RATE, "", rules.RATE.verdict(float(outside)), figure, rate)


def _stale(window: SampleWindow) -> Iterator[RuleVerdict]:
    """Find backfilled states that are older than the stored ones.

    Live events do not count: they are stale whenever their repo was fetched before they were read.
    While they are caught up with, as after an installation that began at a relay's oldest event,
    they overtake the history that waits behind them, and nothing is judged.
    """
    rule, then = rules.STALE_WRITES, window.over(rules.STALE_WRITES.seconds)
    stale = window.grown(then, _STALE, stream=FIREHOSE_BACKFILL)
    events = window.grown(then, _EVENTS, stream=FIREHOSE_BACKFILL)
    if window.now.values(_STALE, stream=FIREHOSE_BACKFILL):
        share = stale / events if events and stale >= rule.least else 0.0
        figure = f"{stale:,.0f} writes of older states were refused, of {events:,.0f} events"
        lag = max(window.now.values(_INDEXED_LAG, stream=FIREHOSE_LIVE), default=0.0)
        if lag >= rules.CATCHING_UP_SECONDS:
            share, figure = 0.0, f"{figure}; live events are {lag:,.0f} s behind"
        yield judged(rule, FIREHOSE_BACKFILL, share, figure)


def _progress(window: SampleWindow) -> Iterator[RuleVerdict]:
    """Find activities that retry without progress."""
    for name, (tried, done) in _LOOPS.items():
        yield from _loop(
            window, name,
            lambda sample, tried=tried: sum(sample.total(each, **labels) for each, labels in tried),  # type: ignore[misc]
            lambda sample, done=done: sum(sample.total(each) for each in done),  # type: ignore[misc]
        )  # fmt: skip
    yield from _listings(window)


def _listings(window: SampleWindow) -> Iterator[RuleVerdict]:
    """Judge each listing separately, so that one with progress cannot hide one without.

    A finished listing is skipped: it only retries the ranges that its host cannot list.
    """
    stuck = []
    for _, labels, done in window.now.series(_DONE):
        if not done:
            name = f"{labels['source']} of {labels['host']}"
            stuck += list(_loop(
                window, name,
                lambda sample, labels=labels: sample.total(_FAILURES, **labels),  # type: ignore[misc]
                lambda sample, labels=labels: (  # type: ignore[misc]
                    sample.total(_PAGES, **labels) + sample.total(_SKIPS)
                ),
            ))  # fmt: skip
    if stuck:
        figure = "; ".join(each.figure for each in stuck)
        yield RuleVerdict(rules.NO_PROGRESS, "", "fail", figure, stuck[0].value, LISTING)
    elif window.now.values(_PAGES):
        failed = window.grown(window.first, _FAILURES)
        pages = window.grown(window.first, _PAGES)
        figure = f"{failed:,.0f} failed requests, {pages:,.0f} pages listed"
        yield RuleVerdict(rules.NO_PROGRESS, "", "pass", figure, failed, LISTING)


def _loop(
    window: SampleWindow,
    name: str,
    tried: Callable[[Sample], float],
    done: Callable[[Sample], float],
) -> Iterator[RuleVerdict]:
    rule, now = rules.NO_PROGRESS, window.now
    oldest = window.over(rules.LOOP_SECONDS).moment
    recent = [(item, tried(item), done(item)) for item in window.samples if item.moment >= oldest]
    _, tries_now, done_now = recent[-1]
    before = [tries for _, tries, came in recent if came != done_now]
    began, first = next((item, tries) for item, tries, came in recent if came == done_now)
    seconds = now.moment - began.moment
    # Back-off spaces the tries, so those right after the last progress count too.
    tries = tries_now - (before[-1] if before else first)
    if tries_now > first and seconds >= rule.seconds and rule.verdict(tries) == "fail":
        figure = f"{name}: {tries:,.0f} tries in {seconds:.0f} s and no progress"
        yield RuleVerdict(rule, "", "fail", figure, tries)


def _cursor(window: SampleWindow) -> Iterator[RuleVerdict]:
    now, then = window.now, window.before(rules.CURSOR_STUCK.seconds)
    if then is None or not (now.values(_CURSOR) and then.values(_CURSOR)):
        return
    cursor = now.total(_CURSOR, stream=FIREHOSE_LIVE)
    stands = cursor == then.total(_CURSOR, stream=FIREHOSE_LIVE)
    messages, held = window.grown(then, _MESSAGES), window.grown(then, _WAITED)
    figure = f"{messages:,.0f} messages and the cursor is {cursor:.0f}"
    stuck = stands and messages > 0 and held <= 0
    yield RuleVerdict(rules.CURSOR_STUCK, "", rules.CURSOR_STUCK.verdict(float(stuck)), figure)


def _back_pressure(window: SampleWindow) -> Iterator[RuleVerdict]:
    for stream in window.now.streams:
        mark = window.expected.marks.get(stream.name)
        if mark:
            figure = f"{stream.length:,} entries, the high-water mark is {mark:,}"
            verdict = rules.BACK_PRESSURE.verdict(stream.length / mark, stream.name)
            yield RuleVerdict(
                rules.BACK_PRESSURE, stream.name, verdict, figure, stream.length
            )  # fmt: skip


def _held_up(window: SampleWindow) -> Iterator[RuleVerdict]:
    rule = rules.HELD_UP
    if window.now.values(_WAITED):
        held = window.grown(window.over(rule.seconds), _WAITED)
        figure, status = f"reading was held up for {held:,.1f} s", rule.verdict(_held_share(window))
        yield RuleVerdict(rule, FIREHOSE_LIVE, status, figure, held, rule.check)


def _held_share(window: SampleWindow) -> float:
    """Return the share of time for which reading was held up, as if history were never short."""
    then = window.over(rules.HELD_UP.seconds)
    seconds = max(window.now.moment - then.moment, rules.HELD_UP.seconds)
    return window.grown(then, _WAITED) / seconds


def _stalls(window: SampleWindow) -> Iterator[RuleVerdict]:
    for stream in window.now.streams:
        for group in stream.groups:
            limit = rules.CONSUMER_STALL.limits_of(stream.name).fail or 0.0
            then = window.over(limit)
            before = then.group(stream.name, group.name)
            seconds = window.now.moment - then.moment
            stands = (
                before is not None
                and before.lag > 0
                and group.lag > 0
                and before.last_delivered_id == group.last_delivered_id
            )
            verdict = rules.CONSUMER_STALL.verdict(seconds if stands else 0.0, stream.name)
            figure = f"{group.name} is given entries, {group.lag:,} wait"
            if stands:
                figure = f"{group.lag:,} wait for {group.name}, none delivered for {seconds:.0f} s"
            if stands and verdict == "pass":
                verdict, figure = "skip", f"{figure}: it takes {limit:.0f} s to judge it"
            yield RuleVerdict(rules.CONSUMER_STALL, stream.name, verdict, figure, group.lag)


def _removed(window: SampleWindow) -> Iterator[RuleVerdict]:
    for stream in window.now.streams:
        for group in stream.groups:
            first, pending = stream.first_id, group.oldest_pending_id
            if pending and (first is None or _number(pending) < _number(first)):
                figure = f"{pending} of {group.name}"
                yield judged(rules.PENDING_WITHOUT_BODY, stream.name, 1, figure)
            reports = [sample.stream(stream.name) for sample in window.samples]
            count = _newly_removed(reports, group.name)
            if count:
                figure = f"{count:,} removed before {group.name} read them"
                yield judged(rules.UNREAD_REMOVED, stream.name, count, figure)


def _newly_removed(reports: Sequence[StreamReport | None], group: str) -> int:
    """Return how many entries at least were removed before they were delivered to the group.

    Since the group's read counter fell back for the last time: Redis 7.0 does not replicate it, so
    a promoted replica has the one of when it began to copy, and all that was read since would
    count as removed.
    """
    counters = [_counters(report, group) for report in reports]
    if counters[-1] is None:
        return 0
    first = removed = 0
    before: int | None = None
    for gone, read in filter(None, counters):
        removed = max(0, gone - read)
        if before is None or read < before:
            first = removed
        before = read
    return max(0, removed - first)


def _counters(stream: StreamReport | None, group: str) -> tuple[int, int] | None:
    """Return the entries removed from the stream, and those that the group read; None: unknown."""
    found = stream.group(group) if stream else None
    if stream is None or found is None or found.read is None or not stream.counts_added:
        return None
    return stream.added - stream.length, found.read


def _number(entry_id: str) -> tuple[int, int]:
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence or 0)


# The condition of each watched rule; some have two rules.
CONDITIONS: dict[tuple[Rule, ...], Condition] = {
    (rules.REDIS_MEMORY,): _memory,
    (rules.EVICTION,): _eviction,
    (rules.OLDEST,): _ages,
    (rules.MISSING_METRICS,): _metrics,
    (rules.POLLUTED,): _polluted,
    (rules.RATE,): _rate,
    (rules.STALE_WRITES,): _stale,
    (rules.NO_PROGRESS,): _progress,
    (rules.CURSOR_STUCK,): _cursor,
    (rules.BACK_PRESSURE,): _back_pressure,
    (rules.HELD_UP,): _held_up,
    (rules.CONSUMER_STALL,): _stalls,
    (rules.UNREAD_REMOVED, rules.PENDING_WITHOUT_BODY): _removed,
}
