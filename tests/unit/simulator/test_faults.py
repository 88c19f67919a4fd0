"""What a hostile relay makes of a world."""

from collections import Counter
from itertools import pairwise

import pytest

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.commit import parse_commit, verify_commit
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    IdentityMessage,
    Message,
    SyncMessage,
    decode_frame,
)
from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.faults import (
    ANY_FRAME,
    FAR,
    FORGED,
    OF_COMMITS,
    OF_NEWS,
    Event,
    Hostility,
    UnknownFaultError,
)
from rsky_pipeline.demo.simulator.world import World

START, STEP = 1_767_225_600_000_000, 1_000


EVENTS = 400


def run(
    rates: dict[str, float] | None = None, seed: int = 1
) -> tuple[World, Hostility, list[Event]]:
    """Return what a relay with these faults sends of a world."""
    world = World(seed, 20, stepping_clock(START, STEP))
    hostility = Hostility(seed)
    hostility.set_rates(rates or {})
    sent = [event for _ in range(EVENTS) for event in hostility.relay(world.step())]
    return world, hostility, [*sent, *hostility.flush()]


def readable(events: list[Event]) -> list[Message]:
    found = []
    for event in events:
        for frame in event.frames:
            try:
                found.append(decode_frame(frame))
            except InvalidDataError:
                continue
    return found


def commits(events: list[Event]) -> list[CommitMessage]:
    return [message for message in readable(events) if isinstance(message, CommitMessage)]


def seq_of(message: Message) -> int:
    seq = getattr(message, "seq", None)
    assert isinstance(seq, int)
    return seq


def is_signed(world: World, message: CommitMessage) -> bool:
    """Tell whether the newest key signed the commit that the frame is about."""
    block = read_car(message.blocks).blocks[message.commit]
    return verify_commit(parse_commit(block), world.by_did[message.did].key.public)


def test_without_faults_only_the_numbers_are_the_relays_own() -> None:
    world, hostility, events = run()
    again = World(1, 20, stepping_clock(START, STEP))
    true = [decode_frame(again.step()) for _ in range(400)]
    assert [event.seq for event in events] == list(range(1, 401))
    for message, original in zip(readable(events), true, strict=True):
        assert type(message) is type(original)
        if isinstance(message, CommitMessage) and isinstance(original, CommitMessage):
            assert (message.blocks, message.ops) == (original.blocks, original.ops)
            assert (message.prev_data, message.since) == (original.prev_data, original.since)
            assert is_signed(world, message)
        if isinstance(message, AccountMessage) and isinstance(original, AccountMessage):
            assert (message.active, message.status) == (original.active, original.status)
        if isinstance(message, IdentityMessage) and isinstance(original, IdentityMessage):
            assert message.handle == original.handle
    assert not +hostility.counts


def test_the_same_seed_does_the_same() -> None:
    rates = dict.fromkeys((*ANY_FRAME, *OF_COMMITS), 0.05)
    assert run(rates)[2] == run(rates)[2]
    assert run(rates)[2] != run(rates, seed=2)[2]


@pytest.mark.parametrize("fault", [*ANY_FRAME, *OF_COMMITS, *OF_NEWS])
def test_every_fault_happens_and_is_counted(fault: str) -> None:
    _, hostility, events = run({fault: 0.2})
    _, _, honest = run()
    assert set(+hostility.counts) == {fault}
    assert hostility.counts[fault] > 3
    assert events != honest
    assert [event.seq for event in events] == sorted({event.seq for event in events})


def test_dropped_and_repeated_frames() -> None:
    _, hostility, events = run({"drop": 0.1})
    assert len(events) == 400 - hostility.counts["drop"]
    _, hostility, events = run({"repeat": 0.1})
    assert sum(len(event.frames) for event in events) == 400 + hostility.counts["repeat"]


def test_a_number_that_leaps_is_that_of_one_frame_only() -> None:
    _, hostility, events = run({"leap": 0.05})
    leaps = [seq_of(message) for message in readable(events) if seq_of(message) > 1_000_000]
    assert len(leaps) == hostility.counts["leap"] > 0
    assert [event.seq for event in events] == list(range(1, 401))


