"""A worker whose Redis failed over behind its address."""

from rsky_pipeline.streams.names import FIREHOSE_LIVE
from tests.integration.indexer.kit import Network, Tables
from tests.integration.indexer.worker import entries, eventually, feed, indexing
from tests.integration.streams.support import UnreliableProxy
from tests.stores import redis_client, running_valkey


async def test_the_indexer_goes_on_with_the_new_primary(tables: Tables) -> None:
    net = Network()
    with running_valkey() as old, running_valkey() as new, UnreliableProxy(old) as proxy:
        feed(old, net.follow("ann", "bob"))
        async with indexing(proxy.url, tables.url) as worker:
            await worker.ready.wait()
            await eventually(lambda: len(tables.rows("follow", "uri")) == 1)
            proxy.switch(new)
            with redis_client(old) as client:
                client.execute_command("REPLICAOF", "127.0.0.1", "1")
            feed(new, net.follow("ann", "cyd"))
            await eventually(lambda: len(tables.rows("follow", "uri")) == 2)
            await eventually(lambda: not entries(new, FIREHOSE_LIVE))
