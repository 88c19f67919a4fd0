"""An embedded store that is ready and stops working is started again, whatever holds it up."""

import os
import signal
from collections.abc import Callable

import psycopg
import pytest
import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded import locations, postgres, valkey
from rsky_pipeline.supervisor import child as child_module
from rsky_pipeline.supervisor import children
from rsky_pipeline.supervisor import machine as m
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.machine import Phase
from rsky_pipeline.supervisor.spawn import descendants
from tests.stores import redis_client, scratch_directory


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "LIVENESS_SECONDS", 0.1)
    monkeypatch.setattr(child_module, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(children, "GIVE_UP_SECONDS", 1.0)


def stop_a_backend(pid: int, connection: "psycopg.Connection[tuple[object, ...]]") -> None:
    backend = connection.info.backend_pid
    assert backend in descendants(pid)
    os.kill(backend, signal.SIGSTOP)


HINDRANCES: dict[str, Callable[[int, "psycopg.Connection[tuple[object, ...]]"], None]] = {
    "stopped": lambda pid, _: os.kill(pid, signal.SIGSTOP),
    "terminated": lambda pid, _: os.kill(pid, signal.SIGTERM),  # waits for our connection
    "backend": stop_a_backend,
}


@pytest.mark.parametrize("hindrance", HINDRANCES)
async def test_postgres_comes_back(hindrance: str) -> None:
    with scratch_directory() as folder:
        settings = locations.resolve_directories(Settings(data_dir=folder, run_dir=folder / "run"))
        program = postgres.prepare(settings)
        async with trio.open_nursery() as nursery:
            store = children.store_child(program, settings)
            nursery.start_soon(store.run)
            await started(store)
            first = store.state.pid
            assert first is not None
            connection = psycopg.connect(program.url)
            connection.execute("CREATE TABLE kept (number integer)")
            connection.commit()
            connection.execute("LOCK TABLE kept")
            HINDRANCES[hindrance](first, connection)
            await again(store, first)
            with psycopg.connect(program.url, connect_timeout=10) as following:
                assert following.execute("SELECT count(*) FROM kept").fetchone() == (0,)
            connection.close()
            await stopped(store, nursery)


async def test_valkey_comes_back() -> None:
    with scratch_directory() as folder:
        settings = locations.resolve_directories(Settings(data_dir=folder, run_dir=folder / "run"))
        program = valkey.prepare(settings)
        async with trio.open_nursery() as nursery:
            store = children.store_child(program, settings)
            nursery.start_soon(store.run)
            await started(store)
            first = store.state.pid
            assert first is not None
            with redis_client(program.url) as client:
                client.set("kept", "1")
            os.kill(first, signal.SIGSTOP)
            await again(store, first)
            with redis_client(program.url) as client:
                assert client.get("kept") == b"1"
            await stopped(store, nursery)


async def test_a_store_that_answers_again_in_time_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_module, "PATIENCE_SECONDS", 60.0)
    with scratch_directory() as folder:
        settings = locations.resolve_directories(Settings(data_dir=folder, run_dir=folder / "run"))
        program = valkey.prepare(settings)
        async with trio.open_nursery() as nursery:
            store = children.store_child(program, settings)
            nursery.start_soon(store.run)
            await started(store)
            first = store.state.pid
            assert first is not None
            os.kill(first, signal.SIGSTOP)
            with trio.fail_after(30):
                while store.health.get("trouble") is None:
                    await trio.sleep(0.02)
            os.kill(first, signal.SIGCONT)
            with trio.fail_after(30):
                while store.health.get("trouble") is not None:
                    await trio.sleep(0.02)
            assert (store.state.pid, store.state.phase) == (first, Phase.READY)
            await stopped(store, nursery)


async def started(store: ChildDriver) -> None:
    store.send(m.Start())
    with trio.fail_after(90):
        await store.until(lambda child: child.is_ready)


async def again(store: ChildDriver, first: int) -> None:
    with trio.fail_after(60):
        await store.until(lambda child: child.is_ready and child.state.pid not in (None, first))


async def stopped(store: ChildDriver, nursery: trio.Nursery) -> None:
    store.send(m.Stop())
    with trio.fail_after(60):
        await store.until(lambda child: child.at_rest)
    nursery.cancel_scope.cancel()
