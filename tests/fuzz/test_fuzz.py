"""Mutated inputs of all entry points, for half a minute in all; `make fuzz` goes on for longer."""

from urllib.parse import urljoin

import pytest

from rsky_pipeline.configuration.endpoints import Endpoint, is_dns_name
from rsky_pipeline.network.connect import parse_address
from rsky_pipeline.network.directory import Directory
from tests.fuzz import targets
from tests.fuzz.search import search
from tests.fuzz.targets import TARGETS

EXAMPLES = 1_000


@pytest.mark.parametrize("name", TARGETS)
def test_entry_points(name: str) -> None:
    search(TARGETS[name], EXAMPLES)


def _is_public_name(host: str) -> bool:
    labels = host.split(".")
    if len(labels) < 2 or parse_address(host) is not None:
        return False
    return not labels[-1][0].isdigit() and is_dns_name(host)


def _url(_: Directory, did: str) -> tuple[str, bool]:
    name = did.removeprefix("did:web:") if did.startswith("did:web:") else "plc.test"
    return f"https://{name.replace('%3A', ':')}/.well-known/did.json", False


# One of each stopped a role for good: did:web:example.com. in an event, did:web:example.com%3A99999
# in a listing, a redirect to http://x:99999/, a DID document with https://pds.example-host.com.
@pytest.mark.parametrize(
    ("name", "error"),
    [("did", IndexError), ("did", ValueError), ("redirect", ValueError), ("endpoint", IndexError)],
)
def test_it_finds_what_stopped_a_role(
    name: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    if error is IndexError:
        monkeypatch.setattr(targets, "is_public_name", _is_public_name)
        monkeypatch.setattr(targets, "host_key", str)
    monkeypatch.setattr(targets, "redirect_target", urljoin)
    monkeypatch.setattr(Directory, "_url", _url)
    monkeypatch.setattr(Directory, "web_host", lambda *_: Endpoint(True, "example.com", 443))
    with pytest.raises(error):
        search(TARGETS[name], 2 * EXAMPLES)
