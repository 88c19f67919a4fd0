"""An ingester whose Redis failed over behind its address."""

from tests.integration.ingester.relay import Relay, running
from tests.integration.ingester.test_live import cursor, likes, written
from tests.integration.ingester.worker import eventually, ingesting
from tests.integration.streams.support import UnreliableProxy
from tests.stores import redis_client, running_valkey


def fail_over(old: str, new: str, proxy: UnreliableProxy) -> None:
    """Give the new primary what the old one holds, and make the old one a replica."""
    with redis_client(old) as source, redis_client(new) as target:
        for key in source.scan_iter():
            target.restore(key, 0, source.dump(key))
        proxy.switch(new)
        source.execute_command("REPLICAOF", "127.0.0.1", "1")


async def test_the_ingester_goes_on_with_the_new_primary() -> None:
    relay = Relay(likes(1, 2, 3))
    with running_valkey() as old, running_valkey() as new, UnreliableProxy(old) as proxy:
        async with running(relay), ingesting(proxy.url, relay.url):
            await eventually(lambda: cursor(old, relay) == "3")
            fail_over(old, new, proxy)
            relay.add(*likes(4, 5))
            await eventually(lambda: cursor(new, relay) == "5")
        assert written(new) == [1, 2, 3, 4, 5]
