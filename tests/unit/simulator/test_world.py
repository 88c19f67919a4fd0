"""A simulated world goes on for as long as it is asked to."""

from collections import Counter

import pytest

from rsky_pipeline.atproto.frame import AccountMessage, SyncMessage, decode_frame
from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World


@pytest.mark.parametrize("accounts", [2, 5])
def test_a_small_world_does_not_die_out(accounts: int) -> None:
    world = World(1, accounts, stepping_clock(1_700_000_000_000_000, 1_000))
    for _ in range(4_000 * accounts):
        world.step()
    left = [account for account in world.accounts if not account.deleted]
    assert left
    assert accounts == 2 or len(left) < accounts


def test_nothing_in_a_calm_world_makes_a_repo_be_fetched_again() -> None:
    def kinds(*, calm: bool) -> Counter[type]:
        world = World(1, 60, stepping_clock(1_700_000_000_000_000, 1_000), calm=calm)
        messages = [decode_frame(world.step()) for _ in range(3_000)]
        inactive = [m for m in messages if isinstance(m, AccountMessage) and not m.active]
        assert bool(inactive) is not calm
        return Counter(type(message) for message in messages)

    assert SyncMessage not in kinds(calm=True)
    assert SyncMessage in kinds(calm=False)


def test_accounts_are_spread_over_hosts() -> None:
    world = World(1, 6, stepping_clock(1_700_000_000_000_000, 1_000))
    world.spread(["https://a.example.com", "https://b.example.com"])
    documents = [world.document(account.did, "http://own", "") for account in world.accounts]
    hosts = [document["service"][0]["serviceEndpoint"] for document in documents if document]
    assert hosts == ["https://a.example.com", "https://b.example.com"] * 3
