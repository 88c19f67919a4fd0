"""Blocked accounts and hosts are dropped before anything is checked or asked for."""

import json

import trio

from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.configuration.selection import Selection
from rsky_pipeline.ingester.commits.signatures import SignatureVerifier
from rsky_pipeline.ingester.commits.states import make_state
from tests.unit.ingester.claims import DID, KEY, TIME, Accounts, Written, frame, identity
from tests.unit.ingester.support import Converting

OTHER = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"
PDS = "https://pds.example.com"


def account(seq: int, did: str, active: bool) -> bytes:
    body = {"seq": seq, "did": did, "time": TIME, "active": active}
    return encode_frame("#account", body if active else body | {"status": "deleted"})


def begun(selection: Selection) -> tuple[Converting, Accounts, SignatureVerifier, Written]:
    made, accounts, written = Converting("signature"), Accounts(), Written()
    accounts.keys[OTHER] = KEY.public
    accounts.hosts = {DID: PDS, OTHER: "https://other.example.com"}
    verifier = SignatureVerifier(accounts)
    made.shared.selection = selection
    made.shared.known_host = verifier.known_host
    return made, accounts, verifier, written


def kinds(written: Written) -> dict[int | None, list[str]]:
    return {
        item.seq: [json.loads(entry.payload).get("type", entry.stream) for entry in item.entries]
        for item in written.frames
    }


async def test_nothing_of_a_blocked_account_is_checked_asked_for_or_fetched() -> None:
    """But the cursor covers it, and that it is gone is passed on, for the rows that it has."""
    made, accounts, verifier, written = begun(Selection(1, frozenset((DID,))))
    state = make_state(1, None)
    made.shared.states.set(DID, state)
    unreadable = encode_frame("#commit", {"seq": 9, "repo": DID, "rev": "x", "ops": 1})
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 0, nursery, verifier)
        await intake.take([
            frame(1), identity(2), account(3, DID, active=False), account(4, DID, active=True),
            frame(5, did=OTHER), unreadable,
        ])  # fmt: skip
    assert {did for did, _ in accounts.lookups} == {OTHER}
    found = kinds(written)
    assert (found[1], found[2]) == ([], [])
    assert (found[3], found[4]) == (["account"], ["account"])
    assert found[5] == ["create"]
    assert made.counters.blocked == {"account": 2}
    assert made.counters.verdicts == {"valid": 1}
    assert not made.counters.resyncs
    assert made.shared.states.get(DID) == state


async def test_an_account_of_a_blocked_host_is_looked_up_once_and_then_dropped() -> None:
    made, accounts, verifier, written = begun(Selection(1, hosts=frozenset((".example.com",))))
    accounts.hosts[OTHER] = "https://example.com"
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 0, nursery, verifier)
        await intake.take([frame(1)])
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 1, nursery, verifier)
        await intake.take([frame(2), frame(3, did=OTHER), identity(4)])
    assert accounts.lookups == [(DID, False), (OTHER, False)]
    assert kinds(written) == {1: [], 2: [], 3: ["create"], 4: []}
    assert made.counters.blocked == {"host": 3}
    assert made.shared.states.get(DID) is None


async def test_an_account_that_leaves_a_blocked_host_is_heard_again() -> None:
    made, accounts, verifier, written = begun(Selection(1, hosts=frozenset(("pds.example.com",))))
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 0, nursery, verifier)
        await intake.take([frame(1)])
    accounts.hosts[DID] = "https://new.example.com"
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 1, nursery, verifier)
        await intake.take([identity(2), frame(3)])
    assert kinds(written)[3] == ["create"]


async def test_a_lifted_block_breaks_the_chain_so_that_the_repo_is_fetched() -> None:
    made, _, verifier, written = begun(Selection())
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 0, nursery, verifier)
        await intake.take([frame(1)])
    for seq, selection in ((2, Selection(1, frozenset((DID,)))), (3, Selection(2))):
        made.shared.selection = selection
        async with trio.open_nursery() as nursery:
            intake = made.intake(written, seq - 1, nursery, verifier)
            await intake.take([frame(seq, since=seq_rev(seq - 1))])
    assert kinds(written) == {1: ["create"], 2: [], 3: ["repo_backfill_high", "create"]} or (
        kinds(written)[3] == ["create", "repo_backfill_high"]
    )
    assert made.counters.resyncs == {"broken_chain": 1}


def seq_rev(seq: int) -> str:
    from rsky_pipeline.atproto.syntax import tid_from

    return tid_from(1_783_000_000_000_000 + seq)


async def test_operations_on_a_blocked_collection_are_left_out_and_the_state_goes_on() -> None:
    made, _, verifier, written = begun(Selection())
    made.converter.left_out = ("app.bsky.feed.like/",)
    async with trio.open_nursery() as nursery:
        intake = made.intake(written, 0, nursery, verifier)
        await intake.take([frame(1)])
    assert kinds(written) == {1: []}
    assert made.counters.blocked == {"collection": 1}
    assert made.shared.states.get(DID) is not None
