"""Which addresses of a host are connected to, in which order, and how long a dead one delays."""

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio

from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.configuration.proxy import Proxy, parse_proxy
from rsky_pipeline.network import connect
from rsky_pipeline.network.connect import (
    Dialer,
    ForbiddenAddressError,
    Nat64Prefixes,
    is_public_address,
    nat64_prefix,
    resolve,
)
from rsky_pipeline.network.http import HttpClient, HttpError
from rsky_pipeline.network.subscription import DisconnectedError, Timeouts, subscribe

HOST = "pds.example.com"
OWN_PREFIX = ipaddress.IPv6Network("2600:1f00:0:64::/96")


def answer(monkeypatch: pytest.MonkeyPatch, **names: list[str]) -> list[str]:
    """Have names resolve to these addresses (`_` stands for a dot); returns the names asked for."""
    known = {name.replace("_", "."): addresses for name, addresses in names.items()}
    asked = list[str]()

    async def lookup(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        if host not in known:
            raise OSError("Name or service not known")
        return [(10 if ":" in each else 2, 1, 6, "", (each, port)) for each in known[host]]

    monkeypatch.setattr("trio.socket.getaddrinfo", lookup)
    return asked


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Replace TCP: public addresses that end in 1 answer, others never do; returns when."""
    when: dict[str, float] = {}

    async def open_tcp_stream(address: str, port: int) -> object:
        when[address] = trio.current_time()
        if address.endswith("dead"):
            raise OSError("all attempts failed")
        if not address.endswith("1"):
            await trio.sleep_forever()
        return address

    monkeypatch.setattr("trio.open_tcp_stream", open_tcp_stream)
    return when


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("64:ff9b::5db8:d823", True),  # 93.184.216.35
        ("64:ff9b::0a00:0001", False),  # 10.0.0.1
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),  # 169.254.169.254
        ("64:ff9b::6440:1", False),  # 100.64.0.1
        ("64:ff9b:1::5db8:d823", False),  # of a prefix that nobody announced
        ("::ffff:93.184.216.34", True),
        ("::ffff:10.0.0.1", False),
        ("::ffff:0:93.184.216.34", False),  # SIIT
        ("::93.184.216.34", False),  # IPv4-compatible
        ("2002:5db8:d822::1", False),  # 6to4
        ("2002:a00:1::1", False),
        ("2001:0:5db8:d822::1", False),  # Teredo
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("fd00::1", False),
        ("fe80::1%eth0", False),
        ("::1", False),
        ("::", False),
        ("ff02::1", False),
    ],
)
def test_an_address_counts_as_the_one_that_it_leads_to(address: str, public: bool) -> None:
    assert is_public_address(address) is public


@pytest.mark.parametrize(
    ("prefix", "made", "private"),
    [
        # The forms of RFC 6052, 2.4, of 192.0.2.33 there; here public and private ones.
        ("2a01:db8::/32", "2a01:db8:5db8:d822::", "2a01:db8:a00:1::"),
        ("2a01:db8:100::/40", "2a01:db8:15d:b8d8:22::", "2a01:db8:10a:0:1::"),
        ("2a01:db8:122::/48", "2a01:db8:122:5db8:d8:2200::", "2a01:db8:122:a00:0:100::"),
        ("2a01:db8:122:300::/56", "2a01:db8:122:35d:b8:d822::", "2a01:db8:122:30a:0:1::"),
        ("2a01:db8:122:344::/64", "2a01:db8:122:344:5d:b8d8:2200::", "2a01:db8:122:344:a:0:100::"),
        ("64:ff9b:1::/48", "64:ff9b:1:5db8:d8:2200::", "64:ff9b:1:a00:0:100::"),
        ("64:ff9b:1:fffe::/96", "64:ff9b:1:fffe::5db8:d822", "64:ff9b:1:fffe::a00:1"),
        ("fd64::/96", "fd64::5db8:d822", "fd64::a00:1"),
        (str(OWN_PREFIX), "2600:1f00:0:64::5db8:d822", "2600:1f00:0:64::a00:1"),
    ],
)
def test_prefixes_of_a_network_of_its_own(prefix: str, made: str, private: str) -> None:
    network = ipaddress.IPv6Network(prefix)
    assert is_public_address(made, [network])
    assert not is_public_address(private, [network])


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("64:ff9b::c000:aa", "64:ff9b::/96"),
        ("2600:1f00:0:64::c000:ab", str(OWN_PREFIX)),
        ("2a01:db8:122:344:c0:0:aa00::", "2a01:db8:122:344::/64"),
        ("2a01:db8:122:c000:0:aa00::", "2a01:db8:122::/48"),
        ("2606:2800:220:1::1", None),
        ("::ffff:192.0.0.170", None),
        ("192.0.0.170", None),
    ],
)
def test_the_prefix_behind_an_answer_for_ipv4only(address: str, prefix: str | None) -> None:
    assert nat64_prefix(address) == (prefix and ipaddress.IPv6Network(prefix))


async def test_a_prefix_is_learned_once(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    asked = answer(monkeypatch, ipv4only_arpa=["2600:1f00:0:64::c000:aa", "192.0.0.170"])
    prefixes = Nat64Prefixes()
    assert await prefixes.current() == (OWN_PREFIX,)
    assert await prefixes.current() == (OWN_PREFIX,)
    assert len(asked) == 1
    await trio.sleep(601)
    answer(monkeypatch)  # as on a network without NAT64
    assert await prefixes.current() == ()


async def test_a_private_address_behind_the_networks_own_prefix_is_refused(
    monkeypatch: pytest.MonkeyPatch, dialled: dict[str, float], autojump_clock: object
) -> None:
    answer(monkeypatch, ipv4only_arpa=["2600:1f00:0:64::c000:aa"],
           pds_example_com=["2600:1f00:0:64::a00:1"])  # fmt: skip
    with pytest.raises(ForbiddenAddressError):
        await Dialer(guarded=True).open(HOST, 443)
    assert not dialled


async def test_addresses_that_are_not_public_are_left_out(
    monkeypatch: pytest.MonkeyPatch, dialled: dict[str, float], autojump_clock: object
) -> None:
    answer(monkeypatch, pds_example_com=["192.168.0.1", "fd00::1", "93.184.216.1"])
    assert str(await Dialer(guarded=True).open(HOST, 443)) == "93.184.216.1"
    assert list(dialled) == ["93.184.216.1"]
    # Without the guard everything is an address like others.
    assert str(await Dialer(guarded=False).open(HOST, 443)) == "192.168.0.1"


async def test_a_host_without_a_public_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, dialled: dict[str, float], autojump_clock: object
) -> None:
    answer(monkeypatch, pds_example_com=["192.168.0.1", "64:ff9b::a00:1"])
    with pytest.raises(ForbiddenAddressError, match=r"leads to .*, which is not public") as error:
        await Dialer(guarded=True).open(HOST, 443)
    assert error.value.resolved
    assert not dialled


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_dead_address_delays_by_a_quarter_of_a_second(
    monkeypatch: pytest.MonkeyPatch,
    dialled: dict[str, float],
    autojump_clock: object,
    guarded: bool,
) -> None:
    answer(monkeypatch, pds_example_com=["2600::2", "2600::3", "93.184.216.1"])
    began = trio.current_time()
    assert str(await Dialer(guarded=guarded).open(HOST, 443)) == "93.184.216.1"
    # The families in turn: the second address of the first family is not waited for.
    assert {key: at - began for key, at in dialled.items()} == {
        "2600::2": 0.0, "93.184.216.1": 0.25,
    }  # fmt: skip


async def test_an_address_that_refuses_delays_nothing(
    monkeypatch: pytest.MonkeyPatch, dialled: dict[str, float], autojump_clock: object
) -> None:
    answer(monkeypatch, pds_example_com=["2600::dead", "93.184.216.1"])
    began = trio.current_time()
    assert str(await Dialer(guarded=True).open(HOST, 443)) == "93.184.216.1"
    assert trio.current_time() == began


async def test_more_than_four_addresses_are_tried_and_not_any_number(
    monkeypatch: pytest.MonkeyPatch, dialled: dict[str, float], autojump_clock: object
) -> None:
    answer(monkeypatch, pds_example_com=[f"2600::{n}2" for n in range(9)] + ["2600::1"])
    assert str(await Dialer(guarded=True).open(HOST, 443)) == "2600::1"
    dialled.clear()
    answer(monkeypatch, pds_example_com=[f"2600::{n}2" for n in range(50)])
    with trio.move_on_after(100):
        await Dialer(guarded=True).open(HOST, 443)
    assert len(dialled) == connect.MAX_ADDRESSES


async def test_all_failures_are_named(
    monkeypatch: pytest.MonkeyPatch, dialled: dict[str, float], autojump_clock: object
) -> None:
    answer(monkeypatch, pds_example_com=["2600::dead", "2600::1:dead"])
    with pytest.raises(OSError, match=r"2600::dead: .*; 2600::1:dead: "):
        await Dialer(guarded=True).open(HOST, 443)


async def test_families_take_turns_in_the_systems_order(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, pds_example_com=["1.1.1.1", "2600::1", "2600::2", "1.0.0.1", "1.1.1.1",
                                         "2600::3"])  # fmt: skip
    assert await resolve(HOST, 443) == ["1.1.1.1", "2600::1", "1.0.0.1", "2600::2", "2600::3"]


@asynccontextmanager
async def listening(nursery: trio.Nursery) -> AsyncIterator[int]:
    """A server on 127.0.0.1 that answers HTTP requests with two bytes; yields its port."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(65_536)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    serving = partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
    listeners: list[trio.SocketListener] = await nursery.start(serving)
    yield listeners[0].socket.getsockname()[1]


async def test_the_http_client_gets_past_an_address_that_refuses(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    async with listening(nursery) as port, HttpClient(allow_private=True) as http:
        answer(monkeypatch, two_test=["::1", "127.0.0.1"])
        assert await http.get_json(f"http://two.test:{port}/") == {}
        with pytest.raises(HttpError) as error:
            await http.get_json(f"http://none.test:{port}/")
        assert error.value.kind == "unreachable"


async def test_a_relay_is_connected_to_by_the_same_way(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    async with listening(nursery) as port:
        answer(monkeypatch, two_test=["::1", "127.0.0.1"])
        with pytest.raises(DisconnectedError) as error:
            async with subscribe(
                parse_endpoint(f"ws://two.test:{port}"), "x.y", None, timeouts=Timeouts(connect=5)
            ):
                pass
        assert error.value.reason == "rejected"  # it answered, though with HTTP


class FakeProxy:
    """A proxy that connects every name to one server, and keeps what it was asked for."""

    def __init__(self, port: int) -> None:
        self.asked: list[bytes] = []
        self.answer = b"HTTP/1.1 200 Connection established\r\n\r\n"
        self.port = 0
        self._to = port

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            head = bytes(await stream.receive_some(65_536))
            self.asked.append(head)
            async with await trio.open_tcp_stream("127.0.0.1", self._to) as server:
                if not head.startswith(b"CONNECT "):
                    await server.send_all(head)
                    await stream.send_all(bytes(await server.receive_some(65_536)))
                    return
                for byte in (self.answer[:9], self.answer[9:]):
                    await stream.send_all(byte)
                if b" 200 " in self.answer:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(pipe, stream, server)
                        await pipe(server, stream)
                        nursery.cancel_scope.cancel()


async def pipe(source: trio.SocketStream, target: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for part in source:
            await target.send_all(part)


@asynccontextmanager
async def proxied(
    nursery: trio.Nursery, exempt: str = "", user: str = ""
) -> AsyncIterator[tuple[FakeProxy, Proxy]]:
    async with listening(nursery) as port:
        proxy = FakeProxy(port)
        serving = partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1")
        listeners: list[trio.SocketListener] = await nursery.start(serving)
        proxy.port = listeners[0].socket.getsockname()[1]
        yield proxy, parse_proxy(f"http://{user}127.0.0.1:{proxy.port}", [exempt])


async def ask(stream: trio.abc.Stream) -> bytes:
    async with stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        return bytes(await stream.receive_some(100))


async def test_a_host_is_connected_to_by_its_name_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    answer(monkeypatch, **{"127_0_0_1": ["127.0.0.1"]})  # nothing else resolves here
    async with proxied(nursery, user="me:secret@") as (served, proxy):
        for guarded in (True, False):
            stream = await Dialer(guarded=guarded, proxy=proxy).open(HOST, 443)
            assert (await ask(stream)).startswith(b"HTTP/1.1 200 OK")
    assert served.asked[0].split(b"\r\n")[:3] == [
        b"CONNECT pds.example.com:443 HTTP/1.1", b"Host: pds.example.com:443",
        b"Proxy-Authorization: Basic bWU6c2VjcmV0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "addresses"),
    [("10.0.0.1", []), ("localhost", []), ("printer.local", []), ("[::1]", []),
     (HOST, ["10.0.0.1"]), (HOST, ["64:ff9b::a00:1", "fd00::1"])],
)  # fmt: skip
async def test_the_proxy_is_not_asked_for_private_places(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, host: str, addresses: list[str]
) -> None:
    answer(monkeypatch, pds_example_com=addresses, **{"127_0_0_1": ["127.0.0.1"]})
    async with proxied(nursery) as (served, proxy):
        with pytest.raises(ForbiddenAddressError):
            await Dialer(guarded=True, proxy=proxy).open(host, 443)
    assert served.asked == []


@pytest.mark.parametrize(
    "refusal",
    [b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", b"HTTP/1.0 403 Filtered\r\n\r\n<p>no",
     b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 500 no end"],
)  # fmt: skip
async def test_a_proxy_that_refuses_is_named(nursery: trio.Nursery, refusal: bytes) -> None:
    async with (
        proxied(nursery) as (served, proxy),
        HttpClient(allow_private=True, silence_seconds=1.0, proxy=proxy) as http,
    ):
        served.answer = refusal
        with pytest.raises(HttpError, match=f"the proxy http://127.0.0.1:{served.port}") as error:
            await http.get_json("https://pds.example.com/")
    assert error.value.kind == "unreachable"


async def test_requests_without_tls_are_sent_to_the_proxy_whole(nursery: trio.Nursery) -> None:
    async with (
        proxied(nursery, "direct.test", user="me:secret@") as (served, proxy),
        HttpClient(allow_private=False, proxy=proxy) as http,
    ):
        assert await http.get_json("http://plc.test/did:plc:a?b=c", trusted=True) == {}
        with pytest.raises(HttpError):
            await http.get_json("http://direct.test/", trusted=True)
    lines = served.asked[0].split(b"\r\n")
    assert lines[:2] == [b"GET http://plc.test/did:plc:a?b=c HTTP/1.1", b"Host: plc.test"]
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0" in lines
    assert len(served.asked) == 1


async def test_a_relay_is_reached_through_the_proxy(nursery: trio.Nursery) -> None:
    async with proxied(nursery) as (served, proxy):
        with pytest.raises(DisconnectedError) as error:
            async with subscribe(
                parse_endpoint("ws://relay.test"), "x.y", None, timeouts=Timeouts(connect=5),
                proxy=proxy,
            ):  # fmt: skip
                pass
    assert error.value.reason == "rejected"  # by the server behind it
    assert served.asked[0].startswith(b"CONNECT relay.test:80 HTTP/1.1\r\n")
