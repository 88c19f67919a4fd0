"""An exception that nobody declared is counted each time, and its traceback logged now and then."""

import logging

import pytest

from rsky_pipeline.runtime.boundary import Boundary


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
