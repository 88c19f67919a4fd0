"""An embedded PostgreSQL: unix socket only, durable, sized for a small machine."""

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded import accounts, locations
from rsky_pipeline.embedded.accounts import SystemAccount
from rsky_pipeline.embedded.errors import EmbeddedStoreError
from rsky_pipeline.embedded.program import StoreProgram

# Written to postgresql.conf once, so that an operator can edit them there. synchronous_commit stays
# on: a batch acknowledged in Redis must survive a crash of the server.
INITIAL_OPTIONS: Mapping[str, str] = {
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    # The first change of a page after a checkpoint writes the full page to the WAL, about eleven
    # pages per event: in a large database, most of the write load. So checkpoints are rare, at the
    # price of minutes of recovery after a crash and `max_wal_size` of disk.
    "checkpoint_timeout": "30min",
    "checkpoint_completion_target": "0.9",
    # Compression with pglz would take three to four times the CPU time of the whole server.
    "wal_compression": "off",
    "wal_writer_delay": "20ms",  # most WAL is already flushed when a commit needs it
    "synchronous_commit": "on",
    "max_locks_per_transaction": "256",
    "random_page_cost": "1.1",
    "jit": "off",  # statements are short; compiling them costs more than it saves
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}
DEFAULT_PORT = 5432
# Who may log in where there is a port: the pipeline by its socket, an AppView by its password.
_ACCESS = f"""local all all trust
host {locations.DATABASE} {locations.APPVIEW_USER} 127.0.0.1/32 scram-sha-256
"""
# Set on the command line, which overrides postgresql.conf: the program depends on them.
FIXED_OPTIONS: Mapping[str, str] = {
    "listen_addresses": "",
    "port": str(DEFAULT_PORT),  # only part of the socket's name
    "unix_socket_permissions": "0700",
    "logging_collector": "off",
}
# The values that older versions wrote, replaced at each start in a cluster that still has them. A
# value of an operator stays; ALTER SYSTEM sets one of these for good.
FORMER_OPTIONS: Mapping[str, str] = {
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "10min",
    "wal_compression": "pglz",
}
INITIALISE_TIMEOUT_SECONDS = 120
_MB, _GB = 1024**2, 1024**3
LEAST_WAL_GB, MOST_WAL_GB = 1, 20
WAL_SHARE = 8  # divisor: `max_wal_size` is this fraction of the free disk
# An event touches eleven pages at random places of the indexes: one that is not among these has to
# be read, and another one often to be written. The usual quarter of the memory is for a machine
# that has nothing else to do.
LEAST_BUFFERS_MB, MOST_BUFFERS_MB = 256, 8_192
BUFFERS_SHARE, CACHE_SHARE = 8, 2  # divisors, of the memory

