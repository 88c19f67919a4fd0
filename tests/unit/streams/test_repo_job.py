"""Why repos are fetched, and what entries of other versions and services become."""

import pytest

from rsky_pipeline.streams.repo_job import (
    FIREHOSE_REASONS,
    FetchReason,
    RepoJob,
    decode_repo_job,
    encode_repo_job,
)


def job(word: str) -> RepoJob:
    return decode_repo_job(b'{"did":"did:plc:a","reason":"%s"}' % word.encode())


@pytest.mark.parametrize("reason", FetchReason)
def test_every_reason_comes_back(reason: FetchReason) -> None:
    written = RepoJob("did:plc:a", "", "", None, True, reason=reason)
    assert decode_repo_job(encode_repo_job(written)) == written
    assert job(reason.word).reason is reason


@pytest.mark.parametrize("word", ["listed", "first_seen", "account", "of tomorrow", "x" * 5_000])
def test_a_reason_of_another_version_is_fetched_and_kept(word: str) -> None:
    found = job(word)
    assert found.reason is FetchReason.OTHER
    assert found.forced
    assert found.repair


@pytest.mark.parametrize("body", ['"reason":null', '"reason":7', '"rev":"3a"'])
def test_a_job_without_a_reason_is_not_forced(body: str) -> None:
    found = decode_repo_job(b'{"did":"did:plc:a",%s}' % body.encode())
    assert (found.reason, found.forced, found.repair) == (FetchReason.LISTED, False, False)


def test_a_reason_has_one_word_and_a_word_one_reason() -> None:
    words = [reason.word for reason in FetchReason]
    assert len(set(words)) == len(words)
    # Only what is forced can be confirmed, and what repairs is forced.
    for reason in FetchReason:
        assert reason.forced or not (reason.confirmable or reason.repair or reason.followed)


def test_a_commit_that_was_not_written_is_no_expected_thing_but_a_repair() -> None:
    unexpected = {reason for reason in FIREHOSE_REASONS if not reason.expected}
    assert unexpected == set(FIREHOSE_REASONS) - {
        FetchReason.UNSEEN, FetchReason.REACTIVATED, FetchReason.SYNC, FetchReason.COMMIT,
        FetchReason.NO_PREV_DATA,
    }  # fmt: skip
    assert all(reason.repair and not reason.confirmable for reason in unexpected)
    assert {reason for reason in FIREHOSE_REASONS if not reason.repair} == {FetchReason.UNSEEN}


def test_deletions_are_a_repair_whatever_the_reason() -> None:
    deleting = RepoJob("did:plc:a", "", "", None, True, deleted=("a/b",))
    assert deleting.forced
    assert deleting.repair
