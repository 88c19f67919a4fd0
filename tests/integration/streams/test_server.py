"""Settings of a Redis that do not fit: in `config check`, at the start and in `verify`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rsky_pipeline.cli.run import prepare_stores
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.demo.processes import clean_environment
from rsky_pipeline.embedded import valkey
from rsky_pipeline.operations.verification.outside import check_redis_settings
from rsky_pipeline.streams.server import check
from tests import stores
from tests.clusters import running_cluster
from tests.integration.streams.support import UnreliableProxy


@contextmanager
def server(*options: str) -> Iterator[str]:
    with stores.scratch_directory() as folder:
        program = valkey.prepare(stores.scratch_settings(folder), options)
        with stores.running(program):
            yield program.url


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), set()),
        (("--maxmemory-policy", "allkeys-lru"), {("error", "maxmemory-policy", "allkeys-lru")}),
        (("--appendonly", "no", "--save", ""), {("error", "appendonly", "no")}),
        (("--appendonly", "no", "--save", "3600 1"), {("advice", "appendonly", "no")}),
        (
            ("--appendonly", "no", "--rename-command", "CONFIG", ""),
            {("advice", "appendonly", "no")},  # as managed services are, which do not tell
        ),
        (("--replicaof", "127.0.0.1 1"), {("error", "role", "replica")}),
    ],
)
def test_settings(options: tuple[str, ...], found: set[tuple[str, str, str]]) -> None:
    with server(*options) as url:
        assert {(item.severity, item.name, item.found) for item in check(url)} == found
        verdict = next(iter(check_redis_settings(Settings(redis_url=url))))
    elsewhere = {"maxmemory-policy"}  # a check of its own
    bad = [name for severity, name, _ in found if severity == "error" and name not in elsewhere]
    assert verdict.status == ("fail" if bad else "pass")


def test_a_node_of_a_cluster_without_a_replica_is_named() -> None:
    with running_cluster(1) as cluster:
        url = f"redis://127.0.0.1:{cluster.owner()}"
        name = "replicas of the cluster's node"
        assert [(item.severity, item.name) for item in check(url)] == [("advice", name)]
        prepare_stores(Settings(redis_url=url), False)


def test_config_check_asks_the_stores(clean_redis: str, clean_database: str) -> None:
    code, answer = config_check(redis_url=clean_redis, database_url=clean_database)
    assert (code, answer["problems"]) == (0, [])
    assert all("max_wal_size" in remark or "checkpoint" in remark for remark in answer["remarks"])
    with stores.redis_client(clean_redis) as client:
        client.config_set("maxmemory-policy", "volatile-ttl")
        try:
            code, answer = config_check(redis_url=clean_redis, database_url=clean_database)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert code == 2
    assert "maxmemory-policy is volatile-ttl, and should be noeviction" in answer["problems"][0]


def test_a_store_that_does_not_answer_is_a_remark(clean_redis: str) -> None:
    with UnreliableProxy(clean_redis) as proxy:
        url = proxy.url
    code, answer = config_check(redis_url=url)
    assert (code, answer["problems"]) == (0, [])
    assert "redis_url: the server could not be checked" in answer["remarks"][0]
    assert prepare_stores(Settings(redis_url=url), False) is None


def config_check(**settings: str) -> tuple[int, dict[str, Any]]:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    result = subprocess.run(
        [sys.executable, "-m", "rsky_pipeline", "config", "check", "--json", *flags],
        capture_output=True, text=True, check=False, env=clean_environment(),
    )  # fmt: skip
    return result.returncode, json.loads(result.stdout)
