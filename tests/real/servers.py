"""Servers as operators run them, from Debian's packages, on free ports of the loopback interface.

Each function starts processes that end with the ExitStack of `Servers`. Nothing is found on
another machine, and no service of this one is touched.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import psycopg
import pytest

from tests.evidence import kept_if_failed
from tests.stores import redis_client

START_SECONDS = 30.0
POSTGRES_BIN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
# Debian's package of each program; docs/testing.md has them all.
PACKAGES = {
    "redis-server": "redis-server",
    "redis-sentinel": "redis-sentinel",
    "haproxy": "haproxy",
    "pgbouncer": "pgbouncer",
    "postgres": "postgresql",
    "openssl": "openssl",
    "ip": "iproute2",
    "nft": "nftables",
    "tinyproxy": "tinyproxy",
    "tayga": "tayga",
    "unbound": "unbound",
    "patroni": "patroni",
    "etcd": "etcd-server python3-etcd",
}
# A command after these words gets SIGKILL when the tests do.
ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_PREFIX = "rsky-real-"
USER = "rsky"  # of PostgreSQL: it may create nothing but tables in its own database
PASSWORD = "with:odd/characters@%"


def program(name: str) -> str:
    """Return the path of a program; fails the test, which must not pass without it."""
    if name == "postgres":
        path = str(POSTGRES_BIN[0] / "postgres") if POSTGRES_BIN else None
    else:
        path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"{name} is missing: apt-get install {PACKAGES[name]}", pytrace=False)
    return path


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until(condition: Callable[[], bool], reason: str, seconds: float = START_SECONDS) -> None:
    """Return when a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{reason}: not after {seconds:.0f} s"
        time.sleep(0.1)


@dataclass(slots=True)
class Server:
    """A process that listens on a port."""

    port: int
    launch: Callable[[], "subprocess.Popen[bytes]"]
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        self.process = self.launch()

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        """Start it with the same command, on the same port."""
        self.process = self.launch()
        wait_until(self.accepts, f"port {self.port} is not listened on")

    def accepts(self) -> bool:
        """Whether it takes connections."""
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self) -> None:
        """End it, whether or not it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass(slots=True)
class RedisServer(Server):
    """A Redis or Valkey."""

    password: str = ""
    scheme: str = "redis"
    options: str = ""

    @property
    def url(self) -> str:
        """The URL of its database 0."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"{self.scheme}://{login}127.0.0.1:{self.port}/0{self.options}"

    def command(self, *words: str | int) -> object:
        """Run a command and return its reply."""
        with redis_client(self.url) as client:
            return client.execute_command(*words)

    def replicate(self, primary: "RedisServer") -> None:
        """Make it a replica, as a fail-over does with the old primary."""
        self.command("REPLICAOF", "127.0.0.1", primary.port)

    def has_caught_up(self, primary: "RedisServer") -> bool:
        """Whether it holds everything that the primary has written so far."""
        with redis_client(self.url) as own, redis_client(primary.url) as other:
            mine, theirs = own.info("replication"), other.info("replication")
        return bool(
            mine.get("master_link_status") == "up"
            and mine["slave_repl_offset"] >= theirs["master_repl_offset"]
        )

    def promote(self, primary: "RedisServer") -> None:
        """Make it the primary, and the old one its replica, which keeps its connections."""
        self.command("REPLICAOF", "NO", "ONE")
        primary.replicate(self)


