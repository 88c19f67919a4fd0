"""A fail-over behind one address: the old primary keeps its connections and refuses everything."""

import contextlib
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
import trio

from rsky_pipeline.runtime.errors import StoreError
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.append import append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.errors import StoreUnavailableError
from tests import stores
from tests.integration.streams.support import UnreliableProxy, entries, reader, stored, values


@pytest.fixture
def pair() -> Iterator[tuple[str, str]]:
    """The URLs of two servers of the test's own."""
    with stores.running_valkey() as old, stores.running_valkey() as new:
        yield old, new


@contextlib.contextmanager
def linked(proxy: UnreliableProxy) -> Iterator[tuple[Link[Store], list[StoreError]]]:
    failures: list[StoreError] = []
    link = Link(partial(connect, proxy.url, name="test"), purpose="test", failed=failures.append)
    with closing(link):
        yield link, failures


def demote(url: str) -> None:
    """Make a server a replica; its primary need not answer."""
    with stores.redis_client(url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")


async def test_a_writer_reaches_the_new_primary(pair: tuple[str, str]) -> None:
    old, new = pair
    with UnreliableProxy(old) as proxy, linked(proxy) as (link, failures):
        await link.retry(lambda store: append(store, entries(1)))
        demote(old)
        # The address leads to the old server still: another connection alone does not help.
        with pytest.raises(StoreUnavailableError, match="read only replica"):
            await link.call(lambda store: append(store, entries(1, first=1)))
        proxy.switch(new)
        with trio.fail_after(30):
            await link.retry(lambda store: append(store, entries(1, first=2)))
        assert proxy.connections == 2
        assert [type(error) for error in failures] == [StoreUnavailableError]
    with closing(connect(new, name="check")) as store:
        assert list(stored(store)) == [2]


async def test_a_waiting_reader_reaches_the_new_primary(pair: tuple[str, str]) -> None:
    old, new = pair
    with closing(connect(new, name="check")) as store:
        reader(store, group="other")
        append(store, entries(1, first=7))
    with UnreliableProxy(old) as proxy, linked(proxy) as (link, failures):
        await link.retry(reader)
        found: list[int] = []

        def read(store: Store) -> None:
            found.extend(values(reader(store).read_new(10, 8_000)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.retry, read)
            with stores.redis_client(old) as client:
                while not client.info("clients")["blocked_clients"]:
                    await trio.sleep(0.01)
            proxy.switch(new)
            demote(old)
        assert found == [7]
        assert [type(error) for error in failures] == [StoreUnavailableError]
        assert "instance state changed" in str(failures[0])
