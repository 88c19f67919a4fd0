"""Which account event stands: within a relay by its order, between relays by their times."""

from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.indexer.accounts.statuses import AccountEvents, RelayEvent
from rsky_pipeline.indexer.core.entries import AccountChange

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
T0 = "2026-07-04T10:00:00.000Z"


def at(seconds: float, day: int = 4) -> str:
    """Return a time so many seconds after T0."""
    minutes, rest = divmod(seconds + 3_600, 60)
    return f"2026-07-{day:02d}T{9 + int(minutes) // 60:02d}:{int(minutes) % 60:02d}:{rest:06.3f}Z"


def event(relay: str, seq: int, seconds: float, status: str | None, day: int = 4) -> AccountChange:
    return AccountChange(DID, seq, at(seconds, day), status, relay)


def standing(*events: AccountChange) -> str | None:
    known = AccountEvents(None)
    for one in events:
        known.take(one)
    assert known.standing is not None
    return known.standing.status


def test_within_a_relay_the_order_of_its_stream_decides() -> None:
    gone, back = event("a", 1, 0, "deactivated"), event("a", 2, -20, None)
    assert standing(gone, back) is standing(back, gone) is None
    fast, taken = event("a", 1, 240, None), event("a", 2, 0, "takendown")
    assert standing(fast, taken) == standing(taken, fast) == "takendown"


def test_between_relays_the_times_decide() -> None:
    assert standing(event("a", 900, 0, "deactivated"), event("b", 5, 10, None)) is None
    assert standing(event("b", 5, 10, None), event("a", 900, 0, "deactivated")) is None
    assert standing(event("a", 1, 10, None), event("b", 5, 0, "takendown")) is None


def test_of_equal_times_an_inactive_status_counts() -> None:
    back, gone = event("a", 1, 0, None), event("b", 5, 0, "takendown")
    assert standing(back, gone) == standing(gone, back) == "takendown"


def test_copies_of_several_relays_say_no_more_than_one() -> None:
    """Whichever relay is ahead, and also while the other one is behind or silent for good."""
    gone, back = event("a", 1, 0, "deactivated"), event("a", 2, -20, None)
    gone_b, back_b = event("b", 71, 0, "deactivated"), event("b", 72, -20, None)
    for order in ((gone_b, gone, back), (gone, back, gone_b), (gone, gone_b, back_b, back)):
        assert standing(*order) is None


def test_a_copy_is_no_news() -> None:
    known = AccountEvents(None)
    assert known.take(event("a", 1, 0, "deleted"))
    assert not known.take(event("b", 71, 0, "deleted"))
    assert not known.take(event("a", 1, 0, "deleted"))
    assert not known.take(event("b", 70, -5, None))


def test_a_redelivery_is_no_news_whichever_copy_was_stored_first() -> None:
    stored = RelayEvent("b", 71, at(0), at(0), "deleted")
    copy = RelayEvent("a", 1, at(0), at(0), "deleted")
    known = AccountEvents(stored, [copy])
    assert not known.take(event("a", 1, 0, "deleted"))
    assert known.standing == stored


def test_a_relay_that_counts_anew_is_heard_again() -> None:
    before = event("a", 9_000_000, 0, "deactivated")
    assert standing(before, event("a", 12, 60, None, day=6)) is None
    assert standing(before, event("a", 8_999_999, 60, None)) == "deactivated", "a redelivery"


def test_a_later_numbering_of_a_relay_comes_after_all_earlier_ones() -> None:
    """Of a relay that lost its state, as the ingester noticed: also within the same day."""
    gone, back = event("a", 900, 60, "deactivated"), event("a#17", 3, 30, None)
    assert standing(gone, back) is standing(back, gone) is None
    active, taken = event("a#17", 4, 90, None), event("a#18", 1, 100, "takendown")
    for order in ((gone, back, active, taken), (taken, gone, active, back), (taken, back)):
        assert standing(*order) == "takendown"
    assert standing(event("a#17", 9, 0, None), event("a#17", 8, 10, "deleted")) is None


def test_events_without_a_relay_are_ordered_by_their_times() -> None:
    """As another writer leaves them, in the stream or in the table."""
    old, new = event("", 5, 0, "deactivated"), event("", 2, 10, None)
    assert standing(old, new) is standing(new, old) is None
    assert standing(old, event("a", 1, 5, None)) is None


STORIES = st.dictionaries(
    st.sampled_from(["", "a", "a#7", "b"]),
    st.lists(
        st.tuples(st.integers(-300, 300), st.sampled_from([None, "deleted", "takendown"])),
        min_size=1, max_size=4,
    ),
    min_size=1,
)  # fmt: skip


@given(STORIES, st.data())
def test_no_order_of_arrival_changes_the_result(
    stories: dict[str, list[tuple[int, str | None]]], drawn: st.DataObject
) -> None:
    events = [
        event(relay, seq, *item)
        for relay, story in stories.items()
        for seq, item in enumerate(story, 1)
    ]
    order = drawn.draw(st.permutations([*events, *drawn.draw(st.lists(st.sampled_from(events)))]))
    assert standing(*order) == standing(*events)
    if list(stories) in (["a"], ["b"]):
        assert standing(*order) == events[-1].status
