"""Simulated repos are real ones: everything that a strict consumer checks holds."""

from collections import Counter

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import parse_commit, verify_commit
from rsky_pipeline.atproto.crypto import PublicKey
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    IdentityMessage,
    SyncMessage,
    decode_frame,
)
from rsky_pipeline.atproto.identity import parse_did_document
from rsky_pipeline.atproto.mst import Change, invert, walk
from rsky_pipeline.demo.simulator.world import World
from tests.unit.simulator.networks import small_world

PDS = "http://127.0.0.1:1"


def key_of(world: World, did: str) -> PublicKey:
    document = parse_did_document(world.document(did, PDS, PDS), did)
    assert document.signing_key is not None
    assert document.pds == PDS
    return document.signing_key


def test_every_commit_is_signed_chained_and_invertible() -> None:
    world = small_world()
    heads: dict[str, tuple[str | None, Cid | None]] = {
        account.did: (account.repo.rev, account.repo.data)
        for account in world.accounts
        if account.historic
    }
    actions: Counter[str] = Counter()
    for _ in range(1_500):
        message = decode_frame(world.step())
        if isinstance(message, SyncMessage):
            heads[message.did] = (message.rev, heads[message.did][1])
        if not isinstance(message, CommitMessage):
            continue
        car = read_car(message.blocks)
        assert car.roots == (message.commit,)
        commit = parse_commit(car.blocks[message.commit])
        assert verify_commit(commit, key_of(world, message.did))
        since, data = heads.get(message.did, (None, None))
        assert (message.since, message.prev_data) == (since, data)
        assert (commit.did, commit.rev) == (message.did, message.rev)
        assert since is None or commit.rev > since
        if data is not None:
            changes = [Change(op.path, op.cid, op.prev) for op in message.ops]
            assert invert(car.blocks, commit.data, changes) == data
        assert all(op.cid is None or op.cid in car.blocks for op in message.ops)
        heads[message.did] = (commit.rev, commit.data)
        actions.update(op.action for op in message.ops)
        actions[f"{min(len(message.ops), 2)} ops"] += 1
    assert set(actions) == {"create", "update", "delete", "0 ops", "1 ops", "2 ops"}


def test_a_sync_message_names_the_content_that_is_there() -> None:
    world = small_world()
    account = world.accounts[0]
    before = account.repo.data
    world._frame("#sync", account.repo.announce(world._rev(account)))
    message = decode_frame(world.step())
    assert isinstance(message, SyncMessage)
    car = read_car(message.blocks)
    commit = parse_commit(car.blocks[car.roots[0]])
    assert verify_commit(commit, key_of(world, message.did))
    assert (commit.data, commit.rev) == (before, message.rev)


def test_a_repo_walks_to_what_the_account_holds() -> None:
    world = small_world()
    for _ in range(600):
        world.step()
    compared = 0
    for account in world.accounts:
        if not account.repo.rev:
            continue
        car = read_car(world.car(account.did))
        commit = parse_commit(car.blocks[car.roots[0]])
        assert verify_commit(commit, key_of(world, account.did))
        expected = {path: stored.cid for path, stored in account.repo.items()}
        assert dict(walk(car.blocks, commit.data)) == expected
        assert all(car.blocks[stored.cid] == stored.block for _, stored in account.repo.items())
        compared += len(expected)
    assert compared > 400


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, second, other = small_world(), small_world(), small_world(seed=2)
    frames = [first.step() for _ in range(300)]
    assert [second.step() for _ in range(300)] == frames
    assert [other.step() for _ in range(300)] != frames
    labels = [first.labeler.step() for _ in range(20)]
    assert [second.labeler.step() for _ in range(20)] == labels


def test_numbers_rise_and_accounts_are_born_before_they_write() -> None:
    world = small_world(accounts=40)
    born = {account.did for account in world.accounts if account.historic}
    announced: set[str] = set()
    last = 0
    kinds: Counter[str] = Counter()
    for _ in range(4_000):
        message = decode_frame(world.step())
        kinds[type(message).__name__] += 1
        assert getattr(message, "seq", 0) == world.seq > last
        last = world.seq
        match message:
            case IdentityMessage(did=did):
                announced.add(did)
            case AccountMessage(did=did, active=active):
                assert did in announced
                if active:
                    born.add(did)
                else:
                    born.discard(did)
            case CommitMessage(did=did):
                assert did in born, "only active accounts write"
    assert {"CommitMessage", "AccountMessage", "IdentityMessage", "SyncMessage"} == set(kinds)
    assert last > 4_000, "numbers have gaps, as on a real relay"


def test_an_account_with_a_history_never_becomes_unreachable() -> None:
    world = small_world(accounts=30)
    hidden: set[str] = set()
    for _ in range(5_000):
        message = decode_frame(world.step())
        if isinstance(message, AccountMessage) and not message.active:
            hidden.add(message.did)
    assert hidden
    assert hidden.isdisjoint(account.did for account in world.accounts if account.historic)
