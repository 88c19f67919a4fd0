"""A PostgreSQL cluster that Patroni keeps: two nodes, an etcd, and an HAProxy that asks Patroni."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.real.servers import (
    ENDS_WITH_US,
    PASSWORD,
    POSTGRES_BIN,
    USER,
    PostgresServer,
    Server,
    Servers,
    free_port,
    program,
    wait_until,
)

# Patroni takes no shorter ones: how long a leader may be silent, and seconds between two looks.
TTL, LOOP_SECONDS, RETRY_SECONDS = 20, 2, 5
PROMOTION_SECONDS = 90.0


@dataclass(slots=True)
class Node(PostgresServer):
    """A machine with Patroni and the PostgreSQL that it runs; `kill` ends both at once."""

    name: str = ""
    api: int = 0

    def is_primary(self) -> bool:
        """Whether Patroni says that it has the leader's lock and runs as the primary."""
        return self._answers("primary")

    def is_replica(self) -> bool:
        """Whether Patroni says that it follows the primary closely."""
        return self._answers("replica?lag=16kB")

    def switch_over(self) -> None:
        """Have Patroni make the other node the primary, as for maintenance."""
        body = json.dumps({"leader": self.name}).encode()
        url = f"http://127.0.0.1:{self.api}/switchover"
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
            assert answer.status == 200

    def _answers(self, path: str) -> bool:
        try:
            url = f"http://127.0.0.1:{self.api}/{path}"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Cluster:
    """The two nodes, and the address at which HAProxy leads to the primary."""

    def __init__(self, real: Servers) -> None:
        self._real = real
        self._etcd = self._start_etcd()
        self.nodes = [self._start_node("one")]
        self.wait_for_primary(self.nodes[0])
        self.nodes.append(self._start_node("two"))
        self.wait_for_replica(self.nodes[1])
        first = self.nodes[0]
        first.execute(
            f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}' NOSUPERUSER NOCREATEDB", "postgres"
        )
        first.execute(f"CREATE DATABASE appview OWNER {USER}", "postgres")
        self.url = first.url(USER, port=self._start_haproxy().port)

    def primary(self) -> tuple[Node, Node]:
        """Return the node that is the primary, and the other one."""
        first, second = self.nodes
        return (first, second) if first.is_primary() else (second, first)

    def wait_for_primary(self, node: Node) -> None:
        """Return when a node is the primary."""
        wait_until(node.is_primary, f"{node.name} is not promoted", PROMOTION_SECONDS)

    def wait_for_replica(self, node: Node) -> None:
        """Return when a node follows the primary."""
        wait_until(node.is_replica, f"{node.name} does not follow", PROMOTION_SECONDS)

    def _start_etcd(self) -> Server:
        folder, port, peer = self._real.directory("etcd"), free_port(), free_port()
        own, other = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
        command = [
            program("etcd"), "--data-dir", str(folder), "--listen-client-urls", own,
            "--advertise-client-urls", own, "--listen-peer-urls", other,
            "--initial-advertise-peer-urls", other, "--initial-cluster", f"default={other}",
        ]  # fmt: skip
        return self._real.running(Server(port, self._real.launch(command, folder)))

    def _start_node(self, name: str) -> Node:
        folder = self._real.directory(name, for_postgres=True)
        port, api = free_port(), free_port()
        configuration = folder / "patroni.yml"
        configuration.write_text(json.dumps(self._configuration(name, folder, port, api)))
        configuration.chmod(0o644)
        # Its processes end together, as those of a machine: they have their own process namespace.
        # What changes the user also forgets which signal it wanted when its parent dies.
        command = [
            "unshare", "--pid", "--fork", "--mount-proc",
            "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
            *ENDS_WITH_US[1:], program("patroni"), str(configuration),
        ]  # fmt: skip
        node = Node(
            port, self._real.launch(command, folder), folder=folder / "data", name=name, api=api
        )
        self._real.at_end(node.kill)
        return node

    def _configuration(self, name: str, folder: Path, port: int, api: int) -> dict[str, object]:
        logins = {"superuser": "postgres", "replication": "replicator", "rewind": "rewinder"}
        return {
            "scope": "main", "name": name,
            "etcd3": {"host": f"127.0.0.1:{self._etcd.port}"},
            "restapi": {"listen": f"127.0.0.1:{api}", "connect_address": f"127.0.0.1:{api}"},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL, "loop_wait": LOOP_SECONDS, "retry_timeout": RETRY_SECONDS,
                    "postgresql": {
                        "use_pg_rewind": True, "use_slots": True,
                        "parameters": {"max_connections": 60},
                    },
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "data-checksums"],
                "pg_hba": [
                    "local all all trust", "host all postgres 127.0.0.1/32 trust",
                    "host all rewinder 127.0.0.1/32 trust",
                    "host replication replicator 127.0.0.1/32 trust",
                    "host all all 127.0.0.1/32 scram-sha-256",
                ],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{port}", "connect_address": f"127.0.0.1:{port}",
                "data_dir": str(folder / "data"), "bin_dir": str(POSTGRES_BIN[0]),
                "pgpass": str(folder / "pgpass"),
                "parameters": {"unix_socket_directories": str(folder)},
                "authentication": {
                    kind: {"username": user, "password": "of Patroni"}
                    for kind, user in logins.items()
                },
            },
        }  # fmt: skip

    def _start_haproxy(self) -> Server:
        port, folder = free_port(), self._real.directory("haproxy")
        lines = [
            "defaults", "  mode tcp", "  timeout connect 2s", "  timeout client 1h",
            "  timeout server 1h", "listen primary", f"  bind 127.0.0.1:{port}",
            "  option httpchk OPTIONS /primary", "  http-check expect status 200",
            "  default-server inter 1s fall 2 rise 1 on-marked-down shutdown-sessions",
            *(
                f"  server {node.name} 127.0.0.1:{node.port} check port {node.api}"
                for node in self.nodes
            ),
        ]  # fmt: skip
        (folder / "haproxy.cfg").write_text("\n".join(lines) + "\n")
        command = [program("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]
        return self._real.running(Server(port, self._real.launch(command, folder)))