@dataclass(slots=True)
class PostgresServer(Server):
    """A PostgreSQL with its data in `folder`; roles `postgres` (all rights) and `rsky` (few)."""

    folder: Path = field(default_factory=Path)
    options: str = ""

    def url(self, user: str = "postgres", database: str = "appview", port: int = 0) -> str:
        """The URL of a database, also through a proxy on another port."""
        login = "postgres" if user == "postgres" else f"{user}:{quote(PASSWORD, safe='')}"
        return f"postgresql://{login}@127.0.0.1:{port or self.port}/{database}{self.options}"

    def execute(self, statement: str, database: str = "appview") -> None:
        """Run a statement with all rights."""
        with psycopg.connect(self.url(database=database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def value(self, query: str) -> object:
        """Return the first value of a query."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None

    def promote(self) -> None:
        """Make a standby the primary."""
        self.value("SELECT pg_promote(true, 60)")

    def stop_following(self) -> None:
        """Let a standby receive nothing more, as one does that cannot keep up."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")

    def kill_all(self) -> None:
        """Kill the server and its backends, as a crash of the machine does."""
        # Stopped, so that no backend sees it gone and tells its client before it is killed too.
        self.process.send_signal(signal.SIGSTOP)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in map(int, children.read_text().split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kill()


@dataclass(slots=True)
class Proxy(Server):
    """An HAProxy with one address before several servers; one of them gets new connections."""

    admin: Path = field(default_factory=Path)
    servers: tuple[str, ...] = ()

    def switch(self, name: str, *, cut: bool = False) -> None:
        """Send new connections to another server; those that are open stay, unless cut."""
        for server in self.servers:
            state = "ready" if server == name else "maint"
            self._command(f"set server db/{server} state {state}")
            if cut and server != name:
                self._command(f"shutdown sessions server db/{server}")

    def _command(self, line: str) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.admin))
            connection.sendall(f"{line}\n".encode())
            while connection.recv(4096):
                pass


AnyServer = TypeVar("AnyServer", bound=Server)


