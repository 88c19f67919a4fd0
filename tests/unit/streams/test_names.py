"""Names of keys and streams are those of the original services."""

from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.streams.names import cursor_key, dead_letters


def test_a_cursor_has_the_original_key() -> None:
    relay = parse_endpoint("WSS://Relay.Example:443/")
    assert cursor_key("firehose_live", relay.key) == "firehose_live:cursor:relay.example"


def test_dead_letters_have_the_original_name() -> None:
    assert dead_letters("repo_backfill") == "repo_backfill_dlq"
