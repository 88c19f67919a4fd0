"""One rule for every role decides which collections are wanted."""

import pytest

from rsky_pipeline.configuration.selection import is_selected, path_prefixes

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
