"""Checks of workers, streams and counters, from figures to diagnoses. Pure."""

from collections.abc import Iterator, Sequence

from rsky_pipeline.health import rules
from rsky_pipeline.health.rules import RuleVerdict, judged, rule_of
from rsky_pipeline.health.samples import SampleWindow
from rsky_pipeline.observability.catalogue import shown_by
from rsky_pipeline.operations.scrape import Scrape, absent
from rsky_pipeline.operations.stream_figures import GroupFigures, Measurement
from rsky_pipeline.runtime.findings import found
from rsky_pipeline.streams.names import FIREHOSE_LIVE, REPO_STREAMS

_NAMED = 5  # missing metrics that are named in the figure


def check_workers(scrapes: Sequence[Scrape], roles: Sequence[str]) -> Iterator[RuleVerdict]:
    """Check that every role runs, answers, is well, and exports its metrics."""
    for role in roles:
        own = [scrape for scrape in scrapes if scrape.target.role == role]
        if not own:
            yield absent(role)
        for scrape in own:
            yield _process(scrape)
            if scrape.error is None:
                yield check_metrics(scrape)


def _process(scrape: Scrape) -> RuleVerdict:
    name, health = scrape.target.name, scrape.health
    for each in scrape.target.findings:
        if each["kind"] == rules.PROCESS.name and each["verdict"] == "fail":
            remedy = each["remedy"]
            return RuleVerdict(rules.PROCESS, name, "fail", each["figure"], remedy=remedy)
    if scrape.error is not None:
        return RuleVerdict(rules.PROCESS, name, "fail", scrape.error)
    state, trouble = health.get("state"), health.get("trouble")
    if trouble:
        return RuleVerdict(rules.PROCESS, name, "fail", f"{state}: {trouble}")
    if state != "ready":
        remedy = "wait until it is ready, or see its log"
        return RuleVerdict(rules.PROCESS, name, "fail", f"is {state}", remedy=remedy)
    uptime = health.get("uptime_seconds", 0.0)
    figure = f"ready for {uptime:,.0f} s, port {scrape.target.port} answers"
    return RuleVerdict(rules.PROCESS, name, "pass", figure, uptime)


def check_metrics(scrape: Scrape) -> RuleVerdict:
    """Check that a worker exports every metric that its role declares."""
    metrics = shown_by(scrape.target.role)
    missing = [name for name, sample in metrics if not scrape.samples.get(sample)]
    figure = f"all {len(metrics)} declared metrics are exported"
    if missing:
        named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        figure = f"{len(missing)} of {len(metrics)} declared metrics are missing: {named}"
    return judged(rules.MISSING_METRICS, scrape.target.name, len(missing), figure)


def check_findings(scrapes: Sequence[Scrape]) -> Iterator[RuleVerdict]:
    """Yield the findings of workers, each under the check of its rule."""
    for scrape in scrapes:
        if scrape.error is not None:
            continue
        name, findings = scrape.target.name, found(scrape.health)
        if not findings:
            yield RuleVerdict(rules.FINDINGS, name, "pass", "it finds nothing wrong", 0)
        for each in findings:
            rule, figure = rule_of(each["finding"]), each["figure"] or each["title"]
            if rule is None:
                kind = f"{each['finding']} {each['subject']}".strip()
                yield RuleVerdict(
                    rules.FINDINGS, name, each["verdict"], f"{kind}, of another version"
                )
            else:
                about = name if rule is rules.MISSING_METRICS else each["subject"]
                yield RuleVerdict(
                    rule, about, each["verdict"], f"{figure} ({name})", remedy=each["remedy"]
                )


def check_figures(window: SampleWindow, measured: Measurement) -> Iterator[RuleVerdict]:
    """Check figures that need a window: balance, dead letters, capacity, errors."""
    yield from _balance(window, measured)
    yield from _dead_letters(window)
    yield from _capacity(measured)
    yield _latency(window)
    yield _backfill(window)
    rejected = window.grown(window.first, "ingester_store_retries_total", action="rejected")
    if rejected:
        yield judged(rules.APPENDS, "", rejected, f"{rejected:,.0f} appends were refused by Redis")
    errors = window.grown(window.first, "indexer_unexpected_errors_total")
    rate = errors / window.seconds if window.seconds else 0.0
    yield judged(rules.INDEXER_ERRORS, "", rate, f"{errors:,.0f} failures of stores or code")


