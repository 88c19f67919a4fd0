"""Whatever the work on one repo raises is a failed attempt at that repo, and ends as a letter."""

import pytest

from rsky_pipeline.backfiller import store as outcomes
from rsky_pipeline.streams.connection import Store
from tests.breaking import PARTS, break_part
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.backfiller.kit import (
    Configure,
    backfiller,
    document,
    eventually,
    letters,
    make_repo,
    output,
    queue,
    settled,
)

GOOD = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


def host(hosts: FakeHosts, did: str, endpoint: str | None = None) -> None:
    hosts.add(did, document(did), make_repo(did, 3)[0])
    if endpoint is not None:
        hosts.documents[did]["service"][0]["serviceEndpoint"] = endpoint


@pytest.mark.parametrize("part", PARTS)
async def test_a_repo_whose_host_or_document_raises_is_given_up(
    store: Store, configure: Configure, hosts: FakeHosts, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    break_part(monkeypatch, part)
    bad = PARTS[part]
    host(hosts, GOOD)
    host(hosts, bad)
    async with backfiller(configure()) as running:
        queue(store, bad, GOOD)
        await settled(store)
    assert running.value("repos_processed_total") >= 1
    assert {event["did"] for event in output(store)} == {GOOD}
    if part == "hosts":  # a name that is none is refused before anything is asked
        assert running.value("failures_total", reason="internal_error") == 3
    assert [letter.error.split(": ")[0] for letter in letters(store)] == [bad]
    assert letters(store)[0].attempts == 3


async def test_a_repo_whose_pds_raises_is_given_up(
    store: Store, configure: Configure, hosts: FakeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_part(monkeypatch, "getaddrinfo")
    bad = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"
    host(hosts, GOOD)
    host(hosts, bad, "http://bad.test")
    async with backfiller(configure()) as running:
        queue(store, bad, GOOD)
        await settled(store)
    assert running.value("failures_total", reason="internal_error") == 3
    assert {event["did"] for event in output(store)} == {GOOD}
    assert [(letter.reason, letter.attempts) for letter in letters(store)] == [
        ("internal_error", 3)
    ]


ODD = {
    "did:plc:a2aaaaaaaaaaaaaaaaaaaaaa": "https://pds.example-host.com.",
    "did:plc:b2bbbbbbbbbbbbbbbbbbbbbb": "https://x:99999",
    "did:plc:c2cccccccccccccccccccccc": "http://a..b",
    "did:plc:d2dddddddddddddddddddddd": "http://.",
    "did:plc:e2eeeeeeeeeeeeeeeeeeeeee": f"http://{'a' * 64}.com",
    "did:plc:f2ffffffffffffffffffffff": "https://a\0b.com",
}


async def test_odd_hosts_and_redirects_cost_their_own_repos(
    store: Store, configure: Configure, hosts: FakeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(hosts, GOOD)
    for did, endpoint in ODD.items():
        host(hosts, did, endpoint)
    redirects = ["http://x:99999/", "http://x:abc/", "http://a..b/", "//[::1",
                 "ftp://x:99999/", "wss://x:abc/", "data:,x"]  # fmt: skip
    for number, target in enumerate(redirects):
        did = f"did:plc:{'ghijklm'[number] * 24}"
        host(hosts, did)
        hosts.replies[did] = [lambda target=target: (302, {"Location": target}, b"")] * 99  # type: ignore[misc]
    webs = ["did:web:example.com%3A99999", "did:web:example.com:path", "did:web:a..b"]
    moved = [did for did in hosts.documents if did not in (GOOD, *ODD)]
    async with backfiller(configure(backfiller_retry_max_ms=20)) as running:
        queue(store, *ODD, *moved, *webs, GOOD)
        await settled(store, 60)
    assert running.value("failures_total", reason="internal_error") == 0
    left = running.value("outcomes_total", outcome="unavailable")
    assert {event["did"] for event in output(store)} == {GOOD}
    given_up = {letter.error.split(": ")[0] for letter in letters(store)}
    # What is no DID of a host, or no endpoint, is nobody's to fetch, nor is what a host leads to
    # that nobody gets anything from.
    assert left + len(given_up) == len(ODD) + len(moved) + len(webs)
    assert given_up <= {*ODD, *moved}


async def test_a_defect_that_hits_every_outcome_leaves_the_worker_running(
    store: Store, configure: Configure, hosts: FakeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its outcome a repo stays pending, until it is reclaimed as idle."""
    bad = [f"did:plc:{letter * 24}" for letter in "bcd"]
    for did in (GOOD, *bad):
        host(hosts, did)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    def all_queued() -> bool:
        return {event["did"] for event in output(store) if event["type"] == "repo"} == set(bad)

    async with backfiller(configure()) as running:
        with monkeypatch.context() as patched:
            patched.setattr(outcomes, "write_outcomes", broken)
            queue(store, *bad)
            await eventually(lambda: all_queued() and not running.value("repos_running"))
        queue(store, GOOD)
        await eventually(lambda: store.call("XLEN", "repo_backfill") == len(bad))
