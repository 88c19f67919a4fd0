"""Turns at hosts, by name and by the address that names share."""

import pytest
import trio
import trio.testing

from rsky_pipeline.repos.hosts import SHARED_ADDRESS, HostBusyError, HostRules, HostTurns

ADDRESS = "203.0.113.7:443"


async def test_names_on_one_address_share_its_turns(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hosts = HostTurns(HostRules(concurrency=1, rate=1_000.0, patience=100.0))
    served = most = done = 0

    async def fetch(number: int) -> None:
        nonlocal served, most, done
        async with hosts.turn(f"https://pds{number}.example.com", ADDRESS):
            served += 1
            most = max(most, served)
            await trio.sleep(1.0)
            served -= 1
        done += 1

    async with trio.open_nursery() as nursery:
        for number in range(3 * SHARED_ADDRESS):
            nursery.start_soon(fetch, number)
    assert (most, done) == (SHARED_ADDRESS, 3 * SHARED_ADDRESS)


async def test_too_many_names_on_one_address_wait_elsewhere(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hosts = HostTurns(HostRules(concurrency=1, rate=1_000.0, waiting=1, patience=2.0))
    async with trio.open_nursery() as nursery:
        for number in range(SHARED_ADDRESS):
            nursery.start_soon(hold, hosts, f"https://pds{number}.example.com")
        await trio.sleep(0.1)
        with pytest.raises(HostBusyError) as busy:
            await hold(hosts, "https://one-more.example.com")
        assert busy.value.host == ADDRESS
        nursery.cancel_scope.cancel()


async def hold(hosts: HostTurns, url: str) -> None:
    async with hosts.turn(url, ADDRESS):
        await trio.sleep_forever()
