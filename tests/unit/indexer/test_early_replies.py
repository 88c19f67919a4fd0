"""The way of a reply up its thread: a way in pieces tells whom a way in one go tells."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.indexer.collections.post_notifications import (
    MAX_HEIGHT,
    AncestorWalk,
    advance,
    is_pending,
)


def post(number: int, who: str) -> str:
    return f"at://did:plc:{who}/app.bsky.feed.post/{number}"


def start(at: str, *, hidden: frozenset[str] = frozenset()) -> AncestorWalk:
    return AncestorWalk(post(0, "me"), "cid", "time", at, 1, frozenset({"did:plc:me"}), hidden)


threads = st.lists(st.sampled_from(("me", "a", "b", "c")), min_size=1, max_size=7).map(
    lambda names: [post(number, who) for number, who in enumerate(names, 1)]
)


@given(thread=threads, data=st.data())
def test_pieces_tell_whom_the_whole_tells(thread: list[str], data: st.DataObject) -> None:
    hidden = data.draw(st.sets(st.sampled_from(thread)))
    parents: list[str | None] = [*thread[1:], None]
    above = list(zip(thread, parents, strict=True))[:MAX_HEIGHT]
    climb = start(thread[0], hidden=frozenset(hidden))
    told, end = advance(climb, above)
    assert not is_pending(end)
    pieces = []
    rest, before = climb, 0
    for cut in sorted({*data.draw(st.sets(st.integers(0, len(above)))), len(above)}):
        found, rest = advance(rest, above[before:cut])
        pieces += found
        before = cut
        if not is_pending(rest):
            break
    assert pieces == told
    dids = [item.did for item in told]
    assert len(set(dids)) == len(dids)
    assert "did:plc:me" not in dids
    assert [item.reason_subject for item in told] == [
        uri for uri in thread if uri in {item.reason_subject for item in told}
    ], "nearest first"


def test_only_posts_of_accounts_are_waited_for() -> None:
    assert is_pending(start(post(1, "a")))
    for at in ("", "at://did:plc:a", post(1, "a").replace("post", "generator"),
               "at://a.test/app.bsky.feed.post/1"):  # fmt: skip
        assert not is_pending(start(at))
    assert is_pending(replace(start(post(1, "a")), height=MAX_HEIGHT))
    assert not is_pending(replace(start(post(1, "a")), height=MAX_HEIGHT + 1))
