"""An operator's host: stores of its own over TLS, with accounts of few rights, and our network."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rsky_pipeline.cli.simulate import settings as of_network
from rsky_pipeline.demo.processes import Simulation
from rsky_pipeline.demo.simulator.compare import compare
from rsky_pipeline.demo.simulator.hosts import Urls
from rsky_pipeline.development.documents import ROOT
from tests.evidence import kept_if_failed
from tests.host import root as debian
from tests.host.container import Container, booted, overlay, own_network
from tests.real.servers import ENDS_WITH_US

PROGRAM = "/usr/local/bin/rsky-pipeline"
NETWORK = ("--port=2470", "--rate=40", "--accounts=60", "--history=15", "--calm")
ROLES = ("ingester", "backfiller", "indexer")
PASSWORD = "w%th:odd/chars@&"  # of both stores: what a password manager makes
ADMIN = "adminpassword"
TLS = "/etc/rsky-tls"
REDIS_CLI = f"redis-cli --tls --cacert {TLS}/ca.pem --user admin --pass {ADMIN} --no-auth-warning"
# Few rights: keys of any name, and no command that manages the server or reads other clients' data.
ACL = (
    "~* resetchannels -@all +@read +@write +@stream +@scripting +@connection +@transaction +time "
    "-@dangerous +info +config|get +client|list +acl|dryrun"
)
_PREFIX = "rsky-host-"
DISK = "2g"  # of PostgreSQL


@dataclass(slots=True)
class Host:
    """A container with stores, and the network that it follows."""

    container: Container
    simulation: Simulation

    @property
    def database_url(self) -> str:
        """The URL of the database as a URL of the pipeline's role, for the test's own look."""
        return (
            f"postgresql://rsky:{quote(PASSWORD, safe='')}@127.0.0.1:5432/bsky?sslmode=verify-full"
            f"&sslrootcert={self.container.root}{TLS}/ca.pem"
        )

    def command(self, *words: str, code: int = 0, seconds: float = 300) -> str:
        """Run a command of the program as root; return its output."""
        result = self.container.run(PROGRAM, *words, seconds=seconds)
        text = f"{' '.join(words)} -> {result.returncode}: {result.stdout}{result.stderr}"
        assert result.returncode == code, f"{text}\n{self.container.journal(150)}"
        return result.stdout

    def document(self, *words: str, code: int = 0, seconds: float = 300) -> Any:
        """Run a command with --json and return its document."""
        return json.loads(self.command(*words, "--json", code=code, seconds=seconds))

    def page(
        self,
        lines: Sequence[str],
        changes: Mapping[str, str] | None = None,
        codes: Mapping[str, int] | None = None,
    ) -> dict[str, str]:
        """Run lines of a page one by one; return the output of each.

        `changes` puts this host's values in the place of the page's examples. `codes` has exit
        codes other than 0, by the line as it stands in the page.
        """
        found = {}
        for line in lines:
            changed = re.sub(r"\bredis-cli\b", REDIS_CLI, line)
            for old, new in (changes or {}).items():
                changed = changed.replace(old, new)
            found[line] = self.container.shell(changed, code=(codes or {}).get(line, 0))
        return found

    def sql(self, query: str, database: str = "bsky") -> str:
        """Run a query with all rights; return the bare values."""
        words = ("runuser", "-u", "postgres", "--", "psql", "-v", "ON_ERROR_STOP=1", "-XAt", "-d")
        result = self.container.run(*words, database, "-c", query)
        assert result.returncode == 0, f"{query}: {result.stderr}"
        return result.stdout.strip()

    def records(self) -> int:
        """Return how many records there are."""
        return int(self.sql("SELECT count(*) FROM bsky.record"))

    def wait_for_records(self, more: int = 100) -> None:
        """Return when so many records have come in since now."""
        before = self.records()
        self.container.wait_for(lambda: self.records() >= before + more, "records come in")

    def wait_until_well(self, seconds: float = 150.0) -> None:
        """Return when `verify` passes, without a hand."""
        self.container.wait_for(
            lambda: self.container.run(PROGRAM, "verify", "--window", "3s").returncode == 0,
            f"well: {self.container.run(PROGRAM, 'verify', '--window', '3s', '--quiet').stdout}",
            seconds,
        )

    def differences(self) -> list[Any]:
        """Compare the database with what was published; return the tables that differ."""
        truth = self.simulation.control.truth(handles=True)
        return [one for one in compare(self.database_url, "bsky", truth) if one.differences]


@contextmanager
def operators_host() -> Iterator[Host]:
    """Boot a Debian whose stores are set up; nothing of the pipeline is installed yet."""
    lower = debian.ready(lambda _: None)
    _remove_leftovers()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(kept_if_failed(folder))
        shared = folder / "shared"
        shared.mkdir()
        shared.chmod(0o755)
        stack.enter_context(own_network())
        root = stack.enter_context(overlay(lower, folder))
        stack.enter_context(disk_of_postgres(lower, root))
        simulation = Simulation(shared, NETWORK, wrapper=ENDS_WITH_US)
        stack.callback(simulation.process.end)
        container = stack.enter_context(booted(root, shared))
        host = Host(container, simulation)
        set_up_stores(host)
        try:
            yield host
        finally:
            host.simulation.process.end()  # it may be another one by now


def _remove_leftovers() -> None:
    """Remove the hosts of tests that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        if not Path("/proc", left.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            umount = ["umount", "--lazy", "--recursive", str(left / "root")]
            subprocess.run(umount, check=False, stderr=subprocess.DEVNULL)
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def disk_of_postgres(lower: Path, root: Path) -> Iterator[None]:
    """Give PostgreSQL a disk of its own, which can be filled; it goes with the root."""
    place = "var/lib/postgresql"
    options = f"size={DISK},mode=0755"
    mount = ["mount", "-t", "tmpfs", "-o", options, "rsky-host", str(root / place)]
    subprocess.run(mount, check=True)
    subprocess.run(["cp", "-a", f"{lower / place}/.", str(root / place)], check=True)
    yield


def set_up_stores(host: Host) -> None:
    """Set both stores up as docs/stores.md recommends, with a certificate of one's own."""
    container = host.container
    container.shell(f"""install -d -m 755 {TLS}; cd {TLS}
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=we
        openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost
        echo subjectAltName=DNS:localhost,IP:127.0.0.1 > names
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \\
            -extfile names -out server.pem
        install -m 640 -o root -g postgres server.key postgres.key
        install -m 640 -o root -g redis server.key redis.key""")
    write_redis(host)
    write_postgres(host)


def recommended(store: str) -> str:
    """Return the settings of a store that docs/stores.md recommends."""
    text = (ROOT / "docs" / "stores.md").read_text()
    found = re.search(rf"```{store}\n(.*?)```", text, re.DOTALL)
    assert found is not None, store
    return found[1]


def write_redis(host: Host) -> None:
    """Set Redis up: TLS alone, one account for the operator and one for the pipeline."""
    lines = [
        recommended("redis").replace("maxmemory 8gb", "maxmemory 512mb"), "port 0", "tls-port 6379",
        f"tls-cert-file {TLS}/server.pem", f"tls-key-file {TLS}/redis.key",
        f"tls-ca-cert-file {TLS}/ca.pem", "tls-auth-clients no",
        "user default off ~* &* +@all", f"user admin on >{ADMIN} ~* &* +@all",
        f'user rsky on ">{PASSWORD}" {ACL}',
    ]  # fmt: skip
    path = host.container.root / "etc/redis/redis.conf"
    text = path.read_text()
    for each in ("appendonly ", "port ", "bind "):
        text = re.sub(rf"^{each}.*$", "", text, flags=re.MULTILINE)
    path.write_text(f"{text}\nbind 127.0.0.1\n" + "\n".join(lines) + "\n")
    host.container.shell("systemctl restart redis-server")
    host.container.shell(f"{REDIS_CLI} PING")


def write_postgres(host: Host) -> None:
    """Set PostgreSQL up: TLS alone, for a role and a database that are not there yet."""
    folder = host.container.root / "etc/postgresql/15/main"
    (folder / "conf.d/rsky.conf").write_text(
        recommended("postgresql").replace("max_wal_size = 20GB", "max_wal_size = 256MB")
        + f"ssl = on\nssl_cert_file = '{TLS}/server.pem'\nssl_key_file = '{TLS}/postgres.key'\n"
    )
    (folder / "pg_hba.conf").write_text(
        "local all postgres peer\nlocal replication postgres peer\n"
        "hostssl bsky rsky 127.0.0.1/32 scram-sha-256\n"
    )
    host.container.shell("systemctl restart postgresql@15-main")


def write_settings(host: Host) -> None:
    """Write the configuration of the units: the network into the file, passwords beside it."""
    urls = host.simulation.urls
    network = of_network(Urls(urls["relay"], urls["pds"], urls["plc"], urls["labeler"]))
    toml = host.container.root / "etc/rsky-pipeline/rsky-pipeline.toml"
    text = toml.read_text()
    if "plc_url" in text:
        return
    for name in ("relay_hosts", "labeler_hosts", "initial_cursor", "redis_url", "database_url"):
        text = re.sub(rf"^{name} = .*$", "", text, flags=re.MULTILINE)
    for name, value in network.items():
        shown = (
            value if value == "true" else json.dumps([value] if name.endswith("_hosts") else value)
        )
        text += f"{name} = {shown}\n"
    text += "resync_pause_seconds = 5\n"
    toml.write_text(text)
    password = quote(PASSWORD, safe="")
    lines = {
        "RSKY_PIPELINE_REDIS_URL":
            f"rediss://rsky:{password}@127.0.0.1:6379/0?ssl_ca_certs={TLS}/ca.pem",
        "RSKY_PIPELINE_DATABASE_URL":
            f"postgresql://rsky:{password}@127.0.0.1:5432/bsky?sslmode=verify-full"
            f"&sslrootcert={TLS}/ca.pem",
    }  # fmt: skip
    environment = host.container.root / "etc/rsky-pipeline/environment"
    environment.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
