"""The embedded servers survive what an operator's machine does to them."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from rsky_pipeline.cli import main
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.schema import initialise
from rsky_pipeline.embedded import accounts, locations, postgres, valkey
from rsky_pipeline.embedded.errors import EmbeddedStoreError
from rsky_pipeline.embedded.program import StoreProgram
from tests.stores import redis_client, running, scratch_directory, wait_until_it_answers

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change accounts")


def settings_in(directory: Path) -> Settings:
    return locations.resolve_directories(Settings(data_dir=directory))


def test_acknowledged_writes_survive_kill_9_of_valkey() -> None:
    with scratch_directory() as folder:
        program = valkey.prepare(settings_in(folder))
        process = program.start()
        wait_until_it_answers(program, process)
        with redis_client(program.url) as client:
            for number in range(1000):
                client.xadd("stream", {"number": number})
        process.kill()
        process.wait()
        with running(program), redis_client(program.url) as client:
            assert client.xlen("stream") == 1000


def test_committed_rows_survive_kill_9_of_postgres() -> None:
    with scratch_directory() as folder:
        program = postgres.prepare(settings_in(folder))
        process = program.start()
        wait_until_it_answers(program, process)
        with psycopg.connect(program.url) as connection:
            connection.execute("CREATE TABLE kept (number integer)")
            connection.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
        process.kill()
        process.wait()
        again = postgres.prepare(settings_in(folder))
        assert again.arguments == program.arguments
        with running(again), psycopg.connect(again.url) as connection:
            row = connection.execute("SELECT count(*) FROM kept").fetchone()
            assert row == (1000,)


def test_a_cluster_of_an_older_version_gets_the_present_settings() -> None:
    """Except where an operator changed them."""

    def shown(program: StoreProgram, *names: str) -> list[str]:
        with running(program), psycopg.connect(program.url) as connection:
            return [connection.execute(f"SHOW {name}").fetchone()[0] for name in names]  # type: ignore[index]

    former = postgres.FORMER_OPTIONS
    with scratch_directory() as folder:
        postgres.prepare(settings_in(folder))
        path = folder / "postgres" / "data" / "postgresql.conf"
        status, text = path.stat(), path.read_text()
        for name, value in former.items():
            text, count = re.subn(rf"(?m)^{name} = \S+", f"{name} = {value}", text)
            assert count == 1
        path.write_text(text.replace("jit = off", "jit = on"))
        found = shown(postgres.prepare(settings_in(folder)), *former, "jit")
        gigabytes = postgres.wal_gigabytes(shutil.disk_usage(folder).free)
        buffers = postgres.buffers_megabytes(postgres.memory_bytes())
        assert found[0] in (f"{buffers}MB", f"{buffers // 1_024}GB")
        assert found[2:] == [f"{gigabytes}GB", "30min", "off", "on"]
        assert (path.stat().st_uid, path.stat().st_mode) == (status.st_uid, status.st_mode)
        path.write_text(path.read_text().replace("timeout = 30min", "timeout = 5min"))
        assert shown(postgres.prepare(settings_in(folder)), "checkpoint_timeout") == ["5min"]


def test_stopping_postgres_is_orderly() -> None:
    with scratch_directory() as folder:
        program = postgres.prepare(settings_in(folder))
        with running(program):
            pass
        assert any("database system is shut down" in line for line in program.last_log_lines())


def test_a_cluster_that_was_half_made_is_made_again() -> None:
    with scratch_directory() as folder:
        unfinished = folder / "postgres" / "data.new"
        unfinished.mkdir(parents=True)
        (unfinished / "PG_VERSION").write_text("18\n")
        with running(postgres.prepare(settings_in(folder))) as program:
            assert program.answers()
        assert not unfinished.exists()


def test_asking_postgres_whether_it_answers_leaves_no_trace_in_its_log() -> None:
    """The supervisor asks every few seconds, for as long as it runs."""
    with scratch_directory() as folder:
        program = postgres.prepare(settings_in(folder))
        with running(program):
            before = program.log_path.read_text()
            assert program.answers()
            assert program.log_path.read_text() == before


def test_paths_too_long_for_sockets_still_work() -> None:
    with scratch_directory() as folder:
        deep = folder / ("d" * 60) / ("e" * 60)
        programs = [prepare(settings_in(deep)) for prepare in (valkey.prepare, postgres.prepare)]
        try:
            for program in programs:
                with running(program):
                    assert program.answers()
            with running(programs[0]), redis_client(programs[0].url) as client:
                assert client.ping()
            with running(programs[1]), psycopg.connect(programs[1].url) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
        finally:
            for directory in (deep / "valkey", deep / "postgres"):
                shutil.rmtree(locations.socket_directory(directory))


def test_nobody_listens_on_the_network() -> None:
    with scratch_directory() as folder:
        program = postgres.prepare(settings_in(folder))
        with running(program), psycopg.connect(program.url) as connection:
            row = connection.execute("SHOW listen_addresses").fetchone()
        assert row == ("",)
        sockets = locations.postgres_socket_directory(folder)
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700


@as_root
def test_root_runs_postgres_as_somebody_else_in_a_private_place() -> None:
    with scratch_directory() as folder:
        private = folder / "private" / "deeper"
        private.mkdir(parents=True)
        folder.chmod(0o700)
        private.parent.chmod(0o700)
        program = postgres.prepare(settings_in(private / "data"))
        assert program.account is not None
        with running(program):
            cluster = private / "data" / "postgres" / "data"
            owner = cluster.stat().st_uid
            assert owner == program.account.uid != 0
            pid = int(
                (private / "data" / "postgres" / "data" / "postmaster.pid").read_text().split()[0]
            )
            status = Path(f"/proc/{pid}/status").read_text()
            uids = next(line for line in status.splitlines() if line.startswith("Uid:"))
            assert set(uids.split()[1:]) == {str(owner)}
        # Passable, and no more than that.
        assert stat.S_IMODE(folder.stat().st_mode) == 0o701
        assert stat.S_IMODE(private.parent.stat().st_mode) == 0o701


@as_root
def test_root_keeps_the_account_of_an_existing_cluster(tmp_path: Path) -> None:
    home = tmp_path / "postgres"
    home.mkdir()
    os.chown(home, 12345, 12345)
    account = accounts.unprivileged_account(home)
    assert account is not None
    assert (account.uid, account.gid) == (12345, 12345)


@as_root
def test_programs_out_of_reach_are_opened_to_readers(tmp_path: Path) -> None:
    folder = tmp_path / "wheel" / "bin"
    folder.mkdir(parents=True)
    for name, mode in (("postgres", 0o700), ("data.txt", 0o600)):
        (folder / name).write_text("")
        (folder / name).chmod(mode)
    folder.chmod(0o700)
    accounts.let_read(tmp_path / "wheel")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"bin": 0o705, "postgres": 0o705, "data.txt": 0o604}


def test_without_useradd_an_existing_account_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(accounts, "ACCOUNT_NAME", "rsky-no-such-account")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    account = accounts.unprivileged_account(Path("/nonexistent"))
    assert account is not None
    assert account.name == "nobody"


def test_a_broken_program_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "pginstall"
    (broken / "bin").mkdir(parents=True)
    for name in ("postgres", "initdb", "pg_isready"):
        (broken / "bin" / name).write_text("#!/bin/sh\necho 'no disk' >&2\nexit 3\n")
        (broken / "bin" / name).chmod(0o755)
    monkeypatch.setattr(locations, "postgres_folder", lambda: broken)
    with (
        scratch_directory() as folder,
        pytest.raises(EmbeddedStoreError, match="initdb failed with code 3: no disk"),
    ):
        postgres.prepare(settings_in(folder))


def test_a_server_log_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsky_pipeline.embedded.program.MAX_LOG_BYTES", 100)
    with scratch_directory() as folder:
        program = valkey.prepare(settings_in(folder))
        program.log_path.write_text("old\n" * 100)
        with running(program):
            pass
        assert program.log_path.with_name("server.log.1").read_text().startswith("old")
        assert not program.log_path.read_text().startswith("old")


def test_the_guard_stops_a_store_whose_supervisor_is_gone() -> None:
    from rsky_pipeline.embedded import guard

    with scratch_directory() as folder:
        program = valkey.prepare(settings_in(folder))
        store = program.start()
        wait_until_it_answers(program, store)
        read, write = os.pipe()
        command = guard.arguments(
            pid=store.pid,
            liveness=read,
            stop_signal=signal.SIGTERM,
            locks=folder / "locks",
            patience=10,
        )
        watcher = subprocess.Popen(command, pass_fds=(read,))
        os.close(read)
        with pytest.raises(subprocess.TimeoutExpired):
            store.wait(0.5)
        os.close(write)
        assert store.wait(10) == 0
        assert watcher.wait(10) == 0


def test_an_appview_reaches_the_embedded_database_by_its_password() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with scratch_directory() as directory:
        settings = replace(settings_in(directory), embedded_database_port=port)
        url = locations.appview_url(locations.store_urls(settings))
        assert url == f"postgresql://appview@127.0.0.1:{port}/bsky"
        shown = CliRunner().invoke(
            main,
            ["config", "show", f"--data-dir={directory}", f"--set=embedded_database_port={port}"],
        )
        assert f"{url} (password in {locations.appview_password(directory)})" in shown.output
        config_url = ["config", "url", f"--data-dir={directory}"]
        asked = [*config_url, f"--set=embedded_database_port={port}"]
        refused = CliRunner().invoke(main, config_url)
        assert (refused.exit_code, "embedded_database_port" in refused.output) == (2, True)
        early = CliRunner().invoke(main, asked)
        assert (early.exit_code, "rsky-pipeline start" in early.output) == (3, True)
        for _ in range(2):
            with running(postgres.prepare(settings)) as store:
                initialise(store.url, "bsky")
                password = locations.appview_password(directory).read_text().strip()
                with psycopg.connect(url, password=password, autocommit=True) as appview:
                    appview.execute("INSERT INTO bsky.mute VALUES ('a', 'b', 't') "
                                    "ON CONFLICT DO NOTHING")  # fmt: skip
                    assert appview.execute("SELECT count(*) FROM bsky.record").fetchone() == (0,)
                printed = CliRunner().invoke(main, asked).stdout.strip()
                with psycopg.connect(printed) as bsync:  # which makes its own tables
                    bsync.execute("CREATE SCHEMA bsync")
                    bsync.rollback()
                for user, secret in (("appview", "wrong"), ("postgres", "")):
                    with pytest.raises(psycopg.OperationalError, match=r"authentication|pg_hba"):
                        psycopg.connect(url, user=user, password=secret)
        assert locations.appview_password(directory).stat().st_mode & 0o077 == 0
