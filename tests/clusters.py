"""A cluster of servers on free ports of the loopback interface."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from redis import Redis, RedisError

from rsky_pipeline.embedded import valkey
from rsky_pipeline.streams.commands import SLOT
from tests import stores
from tests.real.servers import free_port

SLOTS = 16_384
FORMED_SECONDS = 60.0


@contextmanager
def running_node(*options: str) -> Iterator[int]:
    """Run the wheel's server as a node of a cluster that has no slots yet; yields its port."""
    port = free_port()
    # By default the port of the cluster's bus is 10,000 higher, which may be none.
    words = ("--port", str(port), "--cluster-port", str(free_port()), "--cluster-enabled", "yes")
    with (
        stores.scratch_directory() as folder,
        stores.running(valkey.prepare(stores.scratch_settings(folder), (*words, *options))),
    ):
        yield port


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes by their ports; the first ones were made the primaries, in the order of the slots."""

    ports: Sequence[int]
    client: Callable[[int], "Redis"]  # of the node on a port
    password: str = ""

    def form(self, primaries: int) -> None:
        """Divide the slots among the first nodes, and give each of the others one to replicate."""
        share = -(-SLOTS // primaries)
        for number, port in enumerate(self.ports[:primaries]):
            until = min(SLOTS, (number + 1) * share) - 1
            self.command(port, "CLUSTER", "ADDSLOTSRANGE", number * share, until)
            self.command(port, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        bus = {port: self._bus_port(port) for port in self.ports}
        for port in self.ports[1:]:
            self.command(self.ports[0], "CLUSTER", "MEET", "127.0.0.1", port, bus[port])
        self._wait(lambda: all(self._known(port) == len(self.ports) for port in self.ports))
        for number, port in enumerate(self.ports[primaries:]):
            primary = self.id_of(self.ports[number % primaries])
            self._wait(lambda port=port, primary=primary: self._follows(port, primary))  # type: ignore[misc]
        self.wait_until_whole()

    def command(self, port: int, *words: str | int) -> object:
        """Run a command on one node."""
        with self.client(port) as node:
            return node.execute_command(*words)

    def id_of(self, port: int) -> str:
        """Return the name of a node among the others."""
        found = self.command(port, "CLUSTER", "MYID")
        return found.decode() if isinstance(found, bytes) else str(found)

    def owner(self) -> int:
        """Return the port of the primary that holds the pipeline's keys, as most nodes see it."""
        seen = [found for port in self.ports if (found := self._owner_by(port))]
        return max(set(seen), key=seen.count)

    def primaries(self) -> list[int]:
        """Return the ports of the nodes that hold slots, as the first that answers sees it."""
        for port in self.ports:
            with suppress(RedisError, OSError), self.client(port) as node:
                rows = _raw(node, "CLUSTER", "SLOTS")
                return sorted({int(primary[1]) for _, _, primary, *_ in rows})
        return []

    def wait_until_whole(self, without: Sequence[int] = ()) -> None:
        """Return when all nodes but those that are away take commands."""
        here = [port for port in self.ports if port not in without]
        self._wait(lambda: all(self._is_ok(port) for port in here))

    def move(self, target: int) -> None:
        """Move the slot of the pipeline's keys to another primary, key by key, as it runs."""
        source = self.owner()
        ids = {port: self.id_of(port) for port in (source, target)}
        self.command(target, "CLUSTER", "SETSLOT", SLOT, "IMPORTING", ids[source])
        self.command(source, "CLUSTER", "SETSLOT", SLOT, "MIGRATING", ids[target])
        login = ("AUTH", self.password) if self.password else ()
        with self.client(source) as node:
            while keys := _raw(node, "CLUSTER", "GETKEYSINSLOT", SLOT, 5):
                _raw(node, "MIGRATE", "127.0.0.1", target, "", 0, 60_000, *login, "KEYS", *keys)
        for port in (target, source):
            self.command(port, "CLUSTER", "SETSLOT", SLOT, "NODE", ids[target])
        self._wait(lambda: self.owner() == target)

    def _owner_by(self, port: int) -> int:
        with suppress(RedisError, OSError), self.client(port) as node:
            for first, last, primary, *_ in _raw(node, "CLUSTER", "SLOTS"):
                if first <= SLOT <= last:
                    return int(primary[1])
        return 0

    def _bus_port(self, port: int) -> int:
        with self.client(port) as node:
            return int(node.config_get("cluster-port")["cluster-port"])

    def _known(self, port: int) -> int:
        return int(self._info(port).get("cluster_known_nodes", 0))

    def _follows(self, port: int, primary: str) -> bool:
        with suppress(RedisError):
            self.command(port, "CLUSTER", "REPLICATE", primary)
            return True
        return False

    def _is_ok(self, port: int) -> bool:
        return self._info(port).get("cluster_state") == "ok"

    def _info(self, port: int) -> dict[str, str]:
        with suppress(RedisError, OSError), self.client(port) as node:
            text = _raw(node, "CLUSTER", "INFO").decode()
            return dict(line.split(":") for line in text.split())
        return {}

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + FORMED_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "the nodes do not agree"
            time.sleep(0.05)


def _raw(node: "Redis", *words: str | int) -> Any:
    node.response_callbacks.clear()
    return node.execute_command(*words)  # type: ignore[no-untyped-call]


@contextmanager
def running_cluster(primaries: int, replicas: int = 0, *options: str) -> Iterator[Cluster]:
    """Run a cluster of the wheel's servers whose nodes give each other up after a second."""
    with ExitStack() as stack:
        quick = ("--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0", *options)
        nodes = [stack.enter_context(running_node(*quick)) for _ in range(primaries + replicas)]
        cluster = Cluster(nodes, lambda port: stores.redis_client(f"redis://127.0.0.1:{port}"))
        cluster.form(primaries)
        yield cluster