class Servers:
    """Starts servers; all end together."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._count = 0
        self._account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None

    def redis(
        self,
        *options: str,
        valkey: str | None = None,
        password: str = "",
        replica_of: RedisServer | None = None,
        certificates: "Certificates | None" = None,
    ) -> RedisServer:
        """Start a Redis, or the Valkey at a path, with an append-only file."""
        port, folder = free_port(), self.directory("redis")
        words = [
            valkey or program("redis-server"), "--bind", "127.0.0.1",
            "--dir", str(folder), "--appendonly", "yes", "--save", "", "--daemonize", "no",
            "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1",
        ]  # fmt: skip
        scheme, query = "redis", ""
        if certificates is None:
            words += ["--port", str(port)]
        else:
            words += [
                "--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no",
                "--tls-cert-file", str(certificates.server), "--tls-key-file",
                str(certificates.key), "--tls-ca-cert-file", str(certificates.authority),
            ]  # fmt: skip
            scheme, query = "rediss", f"?ssl_ca_certs={certificates.authority}"
        if password:
            words += ["--requirepass", password, "--masterauth", password]
        if replica_of is not None:
            words += ["--replicaof", "127.0.0.1", str(replica_of.port)]
        command = self.launch([*words, *options], folder)
        server = self.running(
            RedisServer(port, command, password=password, scheme=scheme, options=query)
        )
        if replica_of is not None:
            wait_until(lambda: server.has_caught_up(replica_of), "the replica does not follow")
        return server

    def sentinels(
        self, primary: RedisServer, name: str, count: int = 3, password: str = ""
    ) -> list[Server]:
        """Start sentinels that fail over after a second without an answer."""
        found = []
        for _ in range(count):
            port, folder = self.sentinel_place()
            lines = [
                f"port {port}", "bind 127.0.0.1", f"dir {folder}",
                f"sentinel monitor {name} 127.0.0.1 {primary.port} {count // 2 + 1}",
                f"sentinel down-after-milliseconds {name} 1000",
                f"sentinel failover-timeout {name} 5000",
            ]  # fmt: skip
            if primary.password:
                lines.append(f"sentinel auth-pass {name} {primary.password}")
            if password:
                lines += [f"requirepass {password}", f"sentinel sentinel-pass {password}"]
            found.append(self.sentinel(port, folder, lines))
        return found

    def sentinel_place(self) -> tuple[int, Path]:
        """Return a port and a directory for a sentinel."""
        return free_port(), self.directory("sentinel")

    def sentinel(self, port: int, folder: Path, lines: Sequence[str]) -> Server:
        """Start a sentinel with these lines as its configuration."""
        (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
        command = [program("redis-sentinel"), str(folder / "sentinel.conf")]
        return self.running(Server(port, self.launch(command, folder)))

    def postgres(self, *initdb: str, options: Mapping[str, str] | None = None) -> PostgresServer:
        """Start a PostgreSQL with an empty database `appview` that belongs to role `rsky`."""
        folder = self.directory("postgres", for_postgres=True)
        self._run(
            [str(POSTGRES_BIN[0] / "initdb"), "-D", str(folder), "-U", "postgres", "--auth=trust",
             "--auth-host=trust", "--no-sync", *(initdb or ("--locale=C.UTF-8",))]
        )  # fmt: skip
        (folder / "pg_hba.conf").write_text(
            "local all all trust\nhost all postgres 127.0.0.1/32 trust\n"
            "host replication postgres 127.0.0.1/32 trust\n"
            "host all all 127.0.0.1/32 scram-sha-256\n"
        )
        server = self._postgres(folder, options or {})
        server.execute(
            f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}' NOSUPERUSER NOCREATEDB", "postgres"
        )
        server.execute(f"CREATE DATABASE appview OWNER {USER}", "postgres")
        return server

    def standby(self, primary: PostgresServer, **options: str) -> PostgresServer:
        """Start a PostgreSQL that replicates another one asynchronously."""
        folder = self.directory("standby", for_postgres=True)
        self._run(
            [str(POSTGRES_BIN[0] / "pg_basebackup"), "-h", "127.0.0.1", "-p", str(primary.port),
             "-U", "postgres", "-D", str(folder), "-R", "--checkpoint=fast", "--no-sync"]
        )  # fmt: skip
        return self._postgres(folder, options)

    def _postgres(self, folder: Path, options: Mapping[str, str]) -> PostgresServer:
        port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1", "port": str(port), "hot_standby": "on",
            "unix_socket_directories": "", "max_connections": "60", **options,
        }  # fmt: skip
        words = [program("postgres"), "-D", str(folder)]
        words += [word for pair in settings.items() for word in ("-c", "=".join(pair))]
        server = PostgresServer(port, self.launch(words, folder, user=True), folder=folder)
        self._stack.callback(self._end_postgres, server)
        ready = [str(POSTGRES_BIN[0] / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        wait_until(
            lambda: subprocess.run(ready, check=False).returncode == 0,
            "PostgreSQL takes no connections",
        )
        return server

    def at_end(self, action: Callable[[], object]) -> None:
        """Do something when the servers end, before those end that are there by now."""
        self._stack.callback(action)

    def _end_postgres(self, server: PostgresServer) -> None:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGQUIT)
            server.process.wait(20)

    def pgbouncer(
        self, server: PostgresServer, *options: str, binary: str | None = None, size: int = 6
    ) -> Server:
        """Start a pgbouncer in transaction mode before a PostgreSQL."""
        port, folder = free_port(), self.directory("pgbouncer", for_postgres=True)
        (folder / "users.txt").write_text(f'"{USER}" "{PASSWORD}"\n"postgres" ""\n')
        lines = [
            "[databases]", f"* = host=127.0.0.1 port={server.port}", "[pgbouncer]",
            "listen_addr = 127.0.0.1", f"listen_port = {port}", "unix_socket_dir =",
            "pool_mode = transaction", f"default_pool_size = {size}", "auth_type = plain",
            f"auth_file = {folder}/users.txt", "admin_users = postgres", *options,
        ]  # fmt: skip
        (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        command = [binary or program("pgbouncer"), str(folder / "pgbouncer.ini")]
        return self.running(Server(port, self.launch(command, folder, user=True)))

    def haproxy(self, *servers: Server) -> Proxy:
        """Start an HAProxy that sends new connections to the first of these until switched."""
        port, folder = free_port(), self.directory("haproxy")
        admin, names = folder / "admin.sock", tuple(f"s{n}" for n in range(len(servers)))
        lines = [
            "global", f"  stats socket {admin} level admin", "defaults", "  mode tcp",
            "  timeout connect 2s", "  timeout client 1h", "  timeout server 1h",
            "frontend in", f"  bind 127.0.0.1:{port}", "  default_backend db", "backend db",
            *(
                f"  server {name} 127.0.0.1:{server.port}{' disabled' if number else ''}"
                for number, (name, server) in enumerate(zip(names, servers, strict=True))
            ),
        ]  # fmt: skip
        (folder / "haproxy.cfg").write_text("\n".join(lines) + "\n")
        command = self.launch(
            [program("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")], folder
        )
        return self.running(Proxy(port, command, admin=admin, servers=names))

    def certificates(self, names: str = "DNS:localhost,IP:127.0.0.1") -> "Certificates":
        """Make an authority of one's own and a certificate of some names."""
        folder = self.directory("tls", for_postgres=True)
        authority, key, request = (folder / name for name in ("ca.pem", "ca.key", "server.csr"))
        openssl = program("openssl")
        self._run(
            [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout",
             str(key), "-out", str(authority), "-subj", "/CN=test authority"]
        )  # fmt: skip
        self._run(
            [openssl, "req", "-newkey", "rsa:2048", "-nodes", "-keyout", str(folder / "server.key"),
             "-out", str(request), "-subj", "/CN=localhost"]
        )  # fmt: skip
        (folder / "names").write_text(f"subjectAltName={names}\n")
        self._run(
            [openssl, "x509", "-req", "-in", str(request), "-CA", str(authority), "-CAkey",
             str(key), "-CAcreateserial", "-days", "2", "-extfile", str(folder / "names"),
             "-out", str(folder / "server.pem")]
        )  # fmt: skip
        return Certificates(authority, folder / "server.pem", folder / "server.key")

    def directory(self, name: str, *, for_postgres: bool = False) -> Path:
        """Make a directory, for programs that run as PostgreSQL's account if wanted."""
        self._count += 1
        path = self.folder / f"{name}-{self._count}"
        path.mkdir(mode=0o700)
        if for_postgres and self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)
        return path

    def running(self, server: AnyServer) -> AnyServer:
        """Return a server that takes connections, and ends with the others."""
        self._stack.callback(server.end)
        wait_until(server.accepts, f"port {server.port} is not listened on")
        return server

    def launch(
        self, command: Sequence[str], folder: Path, *, user: bool = False
    ) -> Callable[[], "subprocess.Popen[bytes]"]:
        """Return what starts a command, which logs beside its directory."""
        account = self._account if user else None

        def launch() -> "subprocess.Popen[bytes]":
            with (self.folder / f"{folder.name}.log").open("ab") as log:
                return subprocess.Popen(
                    [*ENDS_WITH_US, *command], cwd=folder, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log,
                    user=account.pw_uid if account else None,
                    group=account.pw_gid if account else None,
                    extra_groups=[] if account else None,
                    env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                    start_new_session=True,
                )  # fmt: skip

        return launch

    def _run(self, command: Sequence[str]) -> None:
        account = self._account
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, cwd="/",
            user=account.pw_uid if account else None, group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        )  # fmt: skip
        assert result.returncode == 0, f"{command[0]}: {result.stderr}"


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: an authority's certificate, a server's certificate and its key."""

    authority: Path
    server: Path
    key: Path


@contextmanager
def servers() -> Iterator[Servers]:
    """Yield a starter of servers; their logs are kept if the test fails."""
    for left in Path("/tmp").glob(f"{_PREFIX}*"):  # by tests that were killed
        if not Path("/proc", left.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        with kept_if_failed(folder), ExitStack() as stack:
            yield Servers(folder, stack)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
