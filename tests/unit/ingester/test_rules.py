"""The pure rules: batches, cursors, pressure, the window, the quarantine."""

from math import inf

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rsky_pipeline.ingester.commits.states import make_state
from rsky_pipeline.ingester.follower import Backpressure
from rsky_pipeline.ingester.frames import (
    MAX_RAW_BYTES,
    MAX_RAW_LETTERS,
    PendingFrame,
    RawDeadLetters,
)
from rsky_pipeline.ingester.pipeline import ReorderBuffer
from rsky_pipeline.ingester.sequence import (
    MAX_OLD_FRAMES,
    MAX_OLD_SECONDS,
    MAX_STEP,
    InvalidCursorError,
    Jump,
    SeqGate,
    parse_cursor,
    start_position,
)
from rsky_pipeline.ingester.writer import Batch, Batcher, BatchRule
from rsky_pipeline.streams.append import Entry


def frame(seq: int | None, events: int = 1, size: int = 10) -> PendingFrame:
    entries = [Entry("s", b"f", f"{seq}/{number}".encode()) for number in range(events)]
    return PendingFrame(seq, f"t{seq}", entries, events * size)


def seq_of(batch: Batch[str]) -> int | None:
    return batch.parts["a"].seq if "a" in batch.parts else None


RULE = BatchRule(max_events=10, max_bytes=1_000, max_age=0.5, max_cursor_age=2.0)


def test_a_batch_is_due_by_number_by_size_and_by_age() -> None:
    batcher = Batcher[str](RULE)
    assert batcher.deadline() == inf
    batcher.add("a", [frame(1)], now=100.0)
    assert batcher.deadline() == 100.5
    batcher.add("a", [frame(2, events=9)], now=100.1)
    assert batcher.deadline() == -inf
    assert seq_of(batcher.take()) == 2
    batcher.add("a", [frame(3, size=1_000)], now=101.0)
    assert batcher.deadline() == -inf


def test_filtered_frames_alone_are_due_after_the_cursors_own_age() -> None:
    batcher = Batcher[str](RULE)
    batcher.add("a", [frame(1, events=0)], now=100.0)
    batcher.add("a", [frame(2, events=0)], now=101.0)
    assert batcher.deadline() == 102.0
    batch = batcher.take()
    assert batch.entries == ()
    assert (batch.parts["a"].seq, batch.parts["a"].time) == (2, "t2")


def test_any_number_of_filtered_frames_takes_no_memory() -> None:
    batcher = Batcher[str](RULE)
    batcher.add("a", [frame(1)], 0.0)
    batcher.add("a", [frame(seq, events=0) for seq in range(2, 10_000)], 0.0)
    assert len(batcher._waiting) == 1
    assert seq_of(batcher.take()) == 9_999


def test_a_frame_that_is_larger_than_a_batch_is_not_split() -> None:
    batcher = Batcher[str](RULE)
    batcher.add("a", [frame(1), frame(2, events=25), frame(3)], 0.0)
    assert [len(batcher.take().entries) for _ in range(3)] == [1, 25, 1]
    assert not batcher


def test_a_frame_without_a_seq_does_not_move_the_cursor_back() -> None:
    batcher = Batcher[str](RULE)
    batcher.add("a", [frame(7), frame(None)], 0.0)
    assert seq_of(batcher.take()) == 7
    batcher.add("a", [frame(None)], 0.0)
    assert seq_of(batcher.take()) is None


def test_frames_without_entries_move_the_cursor_of_their_own_host() -> None:
    batcher = Batcher[str](RULE)
    batcher.add("a", [frame(7)], 0.0)
    batcher.add("b", [frame(50, events=0)], 0.0)
    batcher.add("a", [frame(8, events=0)], 0.0)
    parts = batcher.take().parts
    assert {source: part.seq for source, part in parts.items()} == {"a": 8, "b": 50}


