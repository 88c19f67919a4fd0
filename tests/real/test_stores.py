"""The whole pipeline on PostgreSQL and Redis as operators run them: poolers, fail-over, TLS."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import psycopg
import pytest
from redis import RedisError

from rsky_pipeline.embedded import locations
from tests.integration.operations.test_importing import bring, check_copy, seed
from tests.pipelines import Running
from tests.real.conftest import Tally
from tests.real.following import WORKERS, on_stores, wait_for_records
from tests.real.servers import (
    ENDS_WITH_US,
    POSTGRES_BIN,
    USER,
    PostgresServer,
    RedisServer,
    Server,
    Servers,
    program,
    wait_until,
)
from tests.stores import redis_client, scratch_directory

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
TABLE = "rsky_real"  # of the kernel's packet filter


# --- PostgreSQL behind a pooler ----------------------------------------------------------------


def newer_pgbouncer() -> str:
    """Return the path of a pgbouncer that can do prepared statements (1.21 or newer)."""
    path = os.environ.get("RSKY_TEST_PGBOUNCER", "")
    if not path:
        pytest.fail("RSKY_TEST_PGBOUNCER names no pgbouncer >= 1.21", pytrace=False)
    return path


POOLERS = {
    "pgbouncer_of_debian": (False, ()),
    "newer_pgbouncer_without_prepared_statements": (True, ("max_prepared_statements = 0",)),
    "newer_pgbouncer_with_prepared_statements": (True, ("max_prepared_statements = 1000",)),
}
SESSION = (
    "search_path", "enable_seqscan", "enable_hashjoin", "enable_mergejoin", "random_page_cost",
    "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "DateStyle",
    "TimeZone", "default_transaction_isolation", "client_min_messages", "extra_float_digits",
)  # fmt: skip


def session_of(url: str) -> dict[str, str]:
    """Return the settings that a client without wishes sees."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        rows = connection.execute("SELECT name, setting FROM pg_settings").fetchall()
    return {name: setting for name, setting in rows if name in SESSION}


