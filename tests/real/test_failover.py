"""What a link does in a fail-over: with sentinels, and with several hosts of PostgreSQL."""

import signal
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
import trio

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseUnavailableError
from rsky_pipeline.database.server import check
from rsky_pipeline.health.rules import RuleVerdict
from rsky_pipeline.operations.verification.outside import check_replicas
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.append import append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.errors import StoreUnavailableError
from tests.integration.streams.support import entries, stored
from tests.real.servers import USER, RedisServer, Server, Servers, servers, wait_until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture
def watched() -> Iterator[tuple[RedisServer, RedisServer, list[Server]]]:
    """A primary, its replica, and three sentinels that watch them."""
    with servers() as found:
        yield start(found)


def start(real: Servers) -> tuple[RedisServer, RedisServer, list[Server]]:
    first = real.redis(password="secret/1")
    second = real.redis(password="secret/1", replica_of=first)
    return first, second, real.sentinels(first, "main", password="other@2")


def url_of(sentinels: list[Server], name: str = "main") -> str:
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in sentinels)
    return f"redis+sentinel://:secret%2F1@{hosts}/{name}?sentinel_password=other%402"


async def follow(url: str, end: Server, how: signal.Signals, second: RedisServer) -> None:
    link = Link(partial(connect, url, name="test", timeout_seconds=3), purpose="test")
    with closing(link):
        await link.retry(lambda store: append(store, entries(1)))
        await trio.to_thread.run_sync(wait_until, lambda: knows(second), "the replica is unknown")
        end.process.send_signal(how)
        with trio.fail_after(90):
            await link.retry(lambda store: append(store, entries(1, first=1)))
    with closing(connect(second.url, name="check")) as store:
        assert 1 in stored(store)


def knows(server: RedisServer) -> bool:
    return server.command("EXISTS", "s") == 1


async def test_a_killed_primary_is_followed(
    watched: tuple[RedisServer, RedisServer, list[Server]],
) -> None:
    first, second, sentinels = watched
    await follow(url_of(sentinels), first, signal.SIGKILL, second)


async def test_a_primary_that_hangs_is_followed(
    watched: tuple[RedisServer, RedisServer, list[Server]],
) -> None:
    first, second, sentinels = watched
    sentinels[0].kill()  # the one that is asked first
    await follow(url_of(sentinels), first, signal.SIGSTOP, second)


async def test_of_several_hosts_the_one_that_writes_is_used() -> None:
    with servers() as real:
        primary = real.postgres()
        standby = real.standby(primary)
        url = primary.url().replace(f":{primary.port}", f":{standby.port},127.0.0.1:{primary.port}")
        link = Link(partial(Database.connect, url, name="test"), purpose="test")
        with closing(link):
            make = "CREATE TABLE found (n int)"
            await link.retry(lambda database: database.execute(make))
            wait_until(lambda: standby.value("SELECT to_regclass('found')") is not None, "standby")
            await trio.to_thread.run_sync(primary.kill_all)
            with pytest.raises(DatabaseUnavailableError, match=r"standby is behind|refused|closed"):
                await link.call(lambda database: database.execute("INSERT INTO found VALUES (1)"))
            await trio.to_thread.run_sync(standby.promote)
            with trio.fail_after(60):
                await link.retry(lambda database: database.execute("INSERT INTO found VALUES (2)"))
        assert standby.value("SELECT n FROM found") == 2


async def test_a_standby_behind_the_address_is_named() -> None:
    with servers() as real:
        standby = real.standby(real.postgres())
        with (
            Database.connect(standby.url(), name="test") as database,
            pytest.raises(DatabaseUnavailableError, match="a standby is behind database_url"),
        ):
            database.execute("CREATE TABLE found (n int)")
        assert [item.name for item in check(standby.url()) if item.severity == "error"] == ["role"]


def test_replicas_and_slots_that_are_behind_are_seen() -> None:
    with servers() as real:
        primary = real.postgres()
        real.standby(primary, recovery_min_apply_delay="1h")
        primary.value("SELECT pg_create_physical_replication_slot('left', true)")
        primary.execute("CREATE TABLE found AS SELECT generate_series(1, 500000)")
        verdicts = dict[tuple[str, str], RuleVerdict]()

        def look(url: str) -> bool:
            with Database.connect(url, name="test") as database:
                verdicts.update({(v.rule.name, v.subject): v for v in check_replicas(database)})
            return (verdicts["retained_wal", name].value or 0) > 5e6

        name = "walreceiver at 127.0.0.1"
        wait_until(lambda: look(primary.url()), "the replica's delay is not seen")
        assert (verdicts["retained_wal", "slot left"].value or 0) > 5e6
        assert verdicts["replica", name].status == "pass"
        with Database.connect(primary.url(USER), name="test") as database:
            hidden = [item for item in check_replicas(database) if item.status == "skip"]
        assert [item.check for item in hidden] == ["replica:walreceiver"]
        assert "pg_monitor" in hidden[0].figure


def test_what_is_wrong_is_said(watched: tuple[RedisServer, RedisServer, list[Server]]) -> None:
    _, _, sentinels = watched
    for url, text in (
        (url_of(sentinels, "other"), "has a primary other: .*No such master"),
        (url_of(sentinels).replace("other%402", "wrong"), "invalid username-password|WRONGPASS"),
        (url_of(sentinels).partition("?")[0], "[Aa]uthentication required|NOAUTH"),
    ):
        with (
            closing(connect(url, name="test")) as store,
            pytest.raises(StoreUnavailableError, match=text),
        ):
            store.ping()
        with closing(connect(url_of(sentinels), name="test")) as store:
            assert isinstance(store, Store)
            store.ping()


def test_tls_on_servers_and_sentinels() -> None:
    with servers() as real:
        files = real.certificates()
        first = real.redis(password="secret", certificates=files)
        port, folder = real.sentinel_place()
        lines = [
            "port 0", f"tls-port {port}", "bind 127.0.0.1", "tls-auth-clients no",
            "tls-replication yes", f"dir {folder}", f"tls-cert-file {files.server}",
            f"tls-key-file {files.key}", f"tls-ca-cert-file {files.authority}",
            f"sentinel monitor main 127.0.0.1 {first.port} 1", "sentinel auth-pass main secret",
        ]  # fmt: skip
        real.sentinel(port, folder, lines)
        url = f"rediss+sentinel://:secret@127.0.0.1:{port}/main?ssl_ca_certs={files.authority}"
        with closing(connect(url, name="test")) as store:
            store.ping()
        with (
            closing(connect(url.partition("?")[0], name="test")) as store,
            pytest.raises(StoreUnavailableError, match="certificate"),
        ):
            store.ping()
