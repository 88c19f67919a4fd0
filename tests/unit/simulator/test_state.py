"""The truth is worked out from a state; it is the one that the published frames add up to."""

from rsky_pipeline.demo.simulator.labels import Labeler
from rsky_pipeline.demo.simulator.state import NetworkState, state_of
from tests.unit.simulator.folding import fold
from tests.unit.simulator.networks import small_world


def test_the_published_frames_and_the_history_add_up_to_the_state() -> None:
    world = small_world(accounts=30)
    history = state_of(world)
    frames = [world.step() for _ in range(2_500)]
    while world.is_in_the_middle:
        frames.append(world.step())
    labels = [world.labeler.step() for _ in range(100)]
    known = state_of(world)
    folded = fold([*frames, *labels], world.handles)

    deleted = folded.deleted
    standing = {uri: item for uri, item in history.records.items() if uri not in deleted}
    together = {uri: (item.cid, item.block) for uri, item in (standing | folded.records).items()}
    assert together == {uri: (item.cid, item.block) for uri, item in known.records.items()}
    assert folded.deleted == known.deleted
    assert folded.gated <= known.gated
    assert folded.labels == known.labels
    for did, account in folded.accounts.items():
        mine = known.accounts[did]
        assert (account.handle, account.active, account.status) == (
            mine.handle,
            mine.active,
            mine.status,
        )
        if account.indexed:
            assert account.commits == mine.commits
    assert known.accounts.keys() - folded.accounts.keys() <= history.accounts.keys()


def test_frames_carry_the_time_at_which_records_were_published() -> None:
    world = small_world()
    frames = [world.step() for _ in range(400)]
    folded = fold(frames, {})
    known = state_of(world)
    for uri, item in folded.records.items():
        assert known.records[uri].published <= item.published


def test_the_newest_label_stands() -> None:
    world = small_world()
    labeler: Labeler = world.labeler
    state: NetworkState = fold([labeler.step() for _ in range(300)], {})
    assert state.labels == labeler.standing
    assert any(label.neg for label in state.labels.values())
    assert any(label.exp for label in state.labels.values())
