"""A server that is killed, slow, locked or a replica."""

from contextlib import closing
from pathlib import Path

import pytest

from rsky_pipeline.embedded import valkey
from rsky_pipeline.streams.append import CursorMove, append, read_cursor
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.errors import (
    LoginRejectedError,
    StoreRejectedError,
    StoreUnavailableError,
)
from tests import stores
from tests.integration.streams.support import UnreliableProxy, entries, ids, own_pending, reader


def test_a_killed_server_loses_nothing_that_it_confirmed() -> None:
    with stores.scratch_directory() as folder:
        settings = stores.scratch_settings(folder)
        program = valkey.prepare(settings)
        process = program.start()
        stores.wait_until_it_answers(program, process)
        with closing(connect(program.url, name="test")) as store:
            append(store, entries(100), cursor=CursorMove("k", None, "5"))
            own = reader(store)
            taken = own.read_new(10, 0)
            own.acknowledge(ids(taken[:4]))
            process.kill()
            process.wait()
            for attempt in (lambda: append(store, entries(1)), lambda: own.read_new(1, 0)):
                with pytest.raises(StoreUnavailableError):
                    attempt()
            # The same objects go on: the new server knows neither connection nor scripts.
            with stores.running(valkey.prepare(settings)):
                assert read_cursor(store, "k") == "5"
                assert ids(own_pending(own, 100)) == ids(taken[4:])
                move = CursorMove("k", "5", "6")
                assert append(store, entries(1), cursor=move).lengths == {"s": 97}
                assert own.acknowledge(ids(taken)) == 6


def test_a_server_that_forgot_its_scripts_gets_them_again(store: Store) -> None:
    append(store, entries(1))
    store.call("SCRIPT", "FLUSH")
    assert append(store, entries(1)).lengths == {"s": 2}


def test_a_late_reply_is_not_taken_for_that_of_the_next_call(clean_redis: str) -> None:
    with (
        UnreliableProxy(clean_redis) as proxy,
        closing(connect(proxy.url, name="test", timeout_seconds=1.0)) as store,
    ):
        store.call("SET", "a", "1")
        proxy.answering.clear()
        with pytest.raises(StoreUnavailableError):
            store.call("GET", "a")
        proxy.answering.set()
        assert store.call("GET", "b") is None
        assert store.call("GET", "a") == b"1"


def test_a_lost_reply_is_not_asked_for_again_by_the_library(clean_redis: str) -> None:
    with (
        UnreliableProxy(clean_redis) as proxy,
        closing(connect(proxy.url, name="test", timeout_seconds=1.0)) as store,
    ):
        store.ping()
        proxy.answering.clear()
        with pytest.raises(StoreUnavailableError):
            store.call("INCR", "a")
        proxy.answering.set()
        assert store.call("GET", "a") == b"1"


def test_a_replica_is_unavailable_and_a_wrong_password_is_refused() -> None:
    with stores.running_valkey() as url, closing(connect(url, name="test")) as store:
        store.call("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreUnavailableError):
            append(store, entries(1))
        store.call("REPLICAOF", "NO", "ONE")
        assert append(store, entries(1)).status == "appended"
        store.call("CONFIG", "SET", "requirepass", "secret")
        with (
            closing(connect(url, name="test")) as stranger,
            pytest.raises(StoreRejectedError, match="password of redis_url"),
        ):
            stranger.ping()
        store.call("CONFIG", "SET", "requirepass", "")


def test_nobody_listens() -> None:
    with closing(connect("redis://127.0.0.1:1", name="test")) as store:
        with pytest.raises(StoreUnavailableError):
            store.ping()
        with pytest.raises(StoreUnavailableError):
            append(store, entries(1))


def test_what_cannot_be_sent_is_a_misuse(store: Store) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        store.call("SET", "a", object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="URL"):
        connect("http://127.0.0.1", name="test")


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_a_tls_file_that_cannot_be_read_is_named(option: str, tmp_path: Path) -> None:
    path = tmp_path / "missing.pem"
    with pytest.raises(LoginRejectedError, match=f"{option} of redis_url: {path}: No such file"):
        connect(f"rediss://127.0.0.1:1?{option}={path}", name="test")


def test_a_refusal_names_the_command_and_its_keys(store: Store) -> None:
    store.call("SET", "s", "of another program")
    with pytest.raises(StoreRejectedError, match=r"Redis refused XLEN s: WRONGTYPE .* rename"):
        store.call("XLEN", "s")
    with pytest.raises(StoreRejectedError, match=r"Redis refused append .*\bs\b.*: WRONGTYPE"):
        append(store, entries(1))
    for command in ("XREADGROUP GROUP g c STREAMS s >", "XGROUP CREATE s g 0", "XINFO STREAM s"):
        with pytest.raises(StoreRejectedError, match=r"Redis refused [A-Z ]+ s: WRONGTYPE"):
            store.call(*command.split())
    store.call("SET", b"\xff" * 500, "x")
    with pytest.raises(StoreRejectedError, match=r"Redis refused XLEN \\xff.{4,110}: WRONGTYPE"):
        store.call("XLEN", b"\xff" * 500)