@pytest.mark.parametrize("kind", POOLERS)
def test_behind_a_transaction_pooler(kind: str, real: Servers, tally: Tally) -> None:
    newer, options = POOLERS[kind]
    store, server = real.redis(), real.postgres()
    pooler = real.pgbouncer(server, *options, binary=newer_pgbouncer() if newer else None)
    url, fresh = server.url(USER, port=pooler.port), session_of(server.url(USER))
    with on_stores(tally, store.url, url) as running:
        for _ in range(30):
            assert session_of(url) == fresh, "another client of the pool sees our settings"
        pooler.kill()
        tally.kills += 1
        pooler.start_again()
        wait_for_records(running)
        server.value("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                     f"WHERE usename = '{USER}'")  # fmt: skip
        wait_for_records(running)
        for _ in range(30):
            assert session_of(url) == fresh, "another client of the pool sees our settings"


QUEUES = {
    "one_session": (1, ()),
    "two_sessions_and_a_short_wait": (2, ("query_wait_timeout = 5",)),
    "a_reserve": (1, ("reserve_pool_size = 2", "reserve_pool_timeout = 1")),
}


@pytest.mark.parametrize("kind", QUEUES)
def test_behind_a_pooler_that_queues(kind: str, real: Servers, tally: Tally) -> None:
    size, options = QUEUES[kind]
    store, server = real.redis(), real.postgres()
    pooler = real.pgbouncer(server, *options, size=size, binary=newer_pgbouncer())
    with on_stores(tally, store.url, server.url(USER, port=pooler.port)) as running:
        wait_for_records(running, 1_000)


# --- What others do in the database ------------------------------------------------------------

MAINTENANCE = (
    *(f"VACUUM FULL {table}" for table in ('bsky.record', 'bsky."like"', "bsky.post_agg",
      "bsky.actor", "rsky_pipeline.applied_mark", "rsky_pipeline.tombstone")),
    "REINDEX TABLE bsky.record",
    "REINDEX TABLE CONCURRENTLY bsky.post",
    'REINDEX TABLE CONCURRENTLY bsky."like"',
    "CREATE INDEX CONCURRENTLY others_idx ON bsky.record (cid)",
    "DROP INDEX CONCURRENTLY bsky.others_idx",
    "CLUSTER bsky.post USING post_pkey",
    "ALTER TABLE bsky.post ADD COLUMN others text",
    "ALTER TABLE bsky.record ADD COLUMN others uuid DEFAULT gen_random_uuid()",
    "ANALYZE",
)  # fmt: skip


def test_others_work_on_the_database(real: Servers, tally: Tally) -> None:
    """Rows that they did not delete themselves are all there; whoever holds a lock is named."""
    server = real.postgres()
    with on_stores(tally, real.redis().url, server.url(USER)) as running:
        for statement in MAINTENANCE:
            server.execute(statement)
            wait_for_records(running, 50)
        backup = [str(POSTGRES_BIN[0] / "pg_dump"), "-Fc", server.url()]
        copied = subprocess.run(backup, check=False, capture_output=True)
        assert copied.returncode == 0, copied.stderr
        for table, seconds in (("bsky.record", 60), ("rsky_pipeline.applied_mark", 20)):
            with psycopg.connect(server.url()) as other:
                other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
                named, until = f"blocked by pid {other.info.backend_pid} (postgres", now() + seconds
                running.wait_for(lambda named=named: named in troubles(running), 60)  # type: ignore[misc]
                running.wait_for(lambda until=until: now() > until, 120)  # type: ignore[misc]
            wait_for_records(running)
        for function in ("pg_terminate_backend", "pg_cancel_backend"):
            for _ in range(50):
                server.value(f"SELECT count({function}(pid)) FROM pg_stat_activity "
                             f"WHERE usename = '{USER}'")  # fmt: skip
                tally.kills += 1
                time.sleep(0.2)
            wait_for_records(running)


def test_others_empty_a_table(real: Servers, tally: Tally) -> None:
    """The rows come back by the remedies that `db compare` names, as far as records say them."""
    server = real.postgres()
    with on_stores(tally, real.redis().url, server.url(USER)) as running:
        account = str(server.value("SELECT creator FROM bsky.like LIMIT 1"))
        server.execute('TRUNCATE bsky."like"')
        wait_for_records(running)
        words = ("-P", "-m", "rsky_pipeline", "db", "compare", "--stored", account)
        found = subprocess.run([sys.executable, *words], env=running.environ, capture_output=True,
                               text=True, check=False)  # fmt: skip
        assert found.returncode == 6
        assert f"index-repo --rebuild {account}" in found.stdout + found.stderr, found
        collection = ("--collection", "app.bsky.feed.like", "--rate", "20000")
        running.command("index-repo", "--rebuild", "--all", *collection)
        running.command("db", "recount", "--all")


def now() -> float:
    return time.monotonic()


def troubles(running: Running) -> str:
    """Return what the running processes say of their stores."""
    found = running.observer.look().processes
    return " ".join(str(item["trouble"]) for item in found)


# --- Fail-over of Redis ------------------------------------------------------------------------


def valkey() -> str:
    return str(locations.valkey_program())


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_replica_is_promoted_behind_one_address(kind: str, real: Servers, tally: Tally) -> None:
    program = valkey() if kind == "valkey" else None
    first = real.redis(valkey=program, password="secret/1")
    second = real.redis(valkey=program, password="secret/1", replica_of=first)
    proxy = real.haproxy(first, second)
    url = f"redis://:{quote('secret/1', safe='')}@127.0.0.1:{proxy.port}/0"
    with on_stores(tally, url, real.postgres().url(USER)) as running:
        for old, new, name in ((first, second, "s1"), (second, first, "s0")):
            # As managed services do: the old primary keeps its connections, and is read-only.
            proxy.switch(name)
            wait_until(lambda new=new, old=old: new.has_caught_up(old), "replica")  # type: ignore[misc]
            new.promote(old)
            tally.fail_overs += 1
            wait_for_records(running)


def test_sentinels_promote_a_replica(real: Servers, tally: Tally) -> None:
    first = real.redis(password="secret")
    second = real.redis(password="secret", replica_of=first)
    sentinels = real.sentinels(first, "main", password="other")
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in sentinels)
    url = f"redis+sentinel://:secret@{hosts}/main?sentinel_password=other"
    with on_stores(tally, url, real.postgres().url(USER)) as running:
        first.kill()
        tally.kills += 1
        wait_until(lambda: role_of(second) == "master", "the replica is not promoted", 60)
        tally.fail_overs += 1
        wait_for_records(running)
        # One that is killed before the others know the result would leave two primaries.
        wait_until(lambda: all(primary_of(each) == second.port for each in sentinels), "sentinels")
        sentinels[0].kill()
        tally.kills += 1
        first.start_again()
        wait_until(lambda: role_of(first) == "slave", "the old primary is no replica", 60)
        wait_until(lambda: first.has_caught_up(second), "the old primary does not follow", 60)
        second.kill()
        tally.kills += 1
        wait_until(lambda: role_of(first) == "master", "the replica is not promoted", 90)
        tally.fail_overs += 1
        wait_for_records(running)


def primary_of(sentinel: Server) -> int:
    with redis_client(f"redis://:other@127.0.0.1:{sentinel.port}/0") as client:
        return int(client.sentinel_master("main")["port"])


def role_of(server: RedisServer) -> str:
    try:
        with redis_client(server.url) as client:
            return str(client.info("replication")["role"])
    except RedisError:
        return "away"


# --- Fail-over of PostgreSQL -------------------------------------------------------------------


def test_a_standby_is_promoted_behind_one_address(real: Servers, tally: Tally) -> None:
    primary = real.postgres()
    standby = real.standby(primary)
    proxy = real.haproxy(primary, standby)
    with on_stores(tally, real.redis().url, primary.url(USER, port=proxy.port)) as running:
        primary.kill_all()
        tally.kills += 1
        proxy.switch("s1", cut=True)
        standby.promote()
        tally.fail_overs += 1
        wait_for_records(running)


