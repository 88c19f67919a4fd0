"""One rule for every role decides which collections are wanted."""

import pytest

from rsky_pipeline.configuration.selection import (
    Selection,
    host_name,
    is_selected,
    path_prefixes,
    read_host,
    shown_host,
)

SETTING = ("app.bsky.", "com.example.thing")


@pytest.mark.parametrize(
    ("nsid", "selected"),
    [
        ("app.bsky.feed.like", True),
        ("app.bskyx.feed.like", False),
        ("com.example.thing", True),
        ("com.example.things", False),
        ("com.example.thing.more", False),
        ("chat.bsky.actor.declaration", False),
    ],
)
def test_prefixes_end_at_their_dot_and_names_are_exact(nsid: str, selected: bool) -> None:
    assert is_selected(nsid, SETTING) is selected
    assert f"{nsid}/rkey".startswith(path_prefixes(SETTING)) is selected


def test_nothing_selected_selects_nothing() -> None:
    assert not is_selected("app.bsky.feed.like", ())


ANN = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
BOB = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"
BLOCKED = Selection(
    7, frozenset({ANN}), frozenset({"pds.example.com", ".below.example.com", "127.0.0.1:2583"}),
    ("com.example.", "app.bsky.feed.like"), {BOB: 100.0},
)  # fmt: skip


@pytest.mark.parametrize(
    ("did", "host", "collection", "queued_at", "kind"),
    [
        (ANN, "", "", None, "account"),
        (ANN, "pds.example.com", "app.bsky.feed.like", None, "account"),
        (BOB, "", "", None, None),
        (BOB, "pds.example.com", "", None, "host"),
        (BOB, "pds.example.com:2583", "", None, "host"),
        (BOB, "other.pds.example.com", "", None, None),
        (BOB, "xpds.example.com", "", None, None),
        (BOB, "example.com", "", None, None),
        (BOB, "a.below.example.com", "", None, "host"),
        (BOB, "a.b.below.example.com:99", "", None, "host"),
        (BOB, "below.example.com", "", None, None),
        (BOB, "127.0.0.1:2583", "", None, "host"),
        (BOB, "127.0.0.1:2584", "", None, None),
        (BOB, "[::1]", "", None, None),
        (BOB, "[::1]:2583", "", None, None),
        (BOB, "", "", 99.9, "host"),
        (BOB, "", "", 100.0, None),
        (BOB, "", "app.bsky.feed.like", None, "collection"),
        (BOB, "", "app.bsky.feed.likes", None, None),
        (BOB, "", "com.example.thing", None, "collection"),
        (BOB, "", "com.examples.thing", None, None),
        ("", "", "", None, None),
    ],
)
def test_what_is_left_out(
    did: str, host: str, collection: str, queued_at: float | None, kind: str | None
) -> None:
    found = BLOCKED.left_out(did, host=host, collection=collection, queued_at=queued_at)
    assert found == kind
    if queued_at is None:
        assert BLOCKED.keeps(did, host, collection) is (kind is None)


def test_nothing_is_left_out_of_everything() -> None:
    assert not Selection()
    assert BLOCKED
    assert Selection().keeps(ANN, "pds.example.com", "app.bsky.feed.like")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("PDS.Example.com", "pds.example.com"),
        ("https://pds.example.com/", "pds.example.com"),
        ("pds.example.com:443", "pds.example.com"),
        ("http://127.0.0.1:2583", "127.0.0.1:2583"),
        ("*.Example.com", ".example.com"),
        ("[::1]:2583", "[::1]:2583"),
    ],
)
def test_a_host_is_read_as_people_write_it(text: str, host: str) -> None:
    assert read_host(text) == host
    assert read_host(shown_host(host)) == host


@pytest.mark.parametrize("text", ["", "*.", "*.com", "*", "a b", "*.a b.c", "https://x/y", "a@b.c"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|must"):
        read_host(text)


@pytest.mark.parametrize(
    ("pds", "name"),
    [("https://PDS.example.com", "pds.example.com"), ("http://x.org:80", "x.org"),
     ("http://x.org:8080", "x.org:8080"), (None, ""), ("https://", "")],
)  # fmt: skip
def test_the_name_of_a_pds(pds: str | None, name: str) -> None:
    assert host_name(pds) == name
