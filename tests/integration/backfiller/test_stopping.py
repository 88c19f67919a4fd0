"""A backfiller that cannot reach Redis while it starts is still stopped."""

import trio

from rsky_pipeline.backfiller.role import run
from tests.integration.backfiller.kit import Configure, Running


async def test_a_stop_is_noticed_while_redis_is_waited_for(configure: Configure) -> None:
    running = Running(configure(redis_url="redis://127.0.0.1:1"))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, running.context)
            while not running.value("store_errors_total"):
                await trio.sleep(0.05)
            assert not running.ready.is_set()
            running.context.stopping.set()
