"""Signatures: nothing false is written, nothing true is lost, and nothing stands still."""

import pytest
import trio
import trio.testing

from rsky_pipeline.atproto.commit import Commit, verify_commit
from rsky_pipeline.ingester.commits import signatures
from rsky_pipeline.ingester.commits.signatures import SignatureStatus, SignatureVerifier
from rsky_pipeline.network.directory import IdentityNotFoundError, IdentityUnavailableError
from tests.unit.ingester.claims import (
    DID,
    KEY,
    NEW_KEY,
    Accounts,
    claim,
)


def at_once(verifier: SignatureVerifier, claimed: Commit) -> SignatureStatus | None:
    key = verifier.known_key(claimed.did)
    if key is not None and verify_commit(claimed, key):
        return SignatureStatus.VALID
    return verifier.decide_at_once(claimed, key)


async def verdict(verifier: SignatureVerifier, claimed: Commit) -> SignatureStatus:
    return at_once(verifier, claimed) or await verifier.decide(claimed)


async def test_a_good_signature_takes_one_lookup_and_then_none() -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    assert at_once(verifier, claim()) is None
    assert await verifier.decide(claim()) is SignatureStatus.VALID
    assert at_once(verifier, claim()) is SignatureStatus.VALID
    assert accounts.lookups == [(DID, False)]


async def test_a_commit_that_the_account_did_not_sign_is_forged() -> None:
    verifier = SignatureVerifier(Accounts())
    assert await verdict(verifier, claim(NEW_KEY)) is SignatureStatus.FORGED


async def test_a_new_key_is_found_by_one_forced_lookup() -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    assert await verdict(verifier, claim()) is SignatureStatus.VALID
    accounts.keys[DID] = NEW_KEY.public
    assert await verdict(verifier, claim(NEW_KEY)) is SignatureStatus.VALID
    assert accounts.lookups == [(DID, False), (DID, True)]
    # The old key is refused now, without asking again so soon.
    assert at_once(verifier, claim()) is SignatureStatus.FORGED


async def test_bad_signatures_ask_the_directory_once_in_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    for _ in range(20):
        assert await verdict(verifier, claim(NEW_KEY)) is SignatureStatus.FORGED
    assert len(accounts.lookups) == 2
    await trio.sleep(signatures.REFRESH_SECONDS + 1)
    assert await verdict(verifier, claim(NEW_KEY)) is SignatureStatus.FORGED
    assert accounts.lookups[2:] == [(DID, True)]


async def test_an_identity_event_makes_the_next_commit_ask() -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    assert await verdict(verifier, claim()) is SignatureStatus.VALID
    accounts.keys[DID] = NEW_KEY.public
    verifier.forget(DID)
    assert await verdict(verifier, claim(NEW_KEY)) is SignatureStatus.VALID
    assert accounts.lookups == [(DID, False), (DID, False)]


async def test_accounts_without_identity_or_key() -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    accounts.keys[DID] = IdentityNotFoundError("gone")
    assert await verdict(verifier, claim()) is SignatureStatus.NO_ACCOUNT
    accounts.keys[DID] = None
    assert await verdict(verifier, claim()) is SignatureStatus.NO_ACCOUNT
    # A no is asked for once more by force before it counts, and then not for a while.
    assert accounts.lookups == [(DID, False), (DID, True)]


async def test_an_account_that_is_born_is_found_soon(
    autojump_clock: trio.testing.MockClock,
) -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    accounts.keys[DID] = IdentityNotFoundError("not yet")
    assert await verdict(verifier, claim()) is SignatureStatus.NO_ACCOUNT
    accounts.keys[DID] = KEY.public
    await trio.sleep(signatures.MISSING_SECONDS + 0.1)
    assert await verdict(verifier, claim()) is SignatureStatus.VALID


async def test_a_stale_no_of_the_cache_is_not_the_last_word() -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    accounts.cached[DID] = None  # a document without a key
    assert await verdict(verifier, claim()) is SignatureStatus.VALID
    assert accounts.lookups == [(DID, False), (DID, True)]


async def test_a_strangers_host_that_fails_or_hangs_costs_little_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    down, slow = "did:web:down.test", "did:web:slow.test"
    accounts.keys[down] = IdentityUnavailableError("down")
    of_down = claim(did=down)
    assert await verdict(verifier, of_down) is SignatureStatus.UNVERIFIED
    assert at_once(verifier, of_down) is SignatureStatus.UNVERIFIED
    assert len(accounts.lookups) == 1
    accounts.slow[slow] = trio.Event()
    before = trio.current_time()
    assert await verdict(verifier, claim(did=slow)) is SignatureStatus.UNVERIFIED
    assert trio.current_time() - before == pytest.approx(signatures.STRANGER_SECONDS)
    accounts.keys[down] = KEY.public
    await trio.sleep(signatures.UNAVAILABLE_SECONDS + 1)
    assert await verdict(verifier, of_down) is SignatureStatus.VALID


async def test_our_own_directory_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    accounts.keys[DID] = IdentityUnavailableError("restarting")
    verdicts = []
    async with trio.open_nursery() as nursery:

        async def decide() -> None:
            verdicts.append(await verdict(verifier, claim()))

        nursery.start_soon(decide)
        await trio.sleep(signatures.DIRECTORY_SECONDS / 2)
        assert verdicts == []
        accounts.keys[DID] = KEY.public
    assert verdicts == [SignatureStatus.VALID]


async def test_our_own_directory_is_not_waited_for_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    accounts.keys[DID] = IdentityUnavailableError("down")
    before = trio.current_time()
    assert await verdict(verifier, claim()) is SignatureStatus.UNVERIFIED
    assert trio.current_time() - before == pytest.approx(signatures.DIRECTORY_SECONDS)


async def test_a_known_key_still_proves_while_the_directory_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signatures, "DIRECTORY_SECONDS", 1.0)
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    assert await verdict(verifier, claim()) is SignatureStatus.VALID
    accounts.keys[DID] = IdentityUnavailableError("down")
    assert await verdict(verifier, claim(NEW_KEY)) is SignatureStatus.UNVERIFIED
    assert await verdict(verifier, claim()) is SignatureStatus.VALID


async def test_keys_are_kept_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "MAX_KEYS", 10)
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    for number in range(50):
        did = f"did:web:host{number}.test"
        accounts.keys[did] = KEY.public
        assert await verdict(verifier, claim(did=did)) is SignatureStatus.VALID
    assert len(verifier._keys) == 10


async def test_a_key_that_is_replaced_during_a_check_condemns_nothing() -> None:
    accounts = Accounts()
    verifier = SignatureVerifier(accounts)
    assert await verdict(verifier, claim()) is SignatureStatus.VALID
    begun = verifier.known_key(DID)
    assert begun == KEY.public
    accounts.keys[DID] = NEW_KEY.public
    assert await verdict(verifier, claim(NEW_KEY)) is SignatureStatus.VALID
    assert verifier.decide_at_once(claim(NEW_KEY), begun) is None
    assert await verifier.decide(claim(NEW_KEY)) is SignatureStatus.VALID
