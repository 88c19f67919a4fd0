"""Names of keys do not depend on how a host was configured."""

import pytest

from rsky_pipeline.streams.names import cursor_key, dead_letters


@pytest.mark.parametrize(
    "host", ["relay.example", "https://relay.example", "WSS://Relay.Example:443/"]
)
def test_a_host_has_one_cursor_key(host: str) -> None:
    assert cursor_key("firehose_live", host) == "firehose_live:cursor:relay.example"


def test_other_ports_are_other_hosts() -> None:
    assert cursor_key("s", "ws://127.0.0.1:2583") == "s:cursor:127.0.0.1:2583"
    assert cursor_key("s", "ws://host:80") == "s:cursor:host"


def test_ports_belong_to_their_schemes() -> None:
    assert cursor_key("s", "http://host:443") == "s:cursor:host:443"
    assert cursor_key("s", "wss://host:80") == "s:cursor:host:80"
    assert cursor_key("s", " host:443 ") == "s:cursor:host"


def test_dead_letters_have_the_original_name() -> None:
    assert dead_letters("repo_backfill") == "repo_backfill_dlq"