_MEMORY_LIMITS = (  # of a container's own control group, in both versions
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

log = logging.getLogger(__name__)


def prepare(settings: Settings, options: Mapping[str, str] | None = None) -> StoreProgram:
    """Create the cluster and its database if missing; returns the program to start.

    Blocking; the first call takes some seconds. `options` are further server settings.
    Raises EmbeddedStoreError.
    """
    installation = locations.postgres_folder()
    root = locations.data_directory(settings)
    home = root / "postgres"
    locations.make_private(root, 0o711 if os.geteuid() == 0 else 0o700)
    account = accounts.unprivileged_account(home)
    sockets = _directories(root, home, installation, account)
    if (home / "data" / "PG_VERSION").exists():
        _replace_former_options(home)
    else:
        _create_cluster(installation, home, account)
    switches = {**FIXED_OPTIONS, "unix_socket_directories": str(sockets), **(options or {})}
    port = settings.embedded_database_port
    if port:
        _let_appview_in(installation, root, home, account)
        hba = home / "pg_hba.conf"
        hba.write_text(_ACCESS)
        hba.chmod(0o644)
        switches |= {"listen_addresses": "127.0.0.1", "port": str(port), "hba_file": str(hba)}
    return StoreProgram(
        name="postgres",
        arguments=(
            str(installation / "bin" / "postgres"),
            *("-D", str(home / "data")),
            *(part for name, value in switches.items() for part in ("-c", f"{name}={value}")),
        ),
        url=locations.store_urls(settings).database_url or "",
        directory=home,
        log_path=root / "postgres.log",
        stop_signal=signal.SIGINT,  # fast: ends sessions, writes a checkpoint
        answers=partial(answers, installation, sockets, port or DEFAULT_PORT),
        account=account,
    )


def _let_appview_in(
    installation: Path, root: Path, home: Path, account: SystemAccount | None
) -> None:
    """Make the role of an AppView, with a password of its own, once."""
    file = locations.appview_password(root)
    if file.exists():
        return
    password = secrets.token_urlsafe(24)
    role = locations.APPVIEW_USER
    missing = f"NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}')"
    statements = [
        f"DO $$ BEGIN IF {missing} THEN CREATE ROLE {role}; END IF; END $$",
        f"ALTER ROLE {role} LOGIN PASSWORD '{password}'",
        # An AppView reads everything, and writes mutes, bookmarks and the like.
        f"GRANT pg_read_all_data, pg_write_all_data TO {role}",
        # bsync makes its tables in a schema of its own.
        f"GRANT CREATE ON DATABASE {locations.DATABASE} TO {role}",
    ]
    single = [str(installation / "bin" / "postgres"), "--single", "-D", str(home / "data")]
    text = "".join(f"{statement}\n" for statement in statements)
    _run([*single, locations.DATABASE], account, text)
    unfinished = file.with_suffix(".new")
    unfinished.touch(0o600)
    unfinished.write_text(password + "\n")
    unfinished.replace(file)


def answers(installation: Path, sockets: Path, port: int) -> bool:
    """Return whether the server with this socket directory takes connections."""
    command = [str(installation / "bin" / "pg_isready"), "--quiet", "--timeout=2"]
    command += ["--host", str(sockets), "--port", str(port), "--dbname", locations.DATABASE]
    command += ["--username", locations.DATABASE_USER]  # else the log names a role that is missing
    return subprocess.run(command, env={"LC_ALL": "C"}, timeout=10, check=False).returncode == 0


def _directories(root: Path, home: Path, installation: Path, account: SystemAccount | None) -> Path:
    """Create the server's directories and make their paths accessible to its account."""
    accounts.give(home, account)
    sockets = locations.postgres_socket_directory(root)
    if sockets.parent != home:
        locations.make_private(sockets.parent, 0o711 if account else 0o700)
    accounts.give(sockets, account)
    if account is not None:
        accounts.let_through(home, account)
        accounts.let_through(installation, account)
        accounts.let_read(installation)
    return sockets


def _create_cluster(installation: Path, home: Path, account: SystemAccount | None) -> None:
    """Create the cluster under a temporary name and rename it, so that none is half-made."""
    log.info("creating the embedded PostgreSQL", extra={"directory": str(home)})
    unfinished = home / "data.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    programs = installation / "bin"
    initdb = [
        *(str(programs / "initdb"), "--pgdata", str(unfinished)),
        *("--username", locations.DATABASE_USER, "--auth", "trust", "--encoding", "UTF8"),
        # Code-point order and full Unicode case mapping, independent of the libc.
        *("--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
        *("--no-instructions", "--no-sync"),
        *(
            part
            for name, value in _initial_options(home).items()
            for part in ("--set", f"{name}={value}")
        ),
    ]
    _run(initdb, account)
    single = [str(programs / "postgres"), "--single", "-D", str(unfinished), "postgres"]
    _run(single, account, f"CREATE DATABASE {locations.DATABASE}\n")
    _run([str(programs / "initdb"), "--sync-only", "--pgdata", str(unfinished)], account)
    unfinished.rename(home / "data")


def _initial_options(home: Path) -> Mapping[str, str]:
    memory = memory_bytes()
    return {
        **INITIAL_OPTIONS,
        "shared_buffers": f"{buffers_megabytes(memory)}MB",
        "effective_cache_size": f"{max(1_024, memory // CACHE_SHARE // _MB)}MB",
        "max_wal_size": f"{wal_gigabytes(shutil.disk_usage(home).free)}GB",
    }


def _replace_former_options(home: Path) -> None:
    """Give a cluster of an older version the present values; written only where one changes."""
    path = home / "data" / "postgresql.conf"
    before = text = path.read_bytes().decode(errors="surrogateescape")
    options = _initial_options(home)
    for name, value in FORMER_OPTIONS.items():
        line = rf"^(\s*{name}\s*=\s*)'?{value}'?(?=[\s#]|$)"
        text = re.sub(line, rf"\g<1>{options[name]}", text, flags=re.MULTILINE | re.IGNORECASE)
    if text == before:
        return
    log.info("replacing settings of an older version", extra={"file": str(path)})
    replaced = path.with_suffix(".new")
    replaced.write_bytes(text.encode(errors="surrogateescape"))
    status = path.stat()
    os.chown(replaced, status.st_uid, status.st_gid)
    replaced.chmod(status.st_mode)
    replaced.replace(path)


def wal_gigabytes(free: int) -> int:
    """Return `max_wal_size` for a disk with so many free bytes."""
    return max(LEAST_WAL_GB, min(MOST_WAL_GB, free // WAL_SHARE // _GB))


def buffers_megabytes(memory: int) -> int:
    """Return `shared_buffers` for a machine with so many bytes of memory."""
    share = memory // BUFFERS_SHARE // _MB
    return max(LEAST_BUFFERS_MB, min(MOST_BUFFERS_MB, share - share % 64))


def memory_bytes() -> int:
    """Return the memory of the machine, or of the control group if that is limited to less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # without a limit it is "max"
            memory = min(memory, int(path.read_text()))
    return memory


def _run(command: list[str], account: SystemAccount | None, stdin: str = "") -> None:
    name = Path(command[0]).name
    try:
        result = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            timeout=INITIALISE_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedStoreError(f"{name} could not be run: {error}") from error
    if result.returncode != 0:
        reason = " | ".join(result.stderr.strip().splitlines()[-3:])
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        cause = full if str(full.strerror) in reason else None  # which passes
        raise EmbeddedStoreError(
            f"{name} failed with code {result.returncode}: {reason}"
        ) from cause
