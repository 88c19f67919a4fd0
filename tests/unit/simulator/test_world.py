"""A simulated world goes on for as long as it is asked to."""

import pytest

from rsky_pipeline.simulator.clock import stepping_clock
from rsky_pipeline.simulator.world import World


@pytest.mark.parametrize("accounts", [2, 5])
def test_a_small_world_does_not_die_out(accounts: int) -> None:
    world = World(1, accounts, stepping_clock(1_700_000_000_000_000, 1_000))
    for _ in range(4_000 * accounts):
        world.step()
    left = [account for account in world.accounts if not account.deleted]
    assert left
    assert accounts == 2 or len(left) < accounts