def _balance(window: SampleWindow, measured: Measurement) -> Iterator[RuleVerdict]:
    """Compare input with output, for the group that is furthest behind."""
    rule = rules.BALANCE
    for stream in measured.streams:
        if not stream.groups:
            yield RuleVerdict(rule, stream.name, "skip", "nobody consumes it yet")
            continue
        group = max(stream.groups, key=_waiting)
        old = window.first.stream(stream.name)
        before = max((each.lag + each.pending for each in old.groups), default=0) if old else 0
        grown = _waiting(group) - before
        came = (stream.rate_in or 0.0) * measured.seconds
        rates = f"in {_rate(stream.rate_in)}, out {_rate(group.rate_out)}"
        figure = f"{rates}, {_waiting(group):,} wait"
        # A backlog that grew by little is only traffic.
        if grown > rule.least and came + grown > 0:
            share = grown / came if came else 1.0
            figure = f"{figure}, {grown:,} more than when the window began"
            yield judged(rule, stream.name, share, figure)
        else:
            yield RuleVerdict(rule, stream.name, "pass", figure, _waiting(group))


def _dead_letters(window: SampleWindow) -> Iterator[RuleVerdict]:
    for stream, count in window.now.dead_letters.items():
        more = max(0, count - window.first.dead_letters.get(stream, 0))
        figure = f"{count:,} dead letters, {more:,} more in the window" if count else "none"
        yield judged(rules.DEAD_LETTERS, stream, count, figure)
        if rules.DEAD_LETTERS_GROW.verdict(more) == "fail":
            yield RuleVerdict(rules.DEAD_LETTERS_GROW, stream, "fail", figure, count)


def _capacity(measured: Measurement) -> Iterator[RuleVerdict]:
    """Check whether the marks fit into the memory of Redis."""
    for advice in measured.advice():
        name, rule, fitting = advice.stream, rules.CAPACITY, advice.fitting_mark
        if advice.bytes_each is None:
            yield RuleVerdict(rule, name, "skip", advice.text)
        elif advice.mark and fitting is not None and advice.mark > fitting:
            remedy = f"a mark of {fitting:,} fits"
            yield RuleVerdict(rule, name, "warn", advice.text, fitting, remedy=remedy)
        else:
            yield RuleVerdict(rule, name, "pass", advice.text, advice.mark_hours)


def _latency(window: SampleWindow) -> RuleVerdict:
    """Check how old the newest event was when it was indexed."""
    if not window.grown(window.first, "indexer_batch_events_count", stream=FIREHOSE_LIVE):
        return RuleVerdict(rules.LATENCY, "", "skip", "no live event was indexed in the window")
    lag = max(window.now.values("indexer_event_lag_seconds", stream=FIREHOSE_LIVE), default=0.0)
    return judged(rules.LATENCY, "", lag, f"the newest indexed event was {lag:,.1f} s old")


def _backfill(window: SampleWindow) -> RuleVerdict:
    """Check that repos are finished, or records of a large one extracted, while some wait."""
    waiting = sum(
        group.lag + group.pending
        for stream in window.now.streams
        if stream.name in REPO_STREAMS
        for group in stream.groups
    )
    finished = window.grown(window.first, "backfiller_repos_processed_total")
    records = window.grown(window.first, "backfiller_records_extracted_total")
    figure = f"{finished:,.0f} repos finished in the window, {waiting:,} wait"
    status = rules.BACKFILL.verdict(0 if finished or records else waiting)
    return RuleVerdict(rules.BACKFILL, "", status, figure, finished)


def _waiting(group: GroupFigures) -> int:
    return group.report.lag + group.report.pending


def _rate(rate: float | None) -> str:
    return "?" if rate is None else f"{rate:,.1f}/s"
