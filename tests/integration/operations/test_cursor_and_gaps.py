"""`rsky-pipeline cursor` and `gaps` as an operator uses them, on a simulated network."""

import json
from functools import partial
from typing import Any

import trio
from click.testing import CliRunner, Result

from rsky_pipeline.cli import main
from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.demo.simulator.clock import Clock
from rsky_pipeline.demo.simulator.subscription import StreamRules
from rsky_pipeline.demo.simulator.world import World
from tests.integration.ingester.worker import entries, eventually, ingesting, value
from tests.integration.simulator.kit import Served, served


class Operator:
    """Runs commands on the stores and the network of a test."""

    def __init__(self, redis_url: str, database_url: str, relay: str) -> None:
        self.flags = ("--redis-url", redis_url, "--database-url", database_url, "--relay", relay,
                      "--set", "allow_private_hosts=true")  # fmt: skip

    async def run(self, *arguments: str) -> Result:
        call = partial(CliRunner().invoke, main, [*arguments, *self.flags])
        return await trio.to_thread.run_sync(call)

    async def json(self, *arguments: str) -> Any:
        return json.loads((await self.run(*arguments, "--json")).stdout)


def publish(network: Served, events: int) -> int:
    """Publish some events; return the number of the last."""
    while events > 0:
        events -= network.network.advance(events)
    return network.world.seq


async def test_a_gap_is_listed_and_repaired_and_a_cursor_is_moved(
    clean_redis: str, schema_database: str
) -> None:
    world = World(5, 40, Clock())
    world.add_history(5)
    async with served(world, StreamRules(keep_events=60)) as network:
        relay = network.urls.relay
        host = parse_endpoint(relay).key
        key = f"firehose_live:cursor:{host}"
        operator = Operator(clean_redis, schema_database, relay)
        settings: dict[str, Any] = {"database_url": schema_database, "repair_gaps": False}
        for events in (200, 700):  # the second time, most is gone from the relay's window
            last = publish(network, events)
            async with ingesting(clean_redis, relay, **settings):
                await eventually(lambda last=last: value(clean_redis, key) == str(last))  # type: ignore[misc]

        [gap] = (await operator.json("gaps", "list"))["gaps"]
        assert (gap["kind"], gap["status"], gap["host"]) == ("outdated_cursor", "open", host)
        done = await operator.run("gaps", "repair")
        assert done.exit_code == 0, done.output
        assert "repaired" in done.output
        [gap] = (await operator.json("gaps", "list"))["gaps"]
        jobs = [json.loads(entry[b"repo"]) for entry in entries(clean_redis, "repo_backfill_high")]
        swept = {job["did"] for job in jobs if job["reason"] == "gap"}
        listed = {status.did for status in world.statuses() if status.active and status.rev}
        assert gap["repos_listed"] == len(listed)
        assert gap["repos_queued"] == len(swept) > 0
        # Every repo that the list has and we do not know at that rev is queued, by whoever saw it.
        told = [json.loads(entry[b"event"]) for entry in entries(clean_redis, "firehose_live")]
        newest: dict[str, str] = {}
        for event in told:
            if "rev" in event:
                newest[event["did"]] = max(event["rev"], newest.get(event["did"], ""))
        behind = {
            status.did for status in world.statuses()
            if status.did in listed and status.rev > newest.get(status.did, "")
        }  # fmt: skip
        assert swept <= listed
        assert {did for did in behind if world.by_did[did].historic} - {
            job["did"] for job in jobs
        } == set()
        again = await operator.run("gaps", "repair")
        assert (again.exit_code, "no gap is open" in again.output) == (0, True)
        unknown = await operator.run("gaps", "repair", "1-0")
        assert (unknown.exit_code, "gaps list" in unknown.output) == (2, True)

        [shown] = [
            item for item in (await operator.json("cursor", "list"))["cursors"]
            if item["stream"] == "firehose_live"
        ]  # fmt: skip
        assert (shown["host"], shown["seq"], shown["configured"]) == (host, last, True)
        for arguments, code in (
            (("set", host, str(last + 500)), 1), (("reset", host), 1),
            (("set", "typo.example", "5"), 1), (("set", host, str(last - 5)), 0),
            (("reset", host, "--force"), 0), (("set", "later.example", "7", "--force"), 0),
            (("reset", "later.example"), 0),
        ):  # fmt: skip
            done = await operator.run("cursor", *arguments)
            assert done.exit_code == code, (arguments, done.output)
            assert len(done.output.splitlines()) == 1
        assert value(clean_redis, key) is None
        # What a reset may have skipped is a gap of its own; of a host that nobody reads it is none.
        kinds = [
            (gap["kind"], gap["host"]) for gap in (await operator.json("gaps", "list"))["gaps"]
        ]
        assert kinds == [("cursor_set", host), ("outdated_cursor", host)]
