"""What follows from a failed attempt at a repo: wait, leave it, or a dead letter."""

from typing import get_args

import pytest

from rsky_pipeline.backfiller.attempt import INVALID_ATTEMPTS, RetryDecision, decide
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.backfiller import FAILURE_KINDS
from rsky_pipeline.repos.repo import FailureKind, RepoError
from rsky_pipeline.streams.repo_job import RepoJob

SETTINGS = Settings(
    backfiller_max_attempts=5, backfiller_retry_initial_ms=1_000, backfiller_retry_max_ms=8_000
)


def decided(
    kind: FailureKind, attempts: int = 0, retry_after: float | None = None,
    deleted: tuple[str, ...] = (),
) -> RetryDecision:  # fmt: skip
    job = RepoJob("did:plc:a", "", "", None, True, deleted, attempts=attempts)
    return decide(job, RepoError(kind, "x", "x", retry_after), SETTINGS, draw=lambda: 1.0)


def test_an_answer_about_the_account_ends_the_job_but_not_its_deletions() -> None:
    assert decided("permanent") == RetryDecision("unavailable", 1)
    assert decided("permanent", deleted=("a/b",)) == RetryDecision("dead_letter", 1)


def test_trouble_is_waited_for_longer_each_time_and_then_given_up() -> None:
    found = [decided("transient", attempts) for attempts in range(5)]
    assert [each.seconds for each in found[:4]] == [1.0, 2.0, 4.0, 8.0]
    assert [each.action for each in found] == ["wait"] * 4 + ["dead_letter"]
    assert found[4].attempts == 5


def test_a_broken_repo_is_tried_less_often() -> None:
    actions = [decided("invalid", attempts).action for attempts in range(INVALID_ATTEMPTS)]
    assert actions == ["wait"] * (INVALID_ATTEMPTS - 1) + ["dead_letter"]


def test_a_pause_that_a_host_asks_for_is_no_failed_attempt() -> None:
    found = decided("rate_limited", attempts=4, retry_after=90.0)
    assert found == RetryDecision("wait", 4, 90.0)


def test_every_kind_of_failure_has_its_metric() -> None:
    assert get_args(FailureKind) == FAILURE_KINDS


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_nobody_comes_back_sooner_than_a_host_asks(kind: FailureKind) -> None:
    found = decided(kind, retry_after=90.0)
    assert found.action == "unavailable" or found.seconds == 90.0
