"""The rev gate: whatever the order and the batches, the state of the highest rev stands."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.indexer.collections.shape import Put, Rows
from rsky_pipeline.indexer.plan import NOTHING, Delete, Operation, Plan, Stored, make_plan, segments

URI = "at://did:plc:a/app.bsky.feed.post/1"


def put(rev: str, cid: str = "c", *, historical: bool = False, uri: str = URI) -> Put:
    return Put(uri, "did:plc:a", "1", cid, rev, f"time {rev}", historical, "{}")


def delete(rev: str, uri: str = URI) -> Delete:
    return Delete(uri, "did:plc:a", rev)


@dataclass
class Model:
    """Carries out plans in memory."""

    state: Stored = NOTHING
    seen_at: str = ""

    def apply(self, operations: list[Operation]) -> Plan:
        plan = make_plan(operations, {URI: self.state})
        state = self.state
        for item in (*plan.inserts, *plan.updates):
            assert state.exists == (item in plan.updates)
            kept = None if plan.revived else state.tombstone
            state, self.seen_at = Stored(True, item.rev, item.cid, kept), item.indexed_at
        for _, rev in plan.touches:
            assert state.exists
            state = Stored(True, rev, state.cid, state.tombstone)
        for gone in plan.deletes:
            assert state.exists
            state, self.seen_at = Stored(tombstone=gone.rev), ""
        for gone in plan.tombstones:
            assert not state.exists
            state = Stored(tombstone=gone.rev)
        self.state = state
        return plan


@pytest.mark.parametrize(
    ("stored", "operation", "expected"),
    [
        (Stored(), put("2"), "inserts"),
        (Stored(tombstone="1"), put("2"), "inserts"),
        (Stored(tombstone="2"), put("2"), "stale"),
        (Stored(tombstone="3"), put("2"), "stale"),
        (Stored(True, "1", "other"), put("2"), "updates"),
        (Stored(True, None, "other"), put("2"), "updates"),
        (Stored(True, "2", "c"), put("2"), "stale"),
        (Stored(True, "3", "other"), put("2"), "stale"),
        (Stored(True, "2", "a"), put("2", "b"), "updates"),  # one rev, two contents: the greater
        (Stored(True, "2", "b"), put("2", "a"), "stale"),
        (Stored(True, "1", "c"), put("2", historical=True), "touches"),
        (Stored(True, None, "c"), put("2"), "touches"),
        (Stored(True, "1", "c"), put("2"), "updates"),
        (Stored(True, "1", "c"), delete("2"), "deletes"),
        (Stored(True, "2", "c"), delete("2"), "deletes"),
        (Stored(True, None, "c"), delete("2"), "deletes"),
        (Stored(True, "3", "c"), delete("2"), "stale"),
        (Stored(), delete("2"), "tombstones"),
        (Stored(tombstone="1"), delete("2"), "tombstones"),
        (Stored(tombstone="2"), delete("2"), "stale"),
    ],
)
def test_one_operation_on_a_stored_state(
    stored: Stored, operation: Operation, expected: str
) -> None:
    plan = make_plan([operation], {URI: stored})
    names = ("inserts", "updates", "touches", "deletes", "tombstones")
    did = [name for name in names if getattr(plan, name)] + ["stale"] * plan.stale
    assert did == [expected]


OPERATIONS = st.lists(
    st.one_of(
        st.builds(
            put, st.sampled_from("123456"), st.sampled_from("xyz"), historical=st.just(value=False)
        ),
        st.builds(delete, st.sampled_from("123456")),
    ),
    min_size=1,
    max_size=8,
)


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


def test_history_of_the_stored_state_keeps_what_was_seen_first() -> None:
    model = Model()
    model.apply([put("1")])
    model.apply([put("5", historical=True)])
    assert model.state == Stored(True, "5", "c")
    assert model.seen_at == "time 1"


def test_a_batch_with_live_state_and_its_history_notifies_as_live() -> None:
    plan = make_plan([put("5", historical=True), put("1")], {})
    assert [(item.rev, item.historical) for item in plan.inserts] == [("5", False)]


def test_the_first_state_of_a_batch_is_kept_for_what_happens_once() -> None:
    plan = make_plan([put("1", "a"), put("2", "b")], {})
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