def test_news_from_the_future_is_true_but_for_its_time() -> None:
    _, hostility, events = run({"future": 0.5})
    times = [getattr(message, "time", "") for message in readable(events)]
    assert times.count(FAR) == hostility.counts["future"] > 0


def test_a_reordered_frame_comes_with_a_number_below_the_one_before() -> None:
    _, hostility, events = run({"reorder": 0.1})
    numbers = [seq_of(message) for message in readable(events)]
    assert sorted(numbers) != numbers
    assert len(numbers) == 400
    back = sum(later < earlier for earlier, later in pairwise(numbers))
    assert 0 < back <= hostility.counts["reorder"]


def test_damaged_frames_are_unreadable_or_say_what_can_be_refuted() -> None:
    world, hostility, events = run({"corrupt": 0.3, "truncate": 0.2})
    unreadable = sum(len(event.frames) for event in events) - len(readable(events))
    assert unreadable > hostility.counts["truncate"] * 0.9
    true, changed = Counter[bool](), 0
    _, _, honest = run()
    originals = {message.commit: message for message in commits(honest)}
    for message in commits(events):
        original = originals.get(message.commit)
        same = original is not None and (message.blocks, message.ops, message.did, message.rev) == (
            original.blocks, original.ops, original.did, original.rev,
        )  # fmt: skip
        true[same] += 1
        changed += not same
    assert true[True] > 50
    assert changed > 0
    assert world.accounts


def test_forgeries_are_marked_and_not_signed_by_their_account() -> None:
    world, hostility, events = run({"forge": 0.1})
    forged = [m for m in commits(events) if any(op.path.startswith(FORGED) for op in m.ops)]
    assert len(forged) == hostility.counts["forge"]
    assert not any(is_signed(world, message) for message in forged)
    assert len(events) == 400 + len(forged)


def test_what_is_smuggled_or_hidden_is_under_a_true_signature() -> None:
    for fault in ("smuggle", "hide", "strip"):
        world, hostility, events = run({fault: 0.1})
        assert all(is_signed(world, message) for message in commits(events))
        _, _, honest = run()
        counts = [len(message.ops) for message in commits(honest)]
        changed = [len(message.ops) for message in commits(events)]
        step = 1 if fault == "smuggle" else -1
        assert sum(changed) - sum(counts) == step * hostility.counts[fault]


def test_too_big_and_sync_stand_in_for_commits() -> None:
    _, hostility, events = run({"too_big": 0.1, "sync": 0.1})
    assert sum(message.too_big for message in commits(events)) == hostility.counts["too_big"]
    syncs = [message for message in readable(events) if isinstance(message, SyncMessage)]
    assert len(syncs) >= hostility.counts["sync"]
    for message in syncs:
        [root] = read_car(message.blocks).roots
        assert parse_commit(read_car(message.blocks).blocks[root]).rev == message.rev


def test_a_rotated_key_signs_from_then_on() -> None:
    world = World(1, 5, stepping_clock(START, STEP))
    for _ in range(30):
        world.step()
    before = {account.did: account.key for account in world.accounts}
    world.rotate_key(7, quietly=True)
    [changed] = [account for account in world.accounts if account.key != before[account.did]]
    while world.is_in_the_middle:
        message = decode_frame(world.step())
    assert isinstance(message, CommitMessage)
    assert message.did == changed.did
    assert is_signed(world, message)


def test_in_the_end_everybody_is_heard_of_once_more() -> None:
    world, hostility, _ = run({"drop": 0.5})
    hostility.be_honest()
    world.end()
    heard: dict[str, set[str]] = {}
    while world.is_in_the_middle:
        for message in readable(hostility.relay(world.step())):
            heard.setdefault(getattr(message, "did", ""), set()).add(type(message).__name__)
    for account in world.accounts:
        if account.born:
            expected = {"IdentityMessage", "AccountMessage"}
            assert heard[account.did] >= expected | ({"CommitMessage"} if account.active else set())


def test_unknown_faults_are_refused() -> None:
    for rates in ({"tease": 0.1}, {"drop": 1.5}, {"drop": -0.1}):
        with pytest.raises(UnknownFaultError):
            Hostility(1).set_rates(rates)