def test_a_standby_behind_the_address_is_waited_for(real: Servers, tally: Tally) -> None:
    primary = real.postgres()
    standby = real.standby(primary)
    proxy = real.haproxy(primary, standby)
    with on_stores(tally, real.redis().url, primary.url(USER, port=proxy.port)) as running:
        proxy.switch("s1", cut=True)  # which is read-only until somebody promotes it
        time.sleep(20)
        assert running.pids().keys() == WORKERS
        wait_until(lambda: has_caught_up(standby, primary), "the standby does not follow")
        primary.kill_all()
        tally.kills += 1
        standby.promote()
        tally.fail_overs += 1
        wait_for_records(running)


def test_a_promoted_standby_lacks_the_last_25_seconds(real: Servers, tally: Tally) -> None:
    primary = real.postgres()
    standby = real.standby(primary)
    proxy = real.haproxy(primary, standby)
    with on_stores(tally, real.redis().url, primary.url(USER, port=proxy.port)) as running:
        standby.stop_following()
        behind_until = time.monotonic() + 25
        wait_for_records(running, 2_000)
        running.wait_for(lambda: time.monotonic() > behind_until)
        primary.kill_all()
        tally.kills += 1
        standby.promote()
        proxy.switch("s1", cut=True)
        tally.fail_overs += 1
        wait_for_records(running)


def has_caught_up(standby: PostgresServer, primary: PostgresServer) -> bool:
    written = primary.value("SELECT pg_current_wal_lsn()")
    return bool(standby.value(f"SELECT pg_last_wal_replay_lsn() >= '{written}'"))


def test_packets_to_the_server_vanish(real: Servers, tally: Tally) -> None:
    server = real.postgres()
    with (
        on_stores(tally, real.redis().url, server.url(USER)) as running,
        vanishing(server.port),
    ):
        tally.fail_overs += 1
        wait_for_records(running)


@contextmanager
def vanishing(port: int) -> Iterator[None]:
    """Drop the packets of all connections that exist now, as a forgetful firewall does."""
    command = [*ENDS_WITH_US, program("nft"), "-i"]
    lines = [  # the table goes with the process
        f"add table inet {TABLE} {{ flags owner; }}",
        f"add chain inet {TABLE} in {{ type filter hook input priority 0; }}",
    ]
    for own in established(port):
        ends = (f"tcp sport {own} tcp dport {port}", f"tcp sport {port} tcp dport {own}")
        lines += [f"add rule inet {TABLE} in {end} drop" for end in ends]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as nft:
        assert nft.stdin is not None
        nft.stdin.write("".join(f"{line}\n" for line in lines).encode())
        nft.stdin.flush()
        wait_until(lambda: rules() == len(lines) - 2, "nothing is dropped")
        yield


def rules() -> int:
    """Return how many rules there are."""
    command = [program("nft"), "list", "table", "inet", TABLE]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.count("drop")


def established(port: int) -> list[int]:
    """Return the client's ports of the connections to a port."""
    command = ["ss", "-Htn", "state", "established", f"dport = :{port}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(line.split()[2].rpartition(":")[2]) for line in lines]


# --- Other ways to set them up -----------------------------------------------------------------


def test_icu_collation_and_a_role_without_rights(real: Servers, tally: Tally) -> None:
    server = real.postgres(
        "--locale-provider=icu", "--icu-locale=de-DE", "--locale=C.UTF-8",
        options={"DateStyle": "SQL, DMY", "TimeZone": "Asia/Kathmandu", "bytea_output": "escape",
                 "IntervalStyle": "sql_standard", "default_transaction_isolation": "serializable",
                 "synchronous_commit": "off"},
    )  # fmt: skip
    with on_stores(tally, real.redis().url, server.url(USER)) as running:
        wait_for_records(running)


def test_tls_with_an_authority_of_ones_own(real: Servers, tally: Tally) -> None:
    files = real.certificates()
    tls = real.redis(password="secret", certificates=files)
    server = real.postgres(
        options={"ssl": "on", "ssl_cert_file": str(files.server), "ssl_key_file": str(files.key)}
    )
    url = f"{server.url(USER)}?sslmode=verify-full&sslrootcert={files.authority}"
    with on_stores(tally, tls.url, url) as running:
        server.kill_all()
        server.start_again()
        tls.kill()
        tls.start_again()
        tally.kills += 2
        wait_for_records(running)


def test_embedded_stores_are_imported_into_older_servers(real: Servers) -> None:
    """From PostgreSQL 18 and Valkey to Debian's, with a role that owns nothing but its database."""
    database, redis = real.postgres(), real.redis(password="odd/one@")
    with scratch_directory() as directory:
        seed(directory)
        result = bring(directory, redis.url, database.url(USER))
        assert result.exit_code == 0, result.output
        check_copy(redis.url, database.url(USER))
