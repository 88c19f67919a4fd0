"""What streams can hold, by hand-worked examples."""

import pytest

from rsky_pipeline.operations.stream_figures import StreamFigures, advise, usable_bytes
from tests.unit.operations.figures import measurement, stream


def load(
    name: str, length: int, bytes_each: float | None, rate: float | None, mark: int
) -> StreamFigures:
    return stream(name, length=length, rate=rate, mark=mark, bytes_each=bytes_each)


def test_the_seeds_figures() -> None:
    """40 million entries at 4,658/s are 2.4 hours, at 1,000/s 11 hours."""
    polluted, clean = (
        advise([load("firehose_live", 1, 650.0, rate, 40_000_000)], usable_bytes(32 * 10**9, 0))[0]
        for rate in (4_658.0, 1_000.0)
    )
    assert polluted.mark_hours == pytest.approx(2.39, abs=0.01)
    assert clean.mark_hours == pytest.approx(11.1, abs=0.02)
    assert clean.fitting_mark == int(32e9 * 0.7 / 650)
    assert clean.memory_hours == pytest.approx(9.57, abs=0.01)
    assert "lower the mark or raise maxmemory" in clean.text


def test_memory_is_shared_out_by_what_the_marks_want() -> None:
    live, backfill = advise(
        [load("a", 1, 1_000.0, 10.0, 1_000), load("b", 1, 1_000.0, 10.0, 3_000)],
        8_000_000,
    )
    assert (live.fitting_mark, backfill.fitting_mark) == (2_000, 6_000)
    assert "lower" not in live.text


def test_what_was_not_measured_is_not_advised() -> None:
    (empty,) = advise([load("a", 0, None, None, 1_000)], 8_000_000)
    assert empty.text == "no entries to measure"
    assert empty.fitting_mark is empty.mark_hours is None
    (idle,) = advise([load("a", 10, 500.0, 0.0, 1_000)], 0)
    assert idle.fitting_mark is idle.memory_hours is idle.mark_hours is None
    assert usable_bytes(0, 1_000) == 350


def test_a_share_does_not_follow_what_other_streams_hold() -> None:
    def fitting(backfill: StreamFigures) -> int | None:
        return advise([load("firehose_live", 1, 700.0, 1.0, 1_000), backfill], 10_000_000)[
            0
        ].fitting_mark

    empty = load("firehose_backfill", 0, None, None, 1_000)
    full = load("firehose_backfill", 900, 2_000.0, 5.0, 1_000)
    assert fitting(empty) == fitting(full) == int(5_000_000 / 700)


def test_memory_that_others_fill_is_no_room_for_streams() -> None:
    held = stream(bytes_each=700.0)
    free = measurement(held, used=1_000_000, limit=10_000_000)
    taken = measurement(held, used=6_000_000, limit=10_000_000)
    assert free.other_bytes == 1_000_000
    marks = [each.advice()[0].fitting_mark or 0 for each in (free, taken)]
    assert marks[0] == pytest.approx(6 * marks[1], rel=0.01)
    full = measurement(held, used=9_600_000, limit=10_000_000)
    assert full.advice()[0].fitting_mark == 0
