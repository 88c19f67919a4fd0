"""A takedown that an operator has set with the AppView stays, whatever becomes of the row."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from rsky_pipeline.cli import main
from rsky_pipeline.indexer.accounts.purge import purge_account
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.complete_revs import prune_tombstones
from tests.integration.indexer.kit import Network, Put, Tables, account, did_of, repo, rev_of

PROFILE = "app.bsky.actor.profile"


def take_down(tables: Tables, put: Put) -> None:
    database = tables.database
    database.execute("UPDATE actor SET \"takedownRef\" = 'A-1' WHERE did = %s", (did_of(put.who),))
    database.execute("UPDATE record SET \"takedownRef\" = 'R-1' WHERE uri = %s", (put.uri,))


def takedowns(tables: Tables) -> tuple[set[str | None], set[str | None]]:
    """Return those of ann and of her records."""
    own = f"did = '{did_of('ann')}'"
    return (
        {ref for (ref,) in tables.rows("actor", '"takedownRef"', own)},
        {ref for (ref,) in tables.rows("record", '"takedownRef"', own)},
    )


def profile(net: Network, number: int | None = None) -> Put:
    return net.put("ann", PROFILE, {"displayName": "ann"}, "self", number=number)


def test_updates_rebuilds_and_repeats_keep_a_takedown(
    tables: Tables, net: Network, tmp_path: Path
) -> None:
    put = profile(net)
    tables.apply(put)
    take_down(tables, put)
    tables.apply(net.update(put, {"displayName": "other"}))
    history = Network(net.numbers, history=True)
    again = history.put("ann", PROFILE, {"displayName": "other"}, "self")
    tables.apply(again, repo("ann", again.number, complete=True))
    assert takedowns(tables) == ({"A-1"}, {"R-1"})
    tables.database.execute("UPDATE profile SET \"displayName\" = 'wrong'")
    result = CliRunner().invoke(
        main, ["index-repo", "--rebuild", "--all", "--database-url", tables.url,
               "--data-dir", str(tmp_path)]
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert tables.rows("profile", '"displayName"') == [("other",)]
    assert takedowns(tables) == ({"A-1"}, {"R-1"})


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_a_record_that_is_deleted_and_made_again_is_taken_down(
    tables: Tables, net: Network, pruned: bool, together: bool
) -> None:
    put = profile(net)
    tables.apply(put)
    take_down(tables, put)
    gone, again = net.delete(put), profile(net)
    if together:
        tables.apply(gone, again)
    else:
        tables.apply(gone)
        assert takedowns(tables) == ({"A-1"}, set())
        if pruned:
            tables.apply(repo("ann", gone.number + 1, complete=True))
            prune_tombstones(tables.database)
            again = profile(net, gone.number + 2)
        tables.apply(again)
    assert takedowns(tables) == ({"A-1"}, {"R-1"})
    tables.database.execute('UPDATE record SET "takedownRef" = NULL')  # it is lifted
    tables.apply(net.delete(put))
    tables.apply(profile(net, 90))
    assert takedowns(tables) == ({"A-1"}, {None})


def test_an_account_that_was_purged_comes_back_taken_down(tables: Tables, net: Network) -> None:
    put = profile(net)
    tables.apply(put, account("ann", 5, True))
    take_down(tables, put)
    purge_account(tables.database, did_of("ann"), registry.load())
    assert takedowns(tables) == (set(), set())
    tables.apply(put)  # of before
    assert takedowns(tables) == (set(), set())
    later = profile(net, 5_000_000)
    tables.apply(later, net.put("ann", "app.bsky.feed.post", {"text": "x"}, number=5_000_001))
    assert takedowns(tables) == ({"A-1"}, {"R-1", None})
    assert tables.database.query("SELECT FROM rsky_pipeline.account_takedown") == []
    tables.database.execute('UPDATE actor SET "takedownRef" = NULL')  # it is lifted
    tables.database.execute('UPDATE record SET "takedownRef" = NULL')
    purge_account(tables.database, did_of("ann"), registry.load())
    tables.apply(profile(net, 5_000_002))
    assert takedowns(tables) == ({None}, {None})
    assert rev_of(1) < rev_of(2)


def test_a_purged_record_comes_back_at_the_rev_that_it_had(tables: Tables, net: Network) -> None:
    """A takedown that is kept for it is no deletion."""
    put = profile(net)
    tables.apply(put)
    take_down(tables, put)
    purge_account(tables.database, did_of("ann"), registry.load())
    tables.database.execute("DELETE FROM rsky_pipeline.repo_floor")
    tables.apply(put)
    assert takedowns(tables) == ({"A-1"}, {"R-1"})
