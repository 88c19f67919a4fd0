"""The rev gate: whatever the order and the batches, the state of the highest rev stands."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.indexer.collections.values import Delete, Operation, Put, Rows
from rsky_pipeline.indexer.core.plan import (
    NOTHING,
    BatchPlan,
    StoredState,
    make_plan,
    outlives_complete_rev,
    segments,
)

URI = "at://did:plc:a/app.bsky.feed.like/1"


def put(rev: str, cid: str = "c", *, historical: bool = False, uri: str = URI) -> Put:
    return Put(uri, "did:plc:a", "1", cid, rev, f"time {rev}", historical, "{}")


def delete(rev: str, uri: str = URI) -> Delete:
    return Delete(uri, "did:plc:a", rev)


@dataclass
class Model:
    """Carries out plans in memory."""

    state: StoredState = NOTHING
    seen_at: str = ""
    floor: str = ""

    def apply(self, operations: list[Operation]) -> BatchPlan:
        floors = {"did:plc:a": self.floor} if self.floor else {}
        plan = make_plan(operations, {URI: self.state}, floors)
        state = self.state
        for item in (*plan.inserts, *plan.updates):
            assert state.exists == (item in plan.updates)
            kept = None if plan.revived else state.tombstone
            state, self.seen_at = StoredState(True, item.rev, item.cid, kept), item.indexed_at
        for _, rev in plan.touches:
            assert state.exists
            state = StoredState(True, rev, state.cid, state.tombstone)
        for _ in plan.deletes:
            assert state.exists
            state, self.seen_at = StoredState(tombstone=state.tombstone), ""
        assert not (plan.absent and state.exists)
        for gone in plan.tombstones:
            assert gone in (*plan.deletes, *plan.absent)
            state = StoredState(tombstone=gone.rev)
        self.state = state
        return plan

    def raise_floor(self, rev: str) -> None:
        """Do what follows a whole repo: from now on tombstones below may be gone."""
        self.floor = max(rev, self.floor)
        self.prune()

    def prune(self) -> None:
        """Remove the tombstone if the floor makes it needless."""
        if (self.state.tombstone or self.floor) < self.floor:
            self.state = StoredState(self.state.exists, self.state.rev, self.state.cid)


@pytest.mark.parametrize(
    ("stored", "operation", "expected"),
    [
        (StoredState(), put("2"), "inserts"),
        (StoredState(tombstone="1"), put("2"), "inserts"),
        (StoredState(tombstone="2"), put("2"), "stale"),
        (StoredState(tombstone="3"), put("2"), "stale"),
        (StoredState(True, "1", "other"), put("2"), "updates"),
        (StoredState(True, None, "other"), put("2"), "updates"),
        (StoredState(True, "2", "c"), put("2"), "stale"),
        (StoredState(True, "3", "other"), put("2"), "stale"),
        (
            StoredState(True, "2", "a"),
            put("2", "b"),
            "updates",
        ),  # one rev, two contents: the greater
        (StoredState(True, "2", "b"), put("2", "a"), "stale"),
        (StoredState(True, "1", "c"), put("2", historical=True), "touches"),
        (StoredState(True, None, "c"), put("2"), "touches"),
        (StoredState(True, "1", "c"), put("2"), "updates"),
        (StoredState(True, "1", "c"), delete("2"), "deletes"),
        (StoredState(True, "2", "c"), delete("2"), "deletes"),
        (StoredState(True, None, "c"), delete("2"), "deletes"),
        (StoredState(True, "3", "c"), delete("2"), "stale"),
        (StoredState(), delete("2"), "absent"),
        (StoredState(tombstone="1"), delete("2"), "absent"),
        (StoredState(tombstone="2"), delete("2"), "stale"),
    ],
)
def test_one_operation_on_a_stored_state(
    stored: StoredState, operation: Operation, expected: str
) -> None:
    plan = make_plan([operation], {URI: stored})
    names = ("inserts", "updates", "touches", "deletes", "absent")
    did = [name for name in names if getattr(plan, name)] + ["stale"] * plan.stale
    assert did == [expected]


OPERATION = st.one_of(
    st.builds(
        put, st.sampled_from("123456"), st.sampled_from("xyz"), historical=st.just(value=False)
    ),
    st.builds(delete, st.sampled_from("123456")),
)
OPERATIONS = st.lists(OPERATION, min_size=1, max_size=8)
# In an honest repo one commit does one thing to one record.
HONEST = st.lists(OPERATION, min_size=1, max_size=6, unique_by=lambda item: item.rev)


@given(operations=OPERATIONS, data=st.data())
def test_order_repetition_and_batches_do_not_matter(
    operations: list[Operation], data: st.DataObject
) -> None:
    model = Model()
    for operation in sorted(operations, key=lambda item: (item.rev, isinstance(item, Delete))):
        model.apply([operation])
    again = data.draw(st.lists(st.sampled_from(operations), max_size=4))
    mixed = data.draw(st.permutations([*operations, *again]))
    other = Model()
    while mixed:
        size = data.draw(st.integers(1, len(mixed)))
        other.apply(list(mixed[:size]))
        mixed = mixed[size:]
    assert other.state == model.state
    assert other.seen_at == model.seen_at


@given(operations=OPERATIONS, history=st.lists(st.booleans(), min_size=8, max_size=8))
def test_a_batch_ends_as_its_operations_in_order_would(
    operations: list[Operation], history: list[bool]
) -> None:
    for operation, historical in zip(operations, history, strict=False):
        if isinstance(operation, Put):
            operation.historical = historical
    ordered = sorted(operations, key=lambda item: (item.rev, isinstance(item, Delete)))
    one_by_one, at_once = Model(), Model()
    for operation in ordered:
        one_by_one.apply([operation])
    at_once.apply(list(ordered))
    assert at_once.state == one_by_one.state


@settings(max_examples=1_000)  # few of the stories need the floor
@given(operations=HONEST, floor=st.sampled_from("123456"), data=st.data())
def test_with_a_floor_no_tombstone_is_needed_below_it(
    operations: list[Operation], floor: str, data: st.DataObject
) -> None:
    """Live events in any order and again, some of them lost, mixed with the whole repo at a rev.

    The repo brings the state of its rev, or the deletion of what it no longer holds, and then the
    floor. The end must be that of all events in order, though tombstones go as soon as they may.
    """
    ordered = sorted(operations, key=lambda item: item.rev)
    expected, at_floor = Model(), Model()
    for operation in ordered:
        expected.apply([operation])
        if operation.rev <= floor:
            at_floor.apply([operation])
    held = at_floor.state
    arrived = [item for item in operations if item.rev > floor or data.draw(st.booleans())]
    arrived += data.draw(st.lists(st.sampled_from(operations), max_size=3))
    arrived = list(data.draw(st.permutations(arrived)))
    before = data.draw(st.integers(0, len(arrived)))
    model = Model()
    in_pieces(model, arrived[:before], data)
    if held.exists:
        model.apply([put(floor, held.cid, historical=True)])
        between = data.draw(st.integers(before, len(arrived)))
        in_pieces(model, arrived[before:between], data)
        before = between
    elif model.state.exists:  # only rows that are there are deleted on behalf of the repo
        model.apply([delete(floor)])
    model.raise_floor(floor)
    in_pieces(model, arrived[before:], data)
    assert (model.state.exists, model.state.cid) == (expected.state.exists, expected.state.cid)


def in_pieces(model: Model, operations: list[Operation], data: st.DataObject) -> None:
    while operations:
        size = data.draw(st.integers(1, len(operations)))
        model.apply(operations[:size])
        model.prune()
        operations = operations[size:]


@pytest.mark.parametrize(
    ("stored", "operation", "expected"),
    [
        (StoredState(), put("4"), "stale"),  # deleted meanwhile, or on its way with the floor's rev
        (StoredState(), put("4", historical=True), "stale"),
        (StoredState(), put("5"), "inserts"),
        (StoredState(), put("6"), "inserts"),
        (StoredState(True, "3", "other"), put("4"), "stale"),
        (StoredState(True, None, "other"), put("4"), "stale"),
        (StoredState(True, None, "c"), put("4"), "touches"),  # the state that is stored
        (StoredState(True, "5", "other"), put("6"), "updates"),
        (StoredState(), delete("4"), "absent"),  # clears what points at it, and is not buried
        (StoredState(True, "3", "c"), delete("4"), "deletes"),
    ],
)
def test_one_operation_below_or_above_a_floor(
    stored: StoredState, operation: Operation, expected: str
) -> None:
    plan = make_plan([operation], {URI: stored}, {"did:plc:a": "5", "did:plc:b": "9"})
    names = ("inserts", "updates", "touches", "deletes", "absent")
    did = [name for name in names if getattr(plan, name)] + ["stale"] * plan.stale
    assert did == [expected]
    assert plan.tombstones == []


def test_deletions_of_posts_are_buried_below_the_floor_too() -> None:
    post = "at://did:plc:a/app.bsky.feed.post/1"
    assert outlives_complete_rev(post)
    assert not outlives_complete_rev(URI)
    plan = make_plan([delete("4", post)], {post: StoredState(True, "3", "c")}, {"did:plc:a": "5"})
    assert plan.deletes == plan.tombstones == [delete("4", post)]


def test_a_repo_that_is_fetched_again_shows_no_old_states() -> None:
    """Or `stale_writes` would blame the operator's own `backfill add --force`."""
    stored = {URI: StoredState(True, "3", "c")}
    again = [make_plan([put(rev, historical=True)], stored) for rev in ("2", "3")]
    assert [(plan.stale, plan.touches, plan.updates) for plan in again] == [(0, [], [])] * 2
    for other in (put("2", "d", historical=True), put("2"), delete("2")):
        assert make_plan([other], stored).stale == 1


