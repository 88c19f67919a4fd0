"""Small simulated networks for tests; equal arguments give equal networks."""

from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World

START = 1_700_000_000_000_000


def small_world(seed: int = 1, accounts: int = 12, history: int = 6) -> World:
    """Return a network of a few accounts, some with a history."""
    world = World(seed, accounts, stepping_clock(START, 1_000))
    world.add_history(history)
    return world
