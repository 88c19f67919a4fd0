"""Looking at everything twice, and turning it into a report."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from rsky_pipeline.configuration.expectations import expected_band
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.operations.inspection import Inspection, sample_stream
from rsky_pipeline.operations.scrape import Scrape, scrape, targets
from rsky_pipeline.operations.stream_figures import Measurement, between, measure
from rsky_pipeline.operations.verification import flow, streams
from rsky_pipeline.operations.verification.database import check_database
from rsky_pipeline.operations.verification.relay import ask_relays, check_relays
from rsky_pipeline.operations.verification.report import Check, Report
from rsky_pipeline.operations.verification.workers import check_workers
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.names import FIREHOSE_LIVE

_SAMPLE = 1_000  # newest entries of the live stream that are looked at


@dataclass(frozen=True, slots=True)
class Look:
    """Everything as it was at one moment; no measurement while Redis does not answer."""

    moment: float
    scrapes: tuple[Scrape, ...]
    measured: Measurement | None = None
    sample: Inspection | None = None
    problem: str = ""


def verify(
    settings: Settings,
    window: float = 30.0,
    *,
    roles: Sequence[str] = ROLE_NAMES,
    on_progress: Callable[[str], None] = lambda step: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Check a running pipeline over a window of seconds; what cannot be reached is a failed check.

    `settings` went through `resolve_directories` and `store_urls`; `roles` are those that have to
    run here. Blocking, and not for use within a trio loop.
    """
    on_progress("looking at processes and streams")
    before = look(settings)
    on_progress(f"measuring for {window:.0f} s")
    sleep(window)
    after = look(settings, before)
    on_progress("asking database and relays")
    checks = [*compare(settings, before, after, roles), *check_database(settings)]
    if "ingester" in roles:
        checks += check_relays(ask_relays(settings))
    return Report(time.time(), window, tuple(checks))


def look(settings: Settings, before: Look | None = None) -> Look:
    """Look at processes and streams; rates are those since `before`."""
    moment = time.monotonic()
    scrapes = tuple(scrape(settings, target) for target in targets(settings))
    try:
        with closing(connect(settings.redis_url or "", name="verify")) as store:
            measured = _measured(store, settings, moment, before)
            return Look(moment, scrapes, measured, sample_stream(store, FIREHOSE_LIVE, _SAMPLE))
    except (StoreUnavailable, StoreRejected) as error:
        return Look(moment, scrapes, problem=str(error))


def _measured(store: Store, settings: Settings, moment: float, before: Look | None) -> Measurement:
    now = measure(store, settings, seconds=0.0)
    if before is None or before.measured is None:
        return now
    old = [item.report for item in before.measured.streams]
    new = [item.report for item in now.streams]
    return between(store, settings, old, new, moment - before.moment)


def compare(
    settings: Settings, before: Look, after: Look, roles: Sequence[str] = ROLE_NAMES
) -> Iterator[Check]:
    """Turn two looks into checks. Pure."""
    yield from check_workers(after.scrapes, roles)
    counters = flow.Counters(before.scrapes, after.scrapes)
    old, new, sample = before.measured, after.measured, after.sample
    if old is None or new is None or sample is None:
        yield Check("redis", "fail", before.problem or after.problem,
                    "check redis_url and the server")  # fmt: skip
        return
    lag = counters.largest("ingester_event_lag_seconds")
    yield from streams.check_lengths(new)
    yield streams.check_rate(new, expected_band(settings), lag)
    misplaced = counters.grown("indexer_misplaced_events_total")
    yield streams.check_pollution(sample, misplaced)
    waiting = {
        item.name: max((g.report.lag + g.report.pending for g in item.groups), default=0)
        for item in old.streams
    }
    yield from streams.check_balance(waiting, new)
    yield from streams.check_stalls(old, new)
    yield from streams.check_dead_letters(old, new)
    yield from streams.check_memory(new)
    yield flow.check_latency(counters)
    yield flow.check_backfill(counters, new)
    yield flow.check_back_pressure(counters)
    yield from flow.check_errors(counters)
