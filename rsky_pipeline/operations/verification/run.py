"""Looking at everything twice, and turning it into a report."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.embedded.locations import data_directory, embedded_stores
from rsky_pipeline.health import rules
from rsky_pipeline.health.conditions import diagnose
from rsky_pipeline.health.rules import RuleVerdict, Status, judged
from rsky_pipeline.health.samples import Exported, Sample, SampleWindow
from rsky_pipeline.health.self_check import expectations
from rsky_pipeline.operations.cleaning import sample_stream
from rsky_pipeline.operations.dead_letters import LETTER_STREAMS
from rsky_pipeline.operations.deployment.journal import interrupted
from rsky_pipeline.operations.scrape import Scrape, scrape, targets
from rsky_pipeline.operations.stream_figures import Measurement, between, measure
from rsky_pipeline.operations.verification import checks
from rsky_pipeline.operations.verification.outside import (
    ask_relays,
    check_database,
    check_redis_settings,
    check_relays,
    open_store,
)
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import StoreRejectedError, StoreUnavailableError
from rsky_pipeline.streams.names import FIREHOSE_LIVE

SCHEMA_VERSION = 1
_PAGE_ENTRIES = 1_000  # the newest of the live stream
_ORDER: tuple[Status, ...] = ("fail", "warn", "skip", "pass")  # worst first


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """All checks of one verification; `time` is the end of its window, in seconds since 1970.

    `nothing_runs`: neither a supervisor nor a worker answers, which each process's check says too.
    """

    time: float
    window_seconds: float
    checks: tuple[RuleVerdict, ...]
    nothing_runs: bool = False

    @property
    def status(self) -> Status:
        """Return the worst status: fail, warn, or pass."""
        found = {check.status for check in self.checks}
        return "fail" if "fail" in found else "warn" if "warn" in found else "pass"

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings are no failure."""
        return self.status != "fail"

    def of(self, status: Status) -> list[RuleVerdict]:
        """Return the checks with a status."""
        return [check for check in self.checks if check.status == status]

    def find(self, name: str) -> RuleVerdict | None:
        """Return the check with a name, or None."""
        return next((check for check in self.checks if check.check == name), None)

    def document(self) -> dict[str, Any]:
        """Return it as JSON; fields are only added while `schema_version` stays the same."""
        return {
            "schema_version": SCHEMA_VERSION,
            "status": self.status,
            "running": not self.nothing_runs,
            "time": round(self.time, 3),
            "window_seconds": round(self.window_seconds, 3),
            "counts": {
                status: len(self.of(status)) for status in ("pass", "warn", "fail", "skip")
            },
            "checks": [
                {
                    "name": check.check, "status": check.status, "figure": check.figure,
                    "remedy": check.to_do, "value": check.value,
                }
                for check in self.checks
            ],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """Everything as it was at one moment; no measurement while Redis does not answer."""

    sample: Sample
    scrapes: tuple[Scrape, ...]
    measured: Measurement | None = None
    problem: str = ""


def verify(
    settings: Settings,
    window: float = 30.0,
    *,
    roles: Sequence[str] = ROLE_NAMES,
    on_progress: Callable[[str], None] = lambda step: None,
    sleep: Callable[[float], None] = time.sleep,
) -> VerificationReport:
    """Check a running pipeline over a window of seconds; an unreachable part is a failed check.

    `settings` went through `resolve_directories` and `store_urls`; `roles` are those that have to
    run here. Blocking, and not for use within a trio loop.
    """
    on_progress("looking at processes and streams")
    before = look(settings)
    if nothing_answers(before.scrapes):
        window = 0.0  # nothing moves
        on_progress("nothing is running")
    elif before.problem:
        window = 0.0  # nor can it be seen
        on_progress("Redis does not answer")
    else:
        on_progress(f"measuring for {window:.0f} s")
    sleep(window)
    after = look(settings, before, redis=not before.problem)
    on_progress("asking database and relays")
    found = _worst(
        [
            *compare(settings, before, after, roles),
            *check_outside(settings, roles, redis=not after.problem),
            *check_deployment(settings),
        ]
    )
    return VerificationReport(time.time(), window, tuple(found), nothing_answers(after.scrapes))


def nothing_answers(scrapes: Sequence[Scrape]) -> bool:
    """Return whether the workers are assumed ones only, of which none answers."""
    return bool(scrapes) and all(
        each.target.state == "unknown" and each.error is not None for each in scrapes
    )


def check_outside(
    settings: Settings, roles: Sequence[str], *, redis: bool = True
) -> Iterator[RuleVerdict]:
    """Check the stores, and the relays where an ingester has to run.

    `redis` is whether Redis answers: each question to one that does not would cost seconds.
    """
    if redis:
        yield from check_redis_settings(settings)
    yield from check_database(settings, redis=redis)
    if "ingester" in roles:
        yield from check_relays(ask_relays(settings))


def check_deployment(settings: Settings) -> Iterator[RuleVerdict]:
    """Name a deployment that ended in its middle; others are no check."""
    if (entry := interrupted(data_directory(settings))) is not None:
        yield judged(rules.DEPLOYMENT, "", 1, entry.describe().partition(":")[0])


def look(settings: Settings, before: Look | None = None, *, redis: bool = True) -> Look:
    """Look at processes and streams; rates are those since `before`.

    Without `redis`, at processes only: it did not answer before.
    """
    moment = time.monotonic()
    scrapes = tuple(scrape(settings, target) for target in targets(settings))
    workers = tuple(
        Exported(each.target.name, each.samples) for each in scrapes if each.error is None
    )
    sample = Sample(moment, workers=workers)
    if before is not None and not redis:
        return Look(sample, scrapes, problem=before.problem)
    try:
        with closing(open_store(settings)) as store:
            measured = _measured(store, settings, moment, before)
            inspected = sample_stream(store, FIREHOSE_LIVE, _PAGE_ENTRIES)
            letters = {
                name.removesuffix("_dlq"): store.call("XLEN", name) for name in LETTER_STREAMS
            }
    except (StoreUnavailableError, StoreRejectedError) as error:
        return Look(sample, scrapes, problem=str(error))
    sample = replace(
        sample,
        streams=tuple(item.report for item in measured.streams),
        dead_letters=letters,
        looked_at=inspected.sampled,
        misplaced=inspected.polluting,
        memory=measured.memory,
    )
    return Look(sample, scrapes, measured)


def _measured(store: Store, settings: Settings, moment: float, before: Look | None) -> Measurement:
    now = measure(store, settings, seconds=0.0)
    if before is None or before.measured is None:
        return now
    new = [item.report for item in now.streams]
    return between(store, settings, before.sample.streams, new, moment - before.sample.moment)


def compare(
    settings: Settings, before: Look, after: Look, roles: Sequence[str] = ROLE_NAMES
) -> list[RuleVerdict]:
    """Turn two looks into checks, one for each name, the worst that was found. Pure."""
    found = list(checks.check_workers(after.scrapes, roles))
    # First: where this command and a worker have one verdict, the worker's has the reason.
    found += checks.check_findings(after.scrapes)
    if before.measured is None or after.measured is None:
        problem = before.problem or after.problem
        remedy = rules.START_PIPELINE if embedded_stores(settings)[0] else ""
        return _worst([RuleVerdict(rules.REDIS, "", "fail", problem, remedy=remedy), *found])
    window = SampleWindow([before.sample, after.sample], expectations(settings))
    diagnosed = (_suspected(each) for each in diagnose(window))
    found += [each for each in diagnosed if each.status != "pass" or _is_shown(each)]
    found += checks.check_figures(window, after.measured)
    return _worst(found)


def _worst(found: Sequence[RuleVerdict]) -> list[RuleVerdict]:
    """Return the worst verdict of each check: a worker and this command may judge the same."""
    worst: dict[str, RuleVerdict] = {}
    for each in found:
        known = worst.setdefault(each.check, each)
        if _ORDER.index(each.status) < _ORDER.index(known.status):
            worst[each.check] = each
    return list(worst.values())


def _suspected(found: RuleVerdict) -> RuleVerdict:
    """Warn of a group that stood still, also where the window is too short to be certain.

    A worker goes on watching until it is certain; `verify` has one answer, and must not keep silent
    about an indexer that has just stopped reading.
    """
    if found.rule is rules.CONSUMER_STALL and found.status == "skip":
        return replace(found, status="warn")
    return found


def _is_shown(found: RuleVerdict) -> bool:
    """Return whether a rule is a check of its own also while nothing is wrong."""
    return bool(found.rule.check or found.alias)
