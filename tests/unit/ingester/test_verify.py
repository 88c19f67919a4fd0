"""Signatures: nothing false is written, nothing true is lost, and nothing stands still."""

import json
from collections.abc import Iterable

import pytest
import trio
import trio.testing

from rsky_pipeline.atproto.car import write_car
from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import parse_commit, sign_commit
from rsky_pipeline.atproto.crypto import PrivateKey, PublicKey
from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.atproto.identity import DidDocument, parse_did_document
from rsky_pipeline.atproto.signatures import check_all
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.configuration.settings import Verify
from rsky_pipeline.ingester import verify
from rsky_pipeline.ingester.convert import Claim, Converted
from rsky_pipeline.ingester.intake import Intake
from rsky_pipeline.ingester.seq_gate import SeqGate
from rsky_pipeline.ingester.tally import Tally
from rsky_pipeline.ingester.verify import SignatureVerifier, Verdict
from rsky_pipeline.network.directory import IdentityNotFound, IdentityUnavailable
from tests.data import test_data
from tests.data_frames import corpus_documents, corpus_frames
from tests.unit.ingester.support import Converting

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
REV = "3mptbypluud2a"
TIME = "2026-07-04T14:38:08.999Z"
KEY = PrivateKey.from_seed("k256", b"a" * 32)
NEW_KEY = PrivateKey.from_seed("p256", b"b" * 32)


class Accounts:
    """A directory whose answers the test decides."""

    def __init__(self) -> None:
        self.keys: dict[str, PublicKey | Exception | None] = {DID: KEY.public}
        self.cached: dict[str, PublicKey | None] = {}
        self.lookups: list[tuple[str, bool]] = []
        self.slow: dict[str, trio.Event] = {}
        self.at_once = 0
        self.most_at_once = 0

    async def resolve(self, did: str, force: bool = False) -> DidDocument:
        self.lookups.append((did, force))
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            if did in self.slow:
                await self.slow[did].wait()
            await trio.lowlevel.checkpoint()
        finally:
            self.at_once -= 1
        if force or did not in self.cached:
            answer = self.keys[did]
            if isinstance(answer, Exception):
                raise answer
            self.cached[did] = answer
        return DidDocument(did, None, None, self.cached[did])

    def forget(self, did: str) -> None:
        self.cached.pop(did, None)


class Written:
    """Stands where the writer stands, and keeps what it is given."""

    def __init__(self) -> None:
        self.frames: list[Converted] = []
        self.closed = False

    def put(self, frames: Iterable[Converted]) -> None:
        self.frames += frames

    @property
    def seqs(self) -> list[int | None]:
        return [frame.seq for frame in self.frames]


def claim(key: PrivateKey = KEY, did: str = DID) -> Claim:
    return Claim(did, parse_commit(sign_commit(did, REV, Cid.of(b"data"), None, key)))


def frame(seq: int, did: str = DID, key: PrivateKey = KEY, padding: bytes = b"") -> bytes:
    """Return a commit frame whose commit is really signed; its tree is not in it."""
    record = encode({"$type": "app.bsky.feed.like", "seq": seq})
    rev = tid_from(1_783_000_000_000_000 + seq)
    root = sign_commit(did, rev, Cid.of(b"data"), None, key)
    body = {
        "seq": seq, "repo": did, "rev": rev, "since": None, "commit": Cid.of(root), "blobs": [],
        "blocks": write_car(
            [Cid.of(root)], [(Cid.of(block), block) for block in (root, record, padding)]
        ),
        "ops": [{"action": "create", "path": "app.bsky.feed.like/a", "cid": Cid.of(record)}],
        "time": TIME, "tooBig": False,
    }  # fmt: skip
    return encode_frame("#commit", body)


def identity(seq: int, did: str = DID) -> bytes:
    return encode_frame("#identity", {"seq": seq, "did": did, "time": TIME})


