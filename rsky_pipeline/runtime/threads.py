"""Threads beside the event loop: blocking clients, one thread at a time for each connection.

A hop costs about 240 us, so call it once a batch. A thread cannot be cancelled: the server must
bound every call in time (`XREADGROUP BLOCK`, `statement_timeout`). Never use trio's default
limiter: a database that hangs would starve DNS lookups and everything else.
"""

import gc
import sys
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import trio

# A thread that comes back from a store waits for the others' Python code this long at most. With
# Python's own 5 ms, reading the indexer's next batch doubled the time of the current one.
_SWITCH_SECONDS = 0.0001
# Python looks for reference cycles after every 700 objects more. A batch of events is a hundred
# thousand, and hardly any of them is in a cycle: the search cost a tenth of reading events.
_YOUNG, _MIDDLE, _OLD = 50_000, 20, 100

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def take_turns_quickly() -> None:
    """Let the threads of this process wait less for each other."""
    sys.setswitchinterval(_SWITCH_SECONDS)


async def in_thread(
    function: Callable[[Unpack[Arguments]], Result],
    *args: *Arguments,
    limiter: trio.CapacityLimiter,
) -> Result:
    """Call a blocking function in a thread and wait for its end, also when cancelled."""
    return await trio.to_thread.run_sync(function, *args, limiter=limiter)


def ease_collector() -> None:
    """Search for reference cycles less often, and never among the modules loaded by now."""
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
