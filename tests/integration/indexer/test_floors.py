"""Floors of repos, and the tombstones that they make needless."""

import threading

from rsky_pipeline.database.connection import Database
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.complete_revs import BATCH_TOMBSTONES, prune_tombstones
from rsky_pipeline.indexer.upkeep import count_rows
from tests.integration.indexer.kit import Network, Tables, did_of, read, repo, rev_of


def prune(tables: Tables) -> int:
    removed = 0
    while (some := prune_tombstones(tables.database)) is not None:
        removed += some
    return removed


def buried(tables: Tables) -> set[str]:
    return {row[0] for row in tables.database.query("SELECT uri FROM rsky_pipeline.tombstone")}


def test_a_complete_repo_makes_older_tombstones_needless(tables: Tables, net: Network) -> None:
    post, follow = net.post("ann"), net.follow("ann", "bob")
    gone = [net.delete(post), net.delete(follow)]
    newer, other = net.follow("ann", "cyd"), net.follow("bob", "ann")
    tables.apply(post, follow, newer, other, *gone, net.delete(other))
    tables.apply(repo("ann", 50))
    assert prune_tombstones(tables.database) is None, "a repo that may be incomplete sets no floor"
    tables.apply(repo("ann", 60, complete=True), net.follow("ann", "dan"))
    assert count_rows(tables.database, "tombstone") == 3
    assert prune(tables) == 1
    assert buried(tables) == {post.uri, other.uri}, "others may still point at a deleted post"
    # What was deleted stays so, although nothing remembers it; a newer record is welcome.
    again = net.put("ann", "app.bsky.graph.follow", {"subject": did_of("eve")}, number=61)
    applied = tables.apply(follow, again)
    assert (applied.stale, applied.inserted) == (1, 1)
    assert follow.uri not in {row[0] for row in tables.rows("follow", "uri")}
    tables.apply(net.delete(follow))
    assert buried(tables) == {post.uri, other.uri}, "below the floor nothing new is buried"


def test_an_older_event_in_the_batch_of_the_floor_is_stale_too(
    tables: Tables, net: Network
) -> None:
    follow = net.follow("ann", "bob")
    tables.apply(repo("ann", 50, complete=True), follow)
    assert tables.rows("follow") == []


def test_a_floor_never_goes_down(tables: Tables, net: Network) -> None:
    tables.apply(repo("ann", 60, complete=True))
    tables.apply(repo("ann", 50, complete=True))
    floors = tables.database.query("SELECT did, rev FROM rsky_pipeline.repo_floor")
    assert floors == [(did_of("ann"), rev_of(60))]


def test_a_lower_floor_in_a_batch_does_not_hide_the_stored_one(
    tables: Tables, net: Network
) -> None:
    tables.apply(repo("ann", 60, complete=True))
    between = net.put("ann", "app.bsky.graph.follow", {"subject": did_of("bob")}, number=55)
    assert tables.apply(repo("ann", 50, complete=True), between).stale == 1
    assert tables.rows("follow") == []


def test_tombstones_of_the_rev_itself_stay_until_a_higher_floor(
    tables: Tables, net: Network
) -> None:
    follow = net.follow("ann", "bob")
    gone = net.delete(follow)
    tables.apply(follow, gone)
    tables.apply(repo("ann", gone.number, complete=True))
    assert prune(tables) == 0
    assert buried(tables) == {follow.uri}
    tables.apply(repo("ann", gone.number + 1, complete=True))
    assert prune(tables) == 1


def test_a_deletion_that_comes_first_wins(tables: Tables, net: Network) -> None:
    follow = net.follow("ann", "bob")
    tables.apply(net.delete(follow))
    assert tables.apply(follow).stale == 1
    assert tables.rows("follow") == []


def test_many_tombstones_go_in_steps(tables: Tables, net: Network) -> None:
    tables.apply(repo("ann", 60, complete=True))
    tables.database.execute(
        "INSERT INTO rsky_pipeline.tombstone (uri, did, rev) SELECT "
        "'at://' || %s || '/app.bsky.feed.like/' || n, %s, %s FROM generate_series(1, %s) n",
        (did_of("ann"), did_of("ann"), rev_of(1), BATCH_TOMBSTONES + 10),
    )
    assert prune_tombstones(tables.database) == BATCH_TOMBSTONES
    assert prune_tombstones(tables.database) == 10
    assert prune_tombstones(tables.database) is None


def test_a_batch_that_waited_for_the_floor_sees_it(tables: Tables, net: Network) -> None:
    """A worker that waits for another one's lock must not decide by what it saw before."""
    follow = net.follow("ann", "bob")
    tables.apply(follow, net.delete(follow))
    other = Database.connect(tables.url, name="other")

    def apply_late() -> None:
        apply_batch(other, read([follow]), registry.load())

    late = threading.Thread(target=apply_late)
    with tables.database.transaction() as tx:
        tx.query("SELECT FROM actor WHERE did = %s FOR UPDATE", (did_of("ann"),))
        late.start()
        watcher = Database.connect(tables.url, name="watcher")
        while not watcher.query("SELECT 1 FROM pg_locks WHERE NOT granted"):
            assert late.is_alive()
        watcher.close()
        tx.execute(
            "INSERT INTO rsky_pipeline.repo_floor (did, rev) VALUES (%s, %s)",
            (did_of("ann"), rev_of(60)),
        )
        tx.execute("DELETE FROM rsky_pipeline.tombstone")
    late.join(30)
    other.close()
    assert tables.rows("follow") == []