def at_once(verifier: SignatureVerifier, claimed: Claim) -> Verdict | None:
    check = verifier.check(claimed)
    return verifier.decide_at_once(claimed, check, check is not None and check_all([check])[0])


async def verdict(verifier: SignatureVerifier, claimed: Claim) -> Verdict:
    return at_once(verifier, claimed) or await verifier.decide(claimed)


async def test_a_good_signature_takes_one_lookup_and_then_none() -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    assert at_once(verifier, claim()) is None
    assert await verifier.decide(claim()) is Verdict.VALID
    assert at_once(verifier, claim()) is Verdict.VALID
    assert accounts.lookups == [(DID, False)]


@pytest.mark.parametrize(
    "forged", [claim(NEW_KEY), claim(did="did:plc:b")._replace(did=DID), Claim(DID, None)]
)
async def test_what_the_account_did_not_sign_is_forged(forged: Claim) -> None:
    verifier = SignatureVerifier(Accounts())
    assert await verdict(verifier, forged) is Verdict.FORGED


async def test_a_new_key_is_found_by_one_forced_lookup() -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    assert await verdict(verifier, claim()) is Verdict.VALID
    accounts.keys[DID] = NEW_KEY.public
    assert await verdict(verifier, claim(NEW_KEY)) is Verdict.VALID
    assert accounts.lookups == [(DID, False), (DID, True)]
    # The old key is refused now, without asking again so soon.
    assert at_once(verifier, claim()) is Verdict.FORGED


async def test_bad_signatures_ask_the_directory_once_in_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    for _ in range(20):
        assert await verdict(verifier, claim(NEW_KEY)) is Verdict.FORGED
    assert len(accounts.lookups) == 2
    await trio.sleep(verify.REFRESH_SECONDS + 1)
    assert await verdict(verifier, claim(NEW_KEY)) is Verdict.FORGED
    assert accounts.lookups[2:] == [(DID, True)]


async def test_an_identity_event_makes_the_next_commit_ask() -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    assert await verdict(verifier, claim()) is Verdict.VALID
    accounts.keys[DID] = NEW_KEY.public
    verifier.forget(DID)
    assert await verdict(verifier, claim(NEW_KEY)) is Verdict.VALID
    assert accounts.lookups == [(DID, False), (DID, False)]


async def test_accounts_without_identity_or_key() -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    accounts.keys[DID] = IdentityNotFound("gone")
    assert await verdict(verifier, claim()) is Verdict.NO_ACCOUNT
    accounts.keys[DID] = None
    assert await verdict(verifier, claim()) is Verdict.NO_ACCOUNT


async def test_a_strangers_host_that_fails_or_hangs_costs_little_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    down, slow = "did:web:down.test", "did:web:slow.test"
    accounts.keys[down] = IdentityUnavailable("down")
    of_down = claim(did=down)
    assert await verdict(verifier, of_down) is Verdict.UNVERIFIED
    assert at_once(verifier, of_down) is Verdict.UNVERIFIED
    assert len(accounts.lookups) == 1
    accounts.slow[slow] = trio.Event()
    before = trio.current_time()
    assert await verdict(verifier, claim(did=slow)) is Verdict.UNVERIFIED
    assert trio.current_time() - before == pytest.approx(verify.STRANGER_SECONDS)
    accounts.keys[down] = KEY.public
    await trio.sleep(verify.UNAVAILABLE_SECONDS + 1)
    assert await verdict(verifier, of_down) is Verdict.VALID


async def test_our_own_directory_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    accounts.keys[DID] = IdentityUnavailable("restarting")
    verdicts = []
    async with trio.open_nursery() as nursery:

        async def decide() -> None:
            verdicts.append(await verdict(verifier, claim()))

        nursery.start_soon(decide)
        await trio.sleep(verify.DIRECTORY_SECONDS / 2)
        assert verdicts == []
        accounts.keys[DID] = KEY.public
    assert verdicts == [Verdict.VALID]


