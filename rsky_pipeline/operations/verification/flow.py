"""Checks of what the workers did in the window, by their own counters. Pure."""

from collections.abc import Iterator, Sequence

from rsky_pipeline.operations.scrape import Scrape
from rsky_pipeline.operations.stream_figures import Measurement
from rsky_pipeline.operations.verification.report import Check, passed, skipped
from rsky_pipeline.operations.verification.streams import OLD_SECONDS, TOO_OLD_SECONDS
from rsky_pipeline.streams.names import FIREHOSE_LIVE, REPO_STREAMS


class Counters:
    """What the workers counted between two scrapes."""

    def __init__(self, before: Sequence[Scrape], after: Sequence[Scrape]) -> None:
        self._before = {scrape.target.name: scrape for scrape in before}
        self._after = [scrape for scrape in after if scrape.error is None]

    def grown(self, name: str, **labels: str) -> float:
        """Return by how much a counter grew, over all workers; one that restarted began at 0."""
        total = 0.0
        for scrape in self._after:
            new = scrape.value(name, **labels) or 0.0
            earlier = self._before.get(scrape.target.name)
            old = (earlier.value(name, **labels) if earlier else None) or 0.0
            total += new - old if new >= old else new
        return total

    def largest(self, name: str, **labels: str) -> float | None:
        """Return the greatest value of a gauge at the end, None where no worker has it."""
        found = [value for scrape in self._after
                 if (value := scrape.value(name, **labels)) is not None]  # fmt: skip
        return max(found, default=None)

    def series(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return the values of every series at the end, the greatest over all workers."""
        result: dict[tuple[tuple[str, str], ...], float] = {}
        for scrape in self._after:
            for labels, value in scrape.samples.get(name, {}).items():
                result[labels] = max(value, result.get(labels, value))
        return result


def check_latency(counters: Counters) -> Check:
    """Check how old the newest event was when it was indexed."""
    name = "latency"
    if not counters.grown("indexer_batch_events_count", stream=FIREHOSE_LIVE):
        return skipped(name, "no live event was indexed in the window")
    lag = counters.largest("indexer_event_lag_seconds", stream=FIREHOSE_LIVE) or 0.0
    figure = f"the newest indexed event was {lag:,.1f} s old"
    if lag > TOO_OLD_SECONDS:
        return Check(name, "fail", figure, "see the lag of ingester and indexer", lag)
    if lag > OLD_SECONDS:
        return Check(name, "warn", figure, "wait until it has caught up", lag)
    return passed(name, figure, lag)


def check_backfill(counters: Counters, measured: Measurement) -> Check:
    """Check that repos are fetched while some wait."""
    waiting = sum(
        group.report.lag + group.report.pending
        for stream in REPO_STREAMS
        for group in measured.stream(stream).groups
    )
    finished = counters.grown("backfiller_repos_processed_total")
    figure = f"{finished:,.0f} repos finished in the window, {waiting:,} wait"
    if not waiting or finished:
        return passed("backfill", figure, finished)
    return Check("backfill", "warn", figure,
                 "see backfiller_failures_total by reason and the backfiller's log", 0)  # fmt: skip


def check_errors(counters: Counters) -> Iterator[Check]:
    """Check for loops that only fail, and tell how many stale writes were refused."""
    stale = counters.grown("indexer_record_changes_total", outcome="stale")
    yield passed("stale_writes", f"{stale:,.0f} writes of older states were refused", stale)
    yield _check_listings(counters)
    rejected = counters.grown("ingester_store_retries_total", action="rejected")
    if rejected:
        yield Check("appends", "fail", f"{rejected:,.0f} appends were refused by Redis",
                    "see the ingester's log", rejected)  # fmt: skip
    unexpected = counters.grown("indexer_unexpected_errors_total")
    if unexpected:
        yield Check("indexer_errors", "warn", f"{unexpected:,.0f} failures of stores or code",
                    "see the indexer's log", unexpected)  # fmt: skip
    else:
        yield passed("indexer_errors", "none in the window", 0)


def check_back_pressure(counters: Counters) -> Check:
    """Check that reading the relays is not held up."""
    held = counters.grown("ingester_backpressure_seconds_total")
    if held > 1:
        return Check("back_pressure", "warn", f"reading was held up for {held:,.1f} s",
                     "consumers do not keep up, or Redis is near its limit", held)  # fmt: skip
    return passed("back_pressure", "reading was not held up", held)


def _check_listings(counters: Counters) -> Check:
    failed = counters.grown("ingester_listing_failures_total")
    listed = counters.grown("ingester_backfill_repos_fetched_total")
    # At the end of a listing only the repos are tried again that its host cannot list.
    going_on = [dict(labels) for labels, done in counters.series("ingester_listing_done").items()
                if not done]  # fmt: skip
    stuck = [
        labels["host"]
        for labels in going_on
        if counters.grown("ingester_listing_failures_total", **labels) > 1
        and not counters.grown("ingester_listing_pages_total", **labels)
    ]
    figure = f"{failed:,.0f} failed requests, {listed:,.0f} repos listed"
    if not stuck:
        return passed("listing", figure, failed)
    figure = f"{figure}, none by {', '.join(sorted(set(stuck)))}"
    return Check("listing", "fail", figure,
                 "the relay fails on one page again and again: see the ingester's log for the "
                 "cursor, or set enumerate_repos to false", failed)  # fmt: skip
