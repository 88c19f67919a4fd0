"""Threads for blocking clients, one at a time per connection.

A hop costs 0.1 ms, and 0.25 ms on a busy machine, so make one per batch. A thread cannot be
cancelled: the server must bound the duration of every call (`XREADGROUP BLOCK`,
`statement_timeout`). Never use trio's default limiter: a hung database would then starve DNS
look-ups and all other thread calls.
"""

import gc
import sys
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import trio

# The GIL switch interval: a thread that returns from a store waits at most this long for the GIL.
# With Python's default of 5 ms, reading the indexer's next batch doubled the current one's time.
_SWITCH_SECONDS = 0.0001
# By default the cyclic garbage collector runs after every 700 new objects (Python 3.11, 3.12). A
# batch of events has about 100,000 objects, hardly any in a cycle: the collector took a tenth of
# the decoding time.
_YOUNG, _MIDDLE, _OLD = 50_000, 20, 100

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def take_turns_quickly() -> None:
    """Shorten the GIL switch interval of this process."""
    sys.setswitchinterval(_SWITCH_SECONDS)


async def in_thread(
    function: Callable[[Unpack[Arguments]], Result],
    *args: *Arguments,
    limiter: trio.CapacityLimiter,
) -> Result:
    """Call a blocking function in a thread; waits for its end even if cancelled."""
    return await trio.to_thread.run_sync(function, *args, limiter=limiter)


def ease_collector() -> None:
    """Run the garbage collector less often, and exempt all objects that exist now (gc.freeze)."""
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