async def test_our_own_directory_is_not_waited_for_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    accounts.keys[DID] = IdentityUnavailable("down")
    before = trio.current_time()
    assert await verdict(verifier, claim()) is Verdict.UNVERIFIED
    assert trio.current_time() - before == pytest.approx(verify.DIRECTORY_SECONDS)


async def test_a_known_key_still_proves_while_the_directory_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "DIRECTORY_SECONDS", 1.0)
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    assert await verdict(verifier, claim()) is Verdict.VALID
    accounts.keys[DID] = IdentityUnavailable("down")
    assert await verdict(verifier, claim(NEW_KEY)) is Verdict.UNVERIFIED
    assert await verdict(verifier, claim()) is Verdict.VALID


async def test_keys_are_kept_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MAX_KEYS", 10)
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    for number in range(50):
        did = f"did:web:host{number}.test"
        accounts.keys[did] = KEY.public
        assert await verdict(verifier, claim(did=did)) is Verdict.VALID
    assert len(verifier._keys) == 10


def start(
    nursery: trio.Nursery, accounts: Accounts, verify: Verify = "signature"
) -> tuple[Intake, Written, Tally]:
    made, written = Converting(verify), Written()
    intake = Intake(
        made.converter, written, SeqGate(0), nursery, SignatureVerifier(accounts), made.judge
    )
    return intake, written, made.tally


async def test_a_forged_commit_is_fetched_and_never_written() -> None:
    accounts = Accounts()
    async with trio.open_nursery() as nursery:
        intake, written, tally = start(nursery, accounts)
        await intake.take([frame(1, key=NEW_KEY), frame(2), identity(3)])
    assert written.seqs == [1, 2, 3]
    assert [[entry.stream for entry in item.entries] for item in written.frames] == [
        ["repo_backfill_high"], ["firehose_live"], ["firehose_live"],
    ]  # fmt: skip
    assert json.loads(written.frames[0].entries[0].payload)["did"] == DID
    assert tally.verdicts == {"forged": 1, "valid": 1}
    assert tally.resyncs == {"forged": 1}


async def test_many_signatures_are_checked_beside_the_reading_and_in_order() -> None:
    accounts = Accounts()
    async with trio.open_nursery() as nursery:
        intake, written, tally = start(nursery, accounts)
        await intake.take([frame(1)])
        with trio.fail_after(5):
            while not written.frames:
                await trio.testing.wait_all_tasks_blocked()
        forged = {17, 70, 199}
        frames = [frame(seq, key=NEW_KEY if seq in forged else KEY) for seq in range(2, 200)]
        await intake.take(frames)
        assert len(written.frames) < 199
    assert written.seqs == list(range(1, 200))
    assert tally.verdicts == {"forged": 3, "valid": 196}
    streams = {item.seq: [entry.stream for entry in item.entries] for item in written.frames}
    assert {seq for seq, found in streams.items() if "firehose_live" not in found} == forged
    assert tally.seconds["signature"] > 0


async def test_what_was_read_is_passed_on_though_the_connection_ends() -> None:
    accounts = Accounts()
    async with trio.open_nursery() as nursery:
        intake, written, _ = start(nursery, accounts)
        await intake.take([frame(1)])
        await trio.testing.wait_all_tasks_blocked()
        await intake.take([frame(seq) for seq in range(2, 100)])
        nursery.cancel_scope.cancel()
    assert written.seqs == list(range(1, 100))


async def test_a_key_that_is_replaced_during_a_check_condemns_nothing() -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    assert await verdict(verifier, claim()) is Verdict.VALID
    begun = verifier.check(claim(NEW_KEY))
    assert begun is not None
    assert check_all([begun]) == [False]
    accounts.keys[DID] = NEW_KEY.public
    assert await verdict(verifier, claim(NEW_KEY)) is Verdict.VALID
    assert verifier.decide_at_once(claim(NEW_KEY), begun, good=False) is None
    assert await verifier.decide(claim(NEW_KEY)) is Verdict.VALID


