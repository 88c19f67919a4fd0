"""Names of hosts as strangers write them."""

import pytest

from rsky_pipeline.configuration.endpoints import normal_host, parse_endpoint
from rsky_pipeline.network.connect import is_public_name


@pytest.mark.parametrize("name", ["example.com", "example.com.", "pds.example-host.com."])
def test_a_dot_at_the_end_of_a_name_is_legal(name: str) -> None:
    assert is_public_name(name)
    assert parse_endpoint(name).host == name.removesuffix(".")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "com.", "a..b", ".com", "example.com..", "a" * 64 + ".com", "local.",
     "x.local.", "127.0.0.1", "127.1", "0x7f.1", "::1", "a b.com", "a\0b.com"],
)  # fmt: skip
def test_what_is_no_public_name(name: str) -> None:
    assert not is_public_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "a..b", "a" * 64, "a" * 64 + ".com", "x" * 254, "a b", "a\0b", "größe.de"]
)
def test_what_getaddrinfo_could_not_encode_is_no_host(name: str) -> None:
    assert normal_host(name) is None
    with pytest.raises(ValueError, match="allowed is"):
        parse_endpoint(name)
