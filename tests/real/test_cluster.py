"""The whole pipeline on a cluster of six nodes: its keys move, their node dies, nodes come back."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from rsky_pipeline.embedded import locations
from tests.clusters import Cluster
from tests.real.conftest import Tally
from tests.real.following import on_stores, wait_for_records
from tests.real.servers import USER, RedisServer, Servers, free_port
from tests.stores import redis_client

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
PRIMARIES, NODES = 3, 6


@dataclass(frozen=True, slots=True)
class Nodes:
    """A cluster, and its servers by their ports."""

    cluster: Cluster
    servers: Mapping[int, RedisServer]

    @property
    def url(self) -> str:
        """A URL with two of the nodes, of which one may be away."""
        first, second, *_ = self.servers.values()
        return first.url.replace(f":{first.port}", f":{first.port},127.0.0.1:{second.port}")


def started(real: Servers, kind: str) -> Nodes:
    files = real.certificates() if kind == "redis_with_tls" else None
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]
    if files is not None:
        options += ("--tls-cluster", "yes", "--tls-replication", "yes")
    found = [
        real.redis(
            *options, "--cluster-port", str(free_port()), password="secret/1", certificates=files,
            valkey=str(locations.valkey_program()) if kind == "valkey" else None,
        )
        for _ in range(NODES)
    ]  # fmt: skip
    servers = {server.port: server for server in found}
    cluster = Cluster([*servers], lambda port: redis_client(servers[port].url), "secret/1")
    cluster.form(PRIMARIES)
    return Nodes(cluster, servers)


@pytest.mark.parametrize("kind", ["redis_with_tls", "valkey"])
def test_a_cluster_fails_over_and_moves_the_keys(kind: str, real: Servers, tally: Tally) -> None:
    nodes = started(real, kind)
    cluster = nodes.cluster
    with on_stores(tally, nodes.url, real.postgres().url(USER)) as running:
        for _ in range(3):
            owner = cluster.owner()
            nodes.servers[owner].kill()
            tally.kills += 1
            running.wait_for(lambda owner=owner: cluster.owner() != owner)  # type: ignore[misc]
            tally.fail_overs += 1
            wait_for_records(running)
            nodes.servers[owner].start_again()
            cluster.wait_until_whole()
            other = next(port for port in cluster.primaries() if port != cluster.owner())
            cluster.move(other)
            wait_for_records(running)