async def test_reading_pauses_when_what_waits_for_proof_is_large() -> None:
    accounts = Accounts()
    accounts.slow[DID] = trio.Event()
    padding = bytes(1_000_000)
    async with trio.open_nursery() as nursery:
        intake, written, _ = start(nursery, accounts)
        await intake.take([frame(seq, padding=padding) for seq in range(1, 31)])
        with trio.fail_after(1):
            await intake.room()
        await intake.take([frame(seq, padding=padding) for seq in range(31, 41)])
        with trio.move_on_after(0.05) as waited:
            await intake.room()
        assert waited.cancelled_caught
        assert not written.frames
        accounts.slow[DID].set()
        await intake.room()
    assert written.seqs == list(range(1, 41))


async def test_an_account_that_cannot_be_looked_up_is_fetched_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "DIRECTORY_SECONDS", 1.0)
    accounts = Accounts()
    accounts.keys[DID] = IdentityUnavailable("down")
    async with trio.open_nursery() as nursery:
        intake, written, tally = start(nursery, accounts)
        await intake.take([frame(1)])
    assert [entry.stream for entry in written.frames[0].entries] == ["repo_backfill_high"]
    assert tally.resyncs == {"unverified": 1}


async def test_nothing_of_an_account_that_does_not_exist_is_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    accounts = Accounts()
    accounts.keys[DID] = IdentityNotFound("gone")
    async with trio.open_nursery() as nursery:
        intake, written, tally = start(nursery, accounts)
        await intake.take([frame(1)])
    assert written.seqs == [1]
    assert written.frames[0].entries == []
    assert tally.verdicts == {"no_account": 1}
    assert "left out a commit of an account that does not exist" in caplog.messages


async def test_lookups_run_at_once_and_frames_leave_in_order() -> None:
    accounts = Accounts()
    dids = [f"did:web:host{number}.test" for number in range(100)]
    for did in dids:
        accounts.keys[did] = KEY.public
        accounts.slow[did] = trio.Event()
    async with trio.open_nursery() as nursery:
        intake, written, _ = start(nursery, accounts)
        await intake.take([frame(seq, did=did) for seq, did in enumerate(dids, start=1)])
        await intake.take([identity(101)])
        await trio.testing.wait_all_tasks_blocked()
        assert written.seqs == []
        assert accounts.most_at_once == verify.MAX_LOOKUPS
        for did in reversed(dids[1:]):
            accounts.slow[did].set()
        await trio.testing.wait_all_tasks_blocked()
        assert written.seqs == []
        accounts.slow[dids[0]].set()
    assert written.seqs == list(range(1, 102))


async def test_reading_waits_while_too_many_frames_lack_proof() -> None:
    accounts = Accounts()
    slow = accounts.slow[DID] = trio.Event()
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        intake, written, _ = start(nursery, accounts)
        await intake.take([frame(seq) for seq in range(1, 2_002)])

        async def wait() -> None:
            await intake.room()
            done.set()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        slow.set()
    assert done.is_set()
    assert written.seqs == list(range(1, 2_002))


@pytest.mark.parametrize("mode", ["signature", "full"])
async def test_every_commit_of_the_real_window_is_valid(mode: Verify) -> None:
    corpus = test_data("fixtures/jetstream/corpus")
    documents = corpus_documents(corpus)
    accounts = Accounts()
    for did, document in documents.items():
        accounts.keys[did] = parse_did_document(document, did).signing_key
    async with trio.open_nursery() as nursery:
        intake, written, tally = start(nursery, accounts, mode)
        await intake.take(corpus_frames(corpus))
    assert tally.verdicts == {"valid": 148}
    assert len(written.frames) == 150
    assert (tally.errors, tally.resyncs, tally.replays) == ({}, {}, 0)
    assert sum(frame.state is not None for frame in written.frames) == 148
