"""Simulated repos are real ones: everything that a strict consumer checks holds."""

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.commit import parse_commit, verify_commit
from rsky_pipeline.atproto.frame import CommitMessage, decode_frame
from rsky_pipeline.atproto.mst import Change, invert, walk
from rsky_pipeline.simulator.clock import stepping_clock
from rsky_pipeline.simulator.truth import truth
from rsky_pipeline.simulator.world import World


def make(seed: int = 1) -> World:
    world = World(seed, 12, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(5)
    return world


def test_every_commit_is_signed_chained_and_invertible() -> None:
    world = make()
    state = {item.did: (item.rev, item.tree.root) for item in world.accounts}
    commits = 0
    for _ in range(600):
        message = decode_frame(world.step())
        if not isinstance(message, CommitMessage):
            continue
        commits += 1
        car = read_car(message.blocks)
        commit = parse_commit(car.blocks[message.commit])
        assert verify_commit(commit, world.by_did[message.did].key.public)
        assert (message.since, message.prev_data) == state[message.did]
        changes = [Change(op.path, op.cid, op.prev) for op in message.ops]
        assert invert(car.blocks, commit.data, changes) == message.prev_data
        assert all(op.cid is None or op.cid in car.blocks for op in message.ops)
        assert commit.rev > state[message.did][0]
        state[message.did] = (commit.rev, commit.data)
    assert commits > 500


def test_a_repo_walks_to_what_the_account_holds() -> None:
    world = make()
    for _ in range(300):
        world.step()
    for account in world.accounts:
        car = read_car(world.car(account))
        commit = parse_commit(car.blocks[car.roots[0]])
        expected = {path: cid for path, (cid, _, _) in account.records.items()}
        assert dict(walk(car.blocks, commit.data)) == expected


def test_the_same_seed_gives_the_same_network() -> None:
    first, second, other = make(), make(), make(2)
    assert [first.step() for _ in range(100)] == [second.step() for _ in range(100)]
    assert other.step() != first.step()


def test_the_truth_of_a_small_network() -> None:
    world = make()
    for _ in range(2_000):
        world.step()
    rows = truth(world)
    likes = {row[0]: row for row in rows["like"]}
    keys = {(row[1], row[2]) for row in rows["like"]}
    assert len(keys) == len(likes)
    all_likes = [row[0] for row in rows["record"] if "/app.bsky.feed.like/" in row[0]]
    assert len(all_likes) > len(likes), "there are duplicates to choose from"
    assert sum(row[1] for row in rows["likeCount"]) == len(likes)
    assert sum(row[1] for row in rows["postsCount"]) == len(rows["post"])
    assert not any("com.example" in row[0] for row in rows["record"])
