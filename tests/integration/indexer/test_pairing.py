"""Redis and the database of one installation belong together; a wrong one is refused."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
import trio
from click.testing import CliRunner

from rsky_pipeline.cli import main
from rsky_pipeline.cli.run import prepare_stores
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.health.pairing import MismatchError, Pairing, open_paired
from rsky_pipeline.operations.verification.outside import check_database
from rsky_pipeline.runtime.errors import SettingError, UnavailableError
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.names import FIREHOSE_LIVE
from rsky_pipeline.supervisor.prepare import prepare_apart
from tests.integration.indexer.kit import Network, Tables
from tests.integration.indexer.worker import GROUP, entries, eventually, feed, indexing
from tests.stores import execute, redis_client

RELAYS: dict[str, Any] = {"relay_hosts": ("relay.test",)}
ANOTHER = "UPDATE rsky_pipeline.installation SET id = gen_random_uuid()"


async def index_a_post(redis_url: str, tables: Tables) -> None:
    feed(redis_url, Network().post("ann"))
    async with indexing(redis_url, tables.url, **RELAYS):
        await eventually(lambda: not entries(redis_url, FIREHOSE_LIVE))


def pair(redis_url: str, tables: Tables, *options: str) -> tuple[int, dict[str, str | None]]:
    stores = ["--redis-url", redis_url, "--database-url", tables.url]
    result = CliRunner().invoke(main, ["db", "pair", "--json", *stores, *options])
    return result.exit_code, json.loads(result.stdout)


async def test_the_first_indexer_ties_redis_to_its_database(
    clean_redis: str, tables: Tables
) -> None:
    assert pair(clean_redis, tables)[1]["noted"] is None
    await index_a_post(clean_redis, tables)
    code, found = pair(clean_redis, tables)
    assert code == 0
    assert found["noted"] == found["database"] is not None
    async with indexing(clean_redis, tables.url, **RELAYS) as worker:
        await worker.ready.wait()
    assert entries(clean_redis, "rsky_pipeline:gaps") == []


async def test_another_database_is_refused_until_it_is_meant(
    clean_redis: str, tables: Tables
) -> None:
    await index_a_post(clean_redis, tables)
    before = pair(clean_redis, tables)[1]["database"]
    both = Pairing(GROUP, before, None).describe()
    assert f"belongs to the database {before}" in both
    assert "correct redis_url or database_url" in both
    execute(tables.url, ANOTHER)
    execute(tables.url, "DELETE FROM rsky_pipeline.applied_mark")
    feed(clean_redis, Network().post("bob"))
    refusal = f"belongs to the database {before}"
    with pytest.RaisesGroup(pytest.RaisesExc(MismatchError, match=refusal), flatten_subgroups=True):
        async with indexing(clean_redis, tables.url, **RELAYS):
            await trio.sleep(60)
    assert len(entries(clean_redis, FIREHOSE_LIVE)) == 1  # nothing was acknowledged
    with pytest.raises(MismatchError):  # as a backfiller and the repair of gaps open it
        open_paired(
            lambda: connect(clean_redis, name="test"),
            lambda: Database.connect(tables.url, name="test"),
            GROUP,
        )
    settings = Settings(redis_url=clean_redis, database_url=tables.url)
    found = {verdict.check: verdict.status for verdict in check_database(settings)}
    assert found["pairing"] == "fail"
    assert pair(clean_redis, tables)[0] == 6
    # An operator says that it is the right one, if need be before a database runs: what it lacks
    # is read again.
    elsewhere = ("--force", "--database-url", "postgresql://127.0.0.1:1/none")
    code, now = pair(clean_redis, tables, *elsewhere)
    assert (code, now["noted"]) == (0, None)
    async with indexing(clean_redis, tables.url, **RELAYS) as worker:
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
        assert worker.metric("indexer_database_losses_total") == 1
    [gap] = entries(clean_redis, "rsky_pipeline:gaps")
    assert orjson.loads(gap[b"gap"])["kind"] == "database_lost"
    code, now = pair(clean_redis, tables)
    assert (code, now["noted"]) == (0, now["database"])


async def test_a_database_that_is_exchanged_beside_the_batches_is_refused(
    clean_redis: str, tables: Tables
) -> None:
    """No batch comes that would notice it: the checks of handles and the upkeep connect anew."""
    refused = pytest.RaisesExc(MismatchError, match="Redis belongs to the database")
    with pytest.RaisesGroup(refused, flatten_subgroups=True):
        async with indexing(clean_redis, tables.url, **RELAYS) as worker:
            await worker.ready.wait()
            await trio.sleep(0.5)
            execute(tables.url, ANOTHER)
            execute(
                tables.url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()",
            )
            await trio.sleep(60)


async def test_a_redis_that_lost_everything_is_noticed(clean_redis: str, tables: Tables) -> None:
    """What was read and not yet written is gone, and so are the cursors."""
    began = time.time()
    await index_a_post(clean_redis, tables)
    with redis_client(clean_redis) as client:
        client.flushall()
    async with indexing(clean_redis, tables.url, **RELAYS) as worker:
        await worker.ready.wait()
    [gap] = entries(clean_redis, "rsky_pipeline:gaps")
    noted = orjson.loads(gap[b"gap"])
    assert (noted["host"], noted["kind"]) == ("relay.test", "redis_lost")
    with redis_client(clean_redis) as client:
        assert began - 1 < float(client.hget("rsky_pipeline:read_again", "since")) < time.time()
    # It is noticed once.
    async with indexing(clean_redis, tables.url, **RELAYS) as worker:
        await worker.ready.wait()
    assert len(entries(clean_redis, "rsky_pipeline:gaps")) == 1


async def test_groups_of_indexers_have_a_database_each(clean_redis: str, tables: Tables) -> None:
    await index_a_post(clean_redis, tables)
    execute(tables.url, ANOTHER)
    execute(tables.url, "DELETE FROM rsky_pipeline.applied_mark")
    async with indexing(clean_redis, tables.url, indexer_group="second", **RELAYS) as worker:
        await worker.ready.wait()
        assert worker.metric("indexer_database_losses_total") == 0
    assert entries(clean_redis, "rsky_pipeline:gaps") == []


async def test_a_database_without_its_id_is_refused_until_it_is_meant(
    clean_redis: str, tables: Tables
) -> None:
    await index_a_post(clean_redis, tables)
    before = pair(clean_redis, tables)[1]["database"]
    execute(tables.url, "DELETE FROM rsky_pipeline.installation")
    feed(clean_redis, Network().post("bob"))
    refusal = pytest.RaisesExc(MismatchError, match="leads to one without an id")
    with pytest.RaisesGroup(refusal, flatten_subgroups=True):
        async with indexing(clean_redis, tables.url, **RELAYS):
            await trio.sleep(60)
    assert pair(clean_redis, tables) == (
        6, {"group": GROUP, "noted": before, "database": None}
    )  # fmt: skip
    assert pair(clean_redis, tables, "--force")[0] == 0
    async with indexing(clean_redis, tables.url, **RELAYS):
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
    code, found = pair(clean_redis, tables)
    assert (code, found["noted"]) == (0, found["database"])
    assert found["database"] not in (None, before)


async def test_data_restored_beside_an_id_keeps_its_own(clean_redis: str, tables: Tables) -> None:
    """As `pg_restore --data-only` into a database that `db init` has prepared."""
    await index_a_post(clean_redis, tables)
    noted = pair(clean_redis, tables)[1]["noted"]
    execute(tables.url, "CREATE TABLE kept AS SELECT * FROM rsky_pipeline.installation")
    execute(tables.url, "DELETE FROM rsky_pipeline.installation")
    execute(tables.url, "INSERT INTO rsky_pipeline.installation DEFAULT VALUES")
    execute(tables.url, "INSERT INTO rsky_pipeline.installation SELECT * FROM kept")
    assert pair(clean_redis, tables) == (
        0, {"group": GROUP, "noted": noted, "database": noted}
    )  # fmt: skip


# As in a supervisor, and as in the process that it starts for that.
@pytest.mark.parametrize("prepare_stores", [prepare_apart, prepare_stores])
def test_a_wrong_database_is_left_as_it_is(
    clean_redis: str, clean_database: str, prepare_stores: Callable[[Settings, bool], object]
) -> None:
    settings = Settings(redis_url=clean_redis, database_url=clean_database)
    with redis_client(clean_redis) as client:
        client.hset("rsky_pipeline:installation", GROUP, "another")
    with pytest.raises(SettingError, match="belongs to the database another"):
        prepare_stores(settings, True)
    with pytest.raises(UnavailableError, match="whose schema is to change"):
        prepare_stores(replace(settings, redis_url="redis://127.0.0.1:1"), True)
    with Database.connect(clean_database, name="test") as database:
        query = "SELECT nspname FROM pg_namespace WHERE nspname ~ '^(bsky|rsky)'"
        assert database.query(query) == []
    with redis_client(clean_redis) as client:
        client.delete("rsky_pipeline:installation")
    assert prepare_stores(settings, True)
    assert prepare_stores(replace(settings, redis_url="redis://127.0.0.1:1"), True) == []