def test_the_newest_state_of_a_repo_is_written_with_its_frames() -> None:
    def with_state(number: int, events: int) -> PendingFrame:
        item = frame(number, events)
        item.state = (b"repo", make_state(number, None))
        return item

    batcher = Batcher[str](RULE)
    for numbers in ([(1, 1), (2, 0)], [(3, 1), (4, 1)], [(5, 0), (6, 0)]):
        batcher.add("a", [with_state(*number) for number in numbers], 0.0)
        assert batcher.take().states == {b"repo": make_state(numbers[-1][0], None)}


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 400)), max_size=40))
def test_batches_are_exactly_the_frames_in_order_and_the_cursor_covers_them(
    shapes: list[tuple[int, int]],
) -> None:
    frames = [frame(seq, *shape) for seq, shape in enumerate(shapes, start=1)]
    batcher = Batcher[str](RULE)
    batcher.add("a", frames, 0.0)
    events, covered = [], 0
    while batcher:
        batch = batcher.take()
        events += list(batch.entries)
        seq = seq_of(batch)
        assert seq is not None
        assert seq > covered
        before = [entry for item in frames[:seq] for entry in item.entries]
        assert events == before
        covered = seq
        frames_in_it = sum(1 for item in frames if any(e in batch.entries for e in item.entries))
        assert len(batch.entries) <= RULE.max_events or frames_in_it == 1
    assert covered == len(frames)
    assert (batcher.events, batcher.bytes) == (0, 0)


def test_stored_cursors() -> None:
    assert parse_cursor(None) is None
    assert parse_cursor("0") == 0
    assert parse_cursor(str(2**53 - 1)) == 2**53 - 1
    for text in ("", "-1", "1.5", "soon", "٣", "9" * 17, "!ingester-done"):
        with pytest.raises(InvalidCursorError):
            parse_cursor(text)


def test_where_to_start() -> None:
    assert start_position(7, 9, "live") == 7
    assert start_position(7, None, 3) == 7
    assert start_position(None, None, "live") is None
    assert start_position(None, 9, "live") == 9
    assert start_position(None, 9, "oldest") == 0
    assert start_position(None, 9, 4) == 4


def test_only_rising_numbers_are_news() -> None:
    gate = SeqGate(10)
    assert [gate.place(seq, 0.0) for seq in (10, 11, 11, 9, 15, 16, 12, 17)] == [
        "old", "next", "old", "old", "next", "next", "old", "next",
    ]  # fmt: skip


def test_a_small_step_is_taken_back_by_an_event_from_between() -> None:
    """A damaged number would else cost the events up to it, and two that change places one."""
    gate = SeqGate(10)
    assert [gate.place(seq, 0.0) for seq in (15, 12, 13, 14, 15, 16, 15)] == [
        "next", "next", "next", "next", "next", "next", "old",
    ]  # fmt: skip
    assert gate.jumps == [Jump(10, 15, False)]
    gate = SeqGate(10)
    assert [gate.place(seq, 0.0) for seq in (12, 11, 13, 14)] == ["next"] * 4
    assert gate.last == 14


@given(st.integers(0, 30), st.integers(0, 2**53))
def test_one_damaged_number_costs_no_other_event(place: int, number: int) -> None:
    numbers = list(range(101, 135))
    # Of two events with one number the second is a repeat, as far as anybody can tell.
    assume(number not in numbers[place + 1 : place + 1 + MAX_STEP])
    numbers[place] = number
    gate = SeqGate(100)
    placed = [gate.place(seq, 0.0) for seq in numbers]
    assert "old" not in placed[:place] + placed[place + 1 :]
    assert gate.last == 134


@pytest.mark.parametrize("absurd", [12 + MAX_STEP, 10**6, 2**53 - 1])
def test_a_number_far_too_high_moves_the_gate_only_if_the_host_goes_on_from_there(
    absurd: int,
) -> None:
    gate = SeqGate(10)
    assert [gate.place(seq, 0.0) for seq in (11, absurd, 12, 13)] == [
        "next", "ahead", "next", "next",
    ]  # fmt: skip
    assert (gate.last, gate.jumps) == (13, [Jump(11, absurd, False)])
    gate = SeqGate(10)
    assert gate.place(absurd, 0.0) == "ahead"
    assert gate.place(absurd, 0.0) == "old"
    assert gate.place(absurd + 1, 0.0) == "ahead"
    assert gate.last == 10
    assert gate.place(absurd + 2, 0.0) == "next"
    assert (gate.last, gate.jumps) == (absurd + 2, [Jump(10, absurd, True)])


def test_without_a_cursor_the_first_number_is_believed() -> None:
    gate = SeqGate(-1)
    assert [gate.place(seq, 0.0) for seq in (5_000, 5_000, 5, 5_001)] == [
        "next", "old", "old", "next",
    ]  # fmt: skip


def test_the_largest_step_that_moves_the_gate_at_once() -> None:
    assert SeqGate(10).place(10 + MAX_STEP, 0.0) == "next"
    assert SeqGate(10).place(11 + MAX_STEP, 0.0) == "ahead"