def test_a_record_that_nothing_is_stored_of_is_stale_below_the_floor() -> None:
    for rev, inserted in (("4", 0), ("5", 1)):
        plan = make_plan([put(rev)], {}, {"did:plc:a": "5"})
        assert (len(plan.inserts), plan.stale) == (inserted, 1 - inserted)


def test_only_a_deletion_below_the_floor_is_not_buried() -> None:
    for rev, stored in (("5", NOTHING), ("6", NOTHING), ("5", StoredState(True, "3", "c"))):
        plan = make_plan([delete(rev)], {URI: stored}, {"did:plc:a": "5"})
        assert plan.tombstones == [delete(rev)]


def test_a_put_that_a_deletion_undoes_is_named() -> None:
    assert make_plan([put("1"), delete("2")], {}).overtaken == [put("1")]
    assert make_plan([put("1")], {URI: StoredState(tombstone="2")}).overtaken == [put("1")]
    assert make_plan([put("1", "a"), put("2", "b")], {}).overtaken == []


def test_history_of_the_stored_state_keeps_what_was_seen_first() -> None:
    model = Model()
    model.apply([put("1")])
    model.apply([put("5", historical=True)])
    assert model.state == StoredState(True, "5", "c")
    assert model.seen_at == "time 1"


def test_a_batch_with_live_state_and_its_history_notifies_as_live() -> None:
    plan = make_plan([put("5", historical=True), put("1")], {})
    assert [(item.rev, item.historical) for item in plan.inserts] == [("5", False)]


def test_the_first_state_of_a_batch_is_kept_for_what_happens_once() -> None:
    plan = make_plan([put("1", "a"), put("2", "x"), put("3", "b")], {})
    assert plan.inserts[0].cid == "b"
    assert plan.inserts[0].first is not None
    assert plan.inserts[0].first.cid == "a"


def test_a_batch_is_cut_before_a_deletion_of_what_a_reply_looks_at() -> None:
    reply = put("1")
    reply.rows = Rows(looks_at=("at://parent",))
    gone = delete("2", uri="at://parent")
    other = delete("3", uri="at://other")
    assert segments([reply, other, gone, other]) == [[reply, other], [gone, other]]
    assert segments([gone, reply]) == [[gone, reply]]
    assert segments([]) == [[]]


def test_what_leaves_a_trace_is_not_folded_with_its_deletion() -> None:
    gate, gone = put("1", uri="at://gate"), delete("2", uri="at://gate")
    gate.rows = Rows(leaves_trace=True)
    assert segments([gate, gone]) == [[gate], [gone]]
    assert segments([gone, gate]) == [[gone, gate]]
