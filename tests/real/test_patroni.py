"""The whole pipeline on a PostgreSQL that Patroni keeps, whose nodes die under load."""

import pytest

from tests.real.conftest import Tally
from tests.real.following import on_stores, wait_for_records
from tests.real.patroni import Cluster
from tests.real.servers import Servers

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


def test_patroni_fails_over(real: Servers, tally: Tally) -> None:
    cluster = Cluster(real)
    with on_stores(tally, real.redis().url, cluster.url) as running:
        for _ in cluster.nodes:
            primary, standby = cluster.primary()
            primary.kill()
            tally.kills += 1
            cluster.wait_for_primary(standby)
            tally.fail_overs += 1
            wait_for_records(running)
            primary.process = primary.launch()
            cluster.wait_for_replica(primary)
        primary, standby = cluster.primary()
        primary.switch_over()
        cluster.wait_for_primary(standby)
        tally.fail_overs += 1
        wait_for_records(running)
