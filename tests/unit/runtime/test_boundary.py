"""An exception that nobody declared is counted each time, and its traceback logged now and then."""

import logging

import pytest

from rsky_pipeline.database.isolation import apply_isolated
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.errors import (
    PermissionDeniedError,
    SettingError,
    UnavailableError,
    described,
)


def test_each_is_counted_and_one_traceback_of_a_kind_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counted = []
    boundary = Boundary(lambda: counted.append(1))
    for _ in range(5):
        try:
            raise RuntimeError("a defect")
        except RuntimeError as error:
            boundary.caught(error, "identity", did="did:plc:a")
    boundary.caught(ValueError("another"), "identity", did="did:plc:a")
    assert len(counted) == 6
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        RuntimeError, ValueError,
    ]  # fmt: skip
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert vars(caplog.records[0])["did"] == "did:plc:a"


class Broken(Exception):
    """Of a library whose message cannot be made."""

    def __str__(self) -> str:
        raise ValueError("no message")

    __repr__ = __str__


def test_an_exception_without_a_message_is_noted_too(caplog: pytest.LogCaptureFixture) -> None:
    counted = []
    Boundary(lambda: counted.append(1)).caught(Broken(), "identity", did="did:plc:a")
    assert len(counted) == 1
    assert vars(caplog.records[0])["error"] == "Broken"
    assert described(Broken()) == "Broken"
    assert described(ValueError("odd")) == "ValueError: odd"
    (culprit,) = apply_isolated([1], lambda _: raise_broken())
    assert (culprit.reason, culprit.message) == ("internal_error", "Broken")


def raise_broken() -> None:
    raise Broken


def test_what_ends_the_worker_for_good_is_the_fault_of_no_item() -> None:
    counted = []
    boundary = Boundary(lambda: counted.append(1))
    for final in (SettingError("another database"), PermissionDeniedError("no access")):
        with pytest.raises(type(final)):
            boundary.caught(final, "repo", did="did:plc:a")
    assert counted == []
    boundary.caught(UnavailableError("a host"), "repo", did="did:plc:a")
    assert counted == [1]
