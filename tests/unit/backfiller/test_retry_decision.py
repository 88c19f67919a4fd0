"""What follows from a failed attempt at a repo: wait, leave it, or a dead letter."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, get_args

import pytest

from rsky_pipeline.backfiller.attempt import (
    INVALID_ATTEMPTS,
    NEGATIVE_ATTEMPTS,
    RetryDecision,
    decide,
)
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.backfiller import FAILURE_KINDS
from rsky_pipeline.repos.repo import FailureKind, RepoError
from rsky_pipeline.streams.repo_job import (
    FetchReason,
    RepoJob,
    decode_repo_job,
    encode_repo_job,
)

SETTINGS = Settings(
    backfiller_max_attempts=5, backfiller_retry_initial_ms=1_000, backfiller_retry_max_ms=8_000
)


HOUR = 3_600


def job(**fields: Any) -> RepoJob:
    return RepoJob("did:plc:a", "", "", None, True, **fields)


def decided(
    kind: FailureKind, reason: str = "x", retry_after: float | None = None, *, now: float = 0.0,
    of_host: bool = False, mark: str = "", **fields: Any,
) -> RetryDecision:  # fmt: skip
    failure = RepoError(kind, reason, "x", retry_after, of_host=of_host, mark=mark)
    return decide(job(**fields), failure, SETTINGS, draw=lambda: 1.0, clock=lambda: now)


def run(failures: Iterable[RepoError], seconds: float = 10.0) -> tuple[str, int]:
    """Return what becomes of a job whose attempts fail so, and after how many."""
    waiting, clock = job(), itertools.count(1_000, seconds)
    count, decision = 0, None
    for failure in failures:
        count += 1
        decision = decide(waiting, failure, SETTINGS, clock=lambda: next(clock))
        if decision.action != "wait":
            break
        waiting = decode_repo_job(encode_repo_job(replace(
            waiting, attempts=decision.attempts, failing=decision.failing,
            in_row=decision.in_row, since=decision.since,
        )))  # fmt: skip
    assert decision is not None
    return decision.action, count


HOST = RepoError("transient", "server_error", "x", of_host=True)
OWN = RepoError("transient", "refused", "x")
CUT = RepoError("invalid", "truncated", "x", mark="truncated 100")
CUT_ELSEWHERE = RepoError("invalid", "truncated", "x", mark="truncated 200")
FORGED = RepoError("invalid", "bad_signature", "x")
LIMITED = RepoError("rate_limited", "rate_limited", "x", 1.0)
NOT_FOUND = RepoError("permanent", "did_not_found", "x")


def test_an_answer_about_the_account_ends_the_job_but_not_its_deletions() -> None:
    assert decided("permanent") == RetryDecision("unavailable", 1)
    assert decided("permanent", deleted=("a/b",)) == RetryDecision("dead_letter", 1)


def test_trouble_of_a_repo_is_waited_for_longer_each_time_and_then_given_up() -> None:
    found = [decided("transient", attempts=attempts) for attempts in range(5)]
    assert [each.seconds for each in found[:4]] == [1.0, 2.0, 4.0, 8.0]
    assert [each.action for each in found] == ["wait"] * 4 + ["dead_letter"]
    assert found[4].attempts == 5


def test_a_broken_repo_is_tried_less_often() -> None:
    assert run([FORGED] * 9) == ("dead_letter", INVALID_ATTEMPTS)
    assert run([CUT] * 9) == ("dead_letter", INVALID_ATTEMPTS)


@pytest.mark.parametrize(
    "failures",
    [
        [HOST, HOST, CUT],  # two bad gateways say nothing of the repo
        [OWN, OWN, CUT],
        [CUT, CUT, HOST, CUT],  # nor is a repo broken that was cut off by an ailing host
        [CUT, FORGED, CUT, FORGED],
        [CUT, CUT_ELSEWHERE, CUT, CUT_ELSEWHERE],  # at another byte each time
        [HOST] * 100,
    ],
)
def test_each_kind_of_failure_counts_its_own_in_a_row(failures: list[RepoError]) -> None:
    assert run(failures)[0] == "wait"


def test_a_rate_limit_between_two_failures_separates_nothing() -> None:
    assert run([CUT, LIMITED, CUT, LIMITED, CUT]) == ("dead_letter", 5)


def test_evidence_of_all_kinds_is_enough_in_the_end() -> None:
    assert run([CUT, FORGED] * 9) == ("dead_letter", 5)


@pytest.mark.parametrize("reason", ["did_not_found", "no_pds"])
def test_no_of_the_directory_is_asked_again_before_it_counts(reason: str) -> None:
    no = RepoError("permanent", reason, "x")
    assert run([no] * 20) == ("unavailable", NEGATIVE_ATTEMPTS)
    # With the default pauses it counts more than a minute after it was heard first.
    waiting, pauses = job(), 0.0
    for _ in range(NEGATIVE_ATTEMPTS - 1):
        found = decide(waiting, no, Settings(), draw=lambda: 0.0)
        waiting = replace(waiting, attempts=found.attempts, failing=found.failing,
                          in_row=found.in_row)  # fmt: skip
        pauses += found.seconds
    assert pauses > 60


def test_an_account_that_has_no_key_yet_is_asked_for_again() -> None:
    no_key = RepoError("invalid", "no_key", "x")
    assert run([no_key] * 20)[1] > INVALID_ATTEMPTS


def test_a_host_that_fails_for_everybody_is_waited_for_and_counts_no_attempt() -> None:
    found = decided("transient", of_host=True, attempts=4, failing="host", in_row=99, since=1)
    assert found == RetryDecision("wait", 4, 8.0, "host", 100, 1)
    late = SETTINGS.backfiller_host_patience_hours * HOUR + 1
    gone = decided("transient", of_host=True, failing="host", in_row=99, since=1, now=late)
    assert gone == RetryDecision("unavailable", 0)  # the next listing names it again
    failure = RepoError("transient", "x", "x", of_host=True)
    broken = job(failing="host", in_row=99, since=1, reason=FetchReason.BROKEN_CHAIN)
    assert decide(broken, failure, SETTINGS, clock=lambda: late).action == "dead_letter"


def test_a_pause_that_a_host_asks_for_is_no_failed_attempt() -> None:
    found = decided("rate_limited", retry_after=90.0, attempts=4, failing="x", in_row=2, since=7)
    assert found == RetryDecision("wait", 4, 90.0, "x", 2, 7)


def test_every_kind_of_failure_has_its_metric() -> None:
    assert get_args(FailureKind) == FAILURE_KINDS


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_nobody_comes_back_sooner_than_a_host_asks(kind: FailureKind) -> None:
    found = decided(kind, retry_after=90.0)
    assert found.action == "unavailable" or found.seconds == 90.0
