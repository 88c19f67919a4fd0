"""Several relays: repeats, the leader, and gaps in what one of them sends."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.ingester.commits.relays import AccountUpdate, RelayDedup
from rsky_pipeline.ingester.sequence import MAX_SEQ_STEP, GapWatch, Position, parse_position
from rsky_pipeline.streams.gap import Gap

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


def test_the_first_leads_and_the_other_is_so_far_behind() -> None:
    dedup = RelayDedup(["a", "b"])
    assert RelayDedup(["a", "b"]).leader is None
    for rev in range(1, 60):
        dedup.first("a", DID, rev, float(rev))
        assert dedup.repeated("b", DID, rev, rev + 2.0)
        assert not dedup.repeated("a", DID, rev, rev + 2.0)
    assert dedup.leader == "a"
    assert dedup.behind["b"] == pytest.approx(2.0, abs=0.1)
    assert dedup.behind["a"] == pytest.approx(0.0)
    for rev in range(100, 400):
        dedup.first("b", DID, rev, float(rev))
    assert dedup.leader == "b"


def update(active: bool, time: float) -> AccountUpdate:
    return AccountUpdate(DID, ("account", active, None), time)


@given(st.lists(st.booleans(), max_size=8), st.data())
def test_account_events_of_two_relays_are_taken_once_in_any_interleaving(
    told: list[bool], drawn: st.DataObject
) -> None:
    """Both relays tell the same story; whoever tells a part first, it is news once."""
    dedup = RelayDedup(["a", "b"])
    places, taken = {"a": 0, "b": 0}, list[bool]()
    while unfinished := [name for name, place in places.items() if place < len(told)]:
        relay = drawn.draw(st.sampled_from(unfinished))
        item = told[places[relay]]
        places[relay] += 1
        if not dedup.is_repeat(relay, update(item, 0.0)):
            taken.append(item)
    assert taken == told


def test_the_same_said_much_later_is_news() -> None:
    dedup = RelayDedup(["a", "b"])
    assert not dedup.is_repeat("a", update(False, 0.0))
    assert not dedup.is_repeat("a", update(True, 10.0))
    assert not dedup.is_repeat("b", update(False, 5_000.0))


def test_one_relay_repeats_nothing() -> None:
    dedup = RelayDedup(["a"])
    assert not dedup.is_repeat("a", update(True, 0.0))
    assert not dedup.is_repeat("a", update(True, 0.0))


T0, SOON, LATER = "2026-07-04T10:00:00Z", "2026-07-04T10:14:00Z", "2026-07-04T10:16:00Z"


@pytest.mark.parametrize(
    ("seq", "time", "outdated", "kind"),
    [
        (11, SOON, False, None),
        (11, LATER, False, None),  # nothing is missing between consecutive numbers
        (12, LATER, False, "time_jump"),
        (11, LATER, True, "outdated_cursor"),
        (11, None, False, None),
        (11, "whenever", False, None),
        (500, SOON, True, "outdated_cursor"),
        (11 + MAX_SEQ_STEP, SOON, False, "seq_jump"),
        (10 + MAX_SEQ_STEP, SOON, False, None),
    ],
)
def test_gaps_after_a_stored_cursor(
    seq: int, time: str | None, outdated: bool, kind: str | None
) -> None:
    watch = GapWatch("relay.test", 10, Position(10, T0))
    watch.outdated = outdated
    gap = watch.observe(seq, time)
    assert (None if gap is None else gap.kind) == kind
    if gap is not None:
        body = json.loads(gap.entry().payload)
        assert (body["host"], body["from_seq"], body["to_seq"]) == ("relay.test", 10, seq)
    # While connected, neither a silence nor numbers that are left out are gaps.
    assert watch.observe(seq + 1, "2026-07-05T00:00:00Z") is None
    assert watch.observe(seq + 9, "2026-07-06T00:00:00Z") is None


@pytest.mark.parametrize("seq", [1, 11, 5_000])
def test_what_follows_on_a_refused_cursor_is_behind_a_gap(seq: int) -> None:
    """A host that lost its state may have come to the old cursor again, and accept it then."""
    for stored, position in ((10, Position(10, T0)), (0, Position(0, None))):
        watch = GapWatch("relay.test", stored, position, refused=Position(10, T0))
        gap = watch.observe(seq, SOON)
        assert gap == Gap("relay.test", "cursor_refused", 10, seq, T0, SOON)
        assert watch.observe(seq + 1, LATER) is None
        assert watch.observe(seq + 9, LATER) is None


def test_a_position_of_another_cursor_says_nothing_of_time() -> None:
    assert GapWatch("relay.test", 10, Position(9, T0)).observe(12, LATER) is None
    assert GapWatch("relay.test", 10, None).observe(12, LATER) is None


@pytest.mark.parametrize("noted", [None, b"", b"{", b"[]", b'{"seq": "x", "time": 5}'])
def test_positions_that_cannot_be_read_say_nothing(noted: bytes | None) -> None:
    position = parse_position(noted)
    assert position is None or position == Position(None, None)