def test_a_damaged_number_beside_a_true_jump_is_told_apart() -> None:
    gate = SeqGate(10)
    assert [gate.place(seq, 0.0) for seq in (5_000, 2**50, 5_001, 5_002, 5_003)] == [
        "ahead", "ahead", "ahead", "next", "next",
    ]  # fmt: skip
    gate = SeqGate(10)
    assert [gate.place(seq, 0.0) for seq in (5_000, 5_001, 2**50, 5_002, 5_003)] == [
        "ahead", "ahead", "ahead", "next", "next",
    ]  # fmt: skip
    assert gate.last == 5_003


def test_a_host_whose_numbers_always_jump_is_followed() -> None:
    gate = SeqGate(0)
    for seq in range(1_000, 100_000, 1_000):
        assert gate.place(seq, 0.0) == "ahead"
        assert gate.last >= seq - 3_000


def test_a_host_below_the_cursor_is_noticed_by_number_and_by_time() -> None:
    gate = SeqGate(10**6)
    for seq in range(1, MAX_OLD_FRAMES + 1):
        assert gate.place(seq, 0.0) == "old"
    assert not gate.is_behind(1.0)
    gate.place(1, 0.0)
    assert gate.is_behind(1.0)
    gate = SeqGate(10)
    gate.place(10, 0.0)
    assert not gate.is_behind(MAX_OLD_SECONDS * 10)  # the cursor's own event, then silence
    gate.place(3, 5.0)
    assert gate.is_behind(MAX_OLD_SECONDS + 1)
    gate.place(11, 50.0)
    assert not gate.is_behind(500.0)


def test_pressure_has_two_levels_and_a_limit_in_time() -> None:
    pressure = Backpressure(max_events=100, max_bytes=1_000, patience=5.0)
    assert pressure.observe(99, 999, now=1.0)
    assert not pressure.observe(100, 0, now=2.0)
    assert pressure.active
    assert pressure.close_at() == 7.0
    assert not pressure.observe(51, 0, now=3.0)
    assert not pressure.observe(10, 501, now=3.0)
    assert pressure.close_at() == 7.0
    assert pressure.observe(50, 500, now=4.0)
    with pytest.raises(ValueError, match="not held up"):
        pressure.close_at()
    assert not pressure.observe(0, 1_000, now=5.0)


@given(st.lists(st.sampled_from(["add", "add decided", "decide"]), max_size=60), st.randoms())
def test_frames_leave_the_buffer_in_the_order_they_came(steps: list[str], random: object) -> None:
    buffer, number = ReorderBuffer(), 0
    undecided: list[PendingFrame] = []
    left: list[int | None] = []
    for step in steps:
        if step == "decide" and undecided:
            undecided.pop(random.randrange(len(undecided))).waits = False  # type: ignore[attr-defined]
        elif step != "decide":
            number += 1
            added = frame(number)
            added.waits = step == "add"
            buffer.add(added)
            if added.waits:
                undecided.append(added)
        ready = buffer.take_ready()
        assert not any(item.waits for item in ready)
        left += [item.seq for item in ready]
        assert left == list(range(1, len(left) + 1))
        assert len(buffer) == number - len(left)
    for item in undecided:
        item.waits = False
    left += [item.seq for item in buffer.take_ready()]
    assert left == list(range(1, number + 1))


def test_the_buffer_is_full_by_number_and_by_size() -> None:
    buffer = ReorderBuffer(max_frames=2, max_bytes=100)
    buffer.add(frame(1))
    one_left = buffer.full
    buffer.add(frame(2))
    assert (one_left, buffer.full) == (False, True)
    buffer = ReorderBuffer(max_frames=10, max_bytes=100)
    large = frame(1, size=60)
    buffer.add(large, 40)
    full = buffer.full
    large.clear()  # a frame may be emptied while it is held
    buffer.take_ready()
    assert (full, buffer.full) == (True, False)


def test_raw_dead_letters_are_bounded() -> None:
    letters = RawDeadLetters("q")
    entry = letters.entry(bytes(1_000_000), host="h", reason="r", error="e" * 9_999)
    assert entry is not None
    assert len(entry.payload) < MAX_RAW_BYTES * 1.5
    letters.observe_length(MAX_RAW_LETTERS - 1)
    assert letters.entry(b"x", host="h", reason="r", error="e") is not None
    assert letters.entry(b"x", host="h", reason="r", error="e") is None
    letters.observe_length(0)
    assert letters.entry(b"x", host="h", reason="r", error="e") is not None
