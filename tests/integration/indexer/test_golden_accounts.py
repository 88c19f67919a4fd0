"""Golden cases of handles, accounts, replays and pages, as whole rows of every table."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from rsky_pipeline.indexer.accounts.deletions import Hosted
from rsky_pipeline.indexer.core.entries import now_text
from tests.integration.indexer.golden import Note, expect
from tests.integration.indexer.kit import (
    Event,
    Network,
    Put,
    Tables,
    account,
    did_of,
    identity,
    time_of,
)
from tests.integration.indexer.test_accounts import check_handles
from tests.integration.indexer.test_lookups import check_deletions

LONG_AGO = "2020-01-01T00:00:00.000Z"


async def look_up(tables: Tables, claims: dict[str, str], answers: dict[str, str]) -> None:
    """Settle queued look-ups; `claims` of documents and `answers` of the network go by names."""
    before = now_text()
    claimed = {did_of(who): handle for who, handle in claims.items()}
    found: dict[str, str | None] = dict.fromkeys(claims.values())
    found |= {handle: did_of(who) for handle, who in answers.items()}
    await check_handles(tables, claimed, found)
    assert tables.database.query("SELECT * FROM rsky_pipeline.handle_check") == []
    assert before <= max(row[0] for row in tables.rows("actor", '"indexedAt"')) <= now_text()
    tables.database.execute('UPDATE actor SET "indexedAt" = %s', (LONG_AGO,))


def handles(**names: str | None) -> dict[str, dict[str, Any]]:
    """Return what is expected of accounts whose time has been set back."""
    return {did_of(who): {"handle": handle, "indexedAt": LONG_AGO} for who, handle in names.items()}


async def test_a_handle_is_found_kept_for_a_day_and_looked_up_anew_when_forced(
    tables: Tables, net: Network
) -> None:
    events: list[Event] = [net.post("ann")]
    tables.apply(*events)
    expect(tables, events, people={"ann": (0, 0, 1)})
    await look_up(tables, {"ann": "ann.test"}, {"ann.test": "ann"})
    expect(tables, events, people={"ann": (0, 0, 1)}, changed=handles(ann="ann.test"))
    tables.database.execute('UPDATE actor SET "indexedAt" = %s', (time_of(0),))
    events.append(net.post("ann"))
    tables.apply(events[-1])
    assert tables.database.query("SELECT * FROM rsky_pipeline.handle_check") == [], "not yet"
    events.append(identity("ann", 3))
    tables.apply(events[-1])
    await look_up(tables, {"ann": "new.test"}, {"new.test": "ann", "ann.test": "ann"})
    expect(tables, events, people={"ann": (0, 0, 2)}, changed=handles(ann="new.test"))


async def test_a_handle_that_stops_resolving_is_taken_away_and_comes_back(
    tables: Tables, net: Network
) -> None:
    events: list[Event] = [net.post("ann"), net.post("bob")]
    tables.apply(*events)
    claims = {"ann": "ann.test", "bob": "bob.test"}
    await look_up(tables, claims, {"ann.test": "ann"})
    people = {"ann": (0, 0, 1), "bob": (0, 0, 1)}
    expect(tables, events, people=people, changed=handles(ann="ann.test", bob=None))
    for number, (answers, handle) in enumerate((({}, None), ({"ann.test": "ann"}, "ann.test"))):
        events.append(net.post("ann"))
        tables.apply(events[-1])
        await look_up(tables, claims, answers)
        people["ann"] = (0, 0, 2 + number)
        expect(tables, events, people=people, changed=handles(ann=handle, bob=None))
    events.append(identity("bob", 9))  # takes a handle that ann still has here
    tables.apply(events[-1])
    await look_up(tables, {"bob": "ann.test"}, {"ann.test": "bob"})
    expect(tables, events, people=people, changed=handles(ann=None, bob="ann.test"))


def busy(net: Network) -> tuple[list[Put], list[Put], list[Note]]:
    """Return events of ann, of bob, and whom they tell."""
    post, hers = net.post("ann"), net.post("bob")
    profile = net.put("ann", "app.bsky.actor.profile", {"displayName": "a"}, "self")
    like, follow = net.like("bob", post), net.follow("bob", "ann")
    mine, back = net.like("ann", hers), net.follow("ann", "bob")
    again = net.follow("ann", "bob")
    told: list[Note] = [
        (like, "ann", "like", post), (follow, "ann", "follow", None),
        (mine, "bob", "like", hers), (back, "bob", "follow", None),
    ]  # fmt: skip
    return [post, profile, mine, back, again], [hers, like, follow], told


async def test_an_account_is_purged_only_when_its_host_has_it_no_more(
    tables: Tables, net: Network
) -> None:
    anns, bobs, told = busy(net)
    events: list[Event] = [*bobs, *anns]
    tables.apply(*events)
    post, again, hers = anns[0], anns[-1], bobs[0]
    whole: dict[str, Any] = {
        "told": told, "waiting": [(again, anns[-2])], "counts": [(post, (1, 0, 0, 0)),
                                                               (hers, (1, 0, 0, 0))],
        "people": {"ann": (1, 1, 1), "bob": (1, 1, 1)},
    }  # fmt: skip
    gone = account("ann", 20, active=False, status="deleted")
    tables.apply(gone)
    await check_deletions(tables, Hosted(None))
    expect(tables, [*events, gone], **whole)
    tables.apply(account("ann", 21, active=False, status="deleted"))
    hidden = {did_of("ann"): {"upstreamStatus": "deleted"}}
    expect(tables, [*events, gone], **whole, changed=hidden)
    await check_deletions(tables, None)
    # What others wrote about it stays theirs.
    expect(tables, bobs, counts=[(post, (1, 0, 0, 0))], people={"ann": (1, 0, 0), "bob": (0, 1, 1)})


@pytest.mark.parametrize("status", ["deactivated", "suspended", "takendown"])
def test_a_status_is_a_column_and_touches_nothing_else(
    tables: Tables, net: Network, status: str
) -> None:
    post = net.post("ann")
    events: list[Event] = [post, account("ann", 2, active=False, status=status)]
    tables.apply_each(events)
    hidden = {did_of("ann"): {"upstreamStatus": status}}
    expect(tables, events, people={"ann": (0, 0, 1)}, changed=hidden)
    events.append(account("ann", 3, active=True))
    tables.apply(events[-1])
    expect(tables, events, people={"ann": (0, 0, 1)})


def test_replaying_everything_changes_nothing(tables: Tables, net: Network) -> None:
    anns, bobs, told = busy(net)
    post, profile, hers = anns[0], anns[1], bobs[0]
    edits = [net.update(profile, {"displayName": name}) for name in ("b", "c")]
    like = net.like("bob", post)
    events = [*anns, *bobs, *edits, like]
    for _ in range(2):
        tables.apply_each(events)
        expect(
            tables, events, told=told, people={"ann": (1, 1, 1), "bob": (1, 1, 1)},
            waiting=[(anns[-1], anns[-2]), (like, bobs[1])],
            counts=[(post, (1, 0, 0, 0)), (hers, (1, 0, 0, 0))],
        )  # fmt: skip


def test_an_account_without_a_readable_commit_has_a_row(tables: Tables) -> None:
    events: list[Event] = [identity("ann")]
    tables.apply(*events)
    expect(tables, events)


def pages(tables: Tables, who: str, limit: int) -> list[list[str]]:
    """Return an author's items page by page, as the AppView asks for them.

    Its cursor is the time in milliseconds and the CID of the last item of a page.
    """
    found: list[list[str]] = []
    where, values = "true", list[Any]()
    while True:
        rows = tables.database.query(
            f'SELECT uri, "sortAt", cid FROM feed_item WHERE "originatorDid" = %s AND {where} '
            f'ORDER BY "sortAt" DESC, cid DESC LIMIT {limit + 1}', [did_of(who), *values],
        )  # fmt: skip
        found.append([row[0] for row in rows[:limit]])
        if len(rows) <= limit:
            return found
        _, sort_at, cid = rows[limit - 1]
        milliseconds = round(datetime.fromisoformat(sort_at).timestamp() * 1_000)
        time = datetime.fromtimestamp(milliseconds / 1_000, UTC)
        text = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        where, values = '("sortAt", cid) < (%s, %s)', [text, cid]


@pytest.mark.parametrize(("count", "sizes"), [(0, [0]), (2, [2]), (3, [3]), (4, [3, 1])])
def test_pages_end_where_the_official_ones_do(
    tables: Tables, net: Network, count: int, sizes: Sequence[int]
) -> None:
    posts = [net.post("ann") for _ in range(count)]
    tables.apply(*posts)
    found = pages(tables, "ann", 3)
    assert [len(page) for page in found] == sizes
    assert [uri for page in found for uri in page] == [put.uri for put in reversed(posts)]


def test_no_page_repeats_or_skips_what_claims_finer_times(tables: Tables, net: Network) -> None:
    """The cursor has milliseconds: a finer time in a column would lie on no page's boundary."""
    times = [f"2023-01-02T03:04:05.{number:03d}{number}Z" for number in range(120, 130)]
    posts = [net.post("ann", str(number), createdAt=time) for number, time in enumerate(times)]
    posts += [net.post("ann", f"again {number}", createdAt=times[0]) for number in range(5)]
    tables.apply(*posts)
    found = [uri for page in pages(tables, "ann", 2) for uri in page]
    assert len(found) == len(posts)
    assert set(found) == {put.uri for put in posts}
