"""Hosts and URLs: what is accepted, what is refused, and that the network package agrees."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.configuration.values import bind_address, endpoint

GOOD = [
    "bsky.network",
    "Relay.Example.com:8443",
    "wss://relay.test",
    "ws://127.0.0.1:2470",
    "http://localhost:2582/",
    "https://[::1]:3000",
    "HTTPS://plc.directory",
    "pds_1",
    "relay.test.",
]


@pytest.mark.parametrize("text", GOOD)
def test_hosts_and_urls(text: str) -> None:
    assert endpoint(text) == text.rstrip("/")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "allowed"),
        ("ftp://relay.test", "ws://"),
        ("relay.test/xrpc", "without a path"),
        ("relay.test?x=1", "without a path"),
        ("relay.test#x", "without a path"),
        ("relay.test:0", "port"),
        ("relay.test:65536", "port"),
        ("relay.test:http", "port"),
        ("user:geheim@relay.test", "password"),
        ("relay..test", "allowed"),
        ("-relay.test", "allowed"),
        ("[::1", "brackets"),
        ("::1", "brackets"),
        ("[fe80::1%a b]", "allowed"),
        ("wss://[1340::111%3A\ufffd]:443/", "allowed"),
        ("a b", "allowed"),
        ("bücher.test", "allowed"),
        (f"{'a' * 64}.test", "allowed"),
    ],
)
def test_what_is_refused_and_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        endpoint(text)
    assert reason in str(error.value)
    assert "geheim" not in str(error.value)


@settings(max_examples=300)
@given(
    st.one_of(
        st.text(max_size=40),
        st.from_regex(
            r"(wss?://|https?://)?[a-z0-9._\[\]:-]{1,20}(:[0-9]{1,6})?/?", fullmatch=True
        ),
    )
)
@example("relay.test.")
@example("[fe80::1%eth0]")
def test_a_key_names_the_host_that_it_was_made_of(text: str) -> None:
    try:
        server = parse_endpoint(text)
    except ValueError:
        return
    again = parse_endpoint(server.key)
    assert (again.key, again.host) == (server.key, server.host)
    assert parse_endpoint(server.http_url()) == server


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("relay.example", "relay.example"),
        ("https://relay.example", "relay.example"),
        (" WSS://Relay.Example.:443/ ", "relay.example"),
        ("ws://127.0.0.1:2470", "127.0.0.1:2470"),
        ("ws://host:80", "host"),
        ("http://host:443", "host:443"),
        ("wss://host:80", "host:80"),
        ("ws://[::1]:2470", "[::1]:2470"),
        ("wss://[2001:DB8:0::1]", "[2001:db8::1]"),
    ],
)
def test_a_host_has_one_key(text: str, key: str) -> None:
    assert parse_endpoint(text).key == key


@pytest.mark.parametrize("text", ["127.0.0.1", "::", "0.0.0.0", "localhost"])
def test_listening_addresses(text: str) -> None:
    assert bind_address(text) == text


@pytest.mark.parametrize("text", ["127.0.0.1:9090", "http://x", "*", ""])
def test_wrong_listening_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="without a port"):
        bind_address(text)
