"""The pipeline on surroundings of one's own, which must be all right before and after."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rsky_pipeline.configuration.sources import PREFIX
from tests.pipelines import Place, Running, pipeline_at
from tests.real.conftest import Tally
from tests.real.servers import ENDS_WITH_US

WORKERS = {"ingester-1", "backfiller-1", "indexer-1"}
NETWORK = ("--rate=200", "--history=20", "--accounts=120")
WAIT_SECONDS = 240.0
ENOUGH = 300  # records between two disturbances


@contextmanager
def following(
    tally: Tally, settings: Mapping[str, str], *, options: Sequence[str] = (),
    stores: Collection[str] = (), place: Place | None = None,
) -> Iterator[Running]:  # fmt: skip
    """Run the pipeline; `stores` are the processes of stores that it starts itself.

    At the end the database must be what the network published, and `verify` must pass, without a
    hand.
    """
    place = place or Place()
    place = replace(
        place,
        pipeline=(*ENDS_WITH_US, *place.pipeline),
        simulator=(*ENDS_WITH_US, *place.simulator),
    )
    changes = {f"{PREFIX}{name}": value for name, value in settings.items()}
    with pipeline_at(place, (*NETWORK, *options), changes) as running:
        processes = WORKERS | set(stores)
        running.wait_for(lambda: running.pids().keys() == processes, WAIT_SECONDS)
        wait_for_records(running)
        yield running
        ends_well(running, processes)
        tally.events += running.simulation.control.progress().seq


@contextmanager
def on_stores(tally: Tally, redis_url: str, database_url: str) -> Iterator[Running]:
    """Run the pipeline on a Redis and a PostgreSQL that are there already."""
    with following(tally, {"REDIS_URL": redis_url, "DATABASE_URL": database_url}) as running:
        yield running


def wait_for_records(running: Running, more: int = ENOUGH) -> None:
    """Return when so many records have come in since now."""
    before = running.observer.rows().get("record", 0)
    running.wait_for(
        lambda: running.observer.rows().get("record", 0) >= before + more, WAIT_SECONDS
    )


def ends_well(running: Running, processes: set[str]) -> None:
    """Check that nothing is missing, and that the pipeline is healthy without a hand."""
    wait_for_records(running)
    running.simulation.control.stop()
    running.wait_until_indexed(WAIT_SECONDS)
    assert running.differences() == []
    assert running.observer.dead_letters() == {}
    assert running.pids().keys() == processes
    running.command("verify", "--window", "5s", "--quiet")
