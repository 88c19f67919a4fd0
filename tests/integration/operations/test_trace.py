"""One record followed from its PDS through the stores, with the real servers at each stage."""

import json
from dataclasses import dataclass
from typing import Any

import trio
from click.testing import CliRunner

from rsky_pipeline.cli import main
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.demo.simulator.accounts import SimulatedAccount
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import now_text, read_entry
from rsky_pipeline.operations.diagnosis import Diagnosis, diagnose
from rsky_pipeline.operations.subjects import read_subject
from rsky_pipeline.operations.trace import Traced, trace
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.event import EVENT_FIELD, encode_record_event
from tests.integration.operations.entries import consumer, fill
from tests.integration.simulator.kit import Served, served
from tests.stores import execute

POST = "app.bsky.feed.post"


@dataclass(frozen=True)
class Place:
    """Everything a trace needs, and one post at a simulated PDS."""

    network: Served
    settings: Settings
    account: SimulatedAccount
    rkey: str

    @property
    def uri(self) -> str:
        return f"at://{self.account.did}/{POST}/{self.rkey}"

    def event(self, action: str = "create", rev: str | None = None) -> bytes:
        stored = self.account.repo.stored(f"{POST}/{self.rkey}")
        assert stored is not None
        record: Any = {"$type": POST, "text": "t", "createdAt": now_text()}
        return encode_record_event(
            action, seq=1, time=now_text(), did=self.account.did,  # type: ignore[arg-type]
            commit=str(self.account.repo.head), rev=rev or self.account.repo.rev,
            collection=POST, rkey=self.rkey, cid=str(stored.cid), record=record,
        )  # fmt: skip

    async def ask(self, subject: str | None = None) -> tuple[Traced, Diagnosis]:
        parsed = read_subject(subject or self.uri)
        found = await trio.to_thread.run_sync(trace, self.settings, parsed)
        return found, diagnose(found)

    def index(self, action: str = "create", rev: str | None = None) -> None:
        payload = self.event(action, rev)
        with Database.connect(self.settings.database_url or "", name="test") as database:
            reading = read_entry({EVENT_FIELD: payload}, registry.load())
            apply_batch(database, [reading], registry.load())


def _set_flag(place: Place, value: str) -> None:
    execute(
        place.settings.database_url or "", f'UPDATE bsky.post SET "violatesThreadGate" = {value}'
    )


def a_place(network: Served, redis: str, database: str, run_dir: Any) -> Place:
    account, path = next(
        (account, path)
        for account in network.world.accounts
        if account.born and account.active
        for path, _ in account.repo.items()
        if path.startswith(f"{POST}/")
    )
    settings = Settings(
        relay_hosts=(network.urls.relay,), plc_url=network.urls.plc, redis_url=redis,
        database_url=database, data_dir=run_dir, run_dir=run_dir, allow_private_hosts=True,
        ingester_metrics_port=0, indexer_metrics_port=0, backfiller_metrics_port=0,
    )  # fmt: skip
    return Place(network, settings, account, path.split("/")[1])


async def test_a_post_from_its_pds_to_the_database(
    store: Store, clean_redis: str, schema_database: str, tmp_path: Any
) -> None:
    async with served() as network:
        place = a_place(network, clean_redis, schema_database, tmp_path)
        # The seed's missing post: only its PDS has it.
        found, verdict = await place.ask()
        assert found.pds.present is True
        assert found.pds.rev == place.account.repo.rev
        assert verdict.state == "missing"

        fill(store, [place.event()])
        reader = consumer(store)
        _, verdict = await place.ask()
        assert verdict.state == "on_its_way"
        assert "firehose_group unread" in verdict.reasons[0]
        (delivery,) = reader.read_new(10, 0)
        _, verdict = await place.ask()
        assert "firehose_group pending with c for 0 s, delivered 1 times" in verdict.reasons[0]

        reader.dead_letter(delivery, reason="too_long", error="text", attempts=2)
        found, verdict = await place.ask()
        assert verdict.state == "dead_letter"
        assert found.redis.letters[0].attempts == 2

        place.index()
        found, verdict = await place.ask()
        assert verdict.state == "visible", verdict
        assert found.database.tables["post"] == 1
        assert found.database.tables["feed_item"] == 1


async def test_why_an_indexed_post_is_not_seen(
    store: Store, clean_redis: str, schema_database: str, tmp_path: Any
) -> None:
    async with served() as network:
        place = a_place(network, clean_redis, schema_database, tmp_path)
        place.index()
        did = place.account.did
        execute(schema_database, f"UPDATE bsky.actor SET \"upstreamStatus\" = 'deactivated' "
                f"WHERE did = '{did}'")  # fmt: skip
        _, verdict = await place.ask()
        assert (verdict.state, verdict.reasons) == ("hidden", ("the account is deactivated",))
        execute(schema_database, 'UPDATE bsky.actor SET "upstreamStatus" = NULL')
        execute(schema_database, "UPDATE bsky.record SET \"takedownRef\" = 'TAKEDOWN'")
        _, verdict = await place.ask()
        assert verdict.reasons == ("the record was taken down here (TAKEDOWN)",)
        _set_flag(place, "NULL")
        assert (await place.ask())[0].database.flags["violatesThreadGate"] is None
        _set_flag(place, "false")
        assert (await place.ask())[0].database.flags["violatesThreadGate"] is False
        place.index("delete", "3zzzzzzzzzz22")
        found, verdict = await place.ask()
        assert found.database.tombstone is not None
        assert "deleted at rev 3zzzzzzzzzz22" in verdict.reasons[0]
        other = f"at://{did}/{POST}/3l2222222222z"
        _, verdict = await place.ask(other)
        assert verdict.state == "not_there"
        found, verdict = await place.ask(did)
        assert found.database.actor is not None
        found, verdict = await place.ask("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa")
        assert (verdict.state, found.pds.state) == ("not_there", "IdentityNotFoundError")


async def test_the_search_is_bounded_and_says_so(
    store: Store, clean_redis: str, schema_database: str, tmp_path: Any
) -> None:
    async with served() as network:
        place = a_place(network, clean_redis, schema_database, tmp_path)
        fill(store, [place.event()])
        fill(store, [b"{}"] * 2_500)
        parsed = read_subject(place.uri)
        found = await trio.to_thread.run_sync(lambda: trace(place.settings, parsed, limit=1_200))
        assert not found.redis.entries
        assert not found.redis.complete
        found, verdict = await place.ask()
        assert found.redis.complete
        assert verdict.state == "on_its_way"

        arguments = ["trace", place.uri, "--json", "--config", "/dev/null"]
        for name in ("redis_url", "database_url", "plc_url", "data_dir", "run_dir"):
            arguments += ["--set", f"{name}={getattr(place.settings, name)}"]
        arguments += ["--set", "allow_private_hosts=true"]
        result = await trio.to_thread.run_sync(CliRunner().invoke, main, arguments)
        assert result.exit_code == 6, result.output
        assert json.loads(result.stdout)["verdict"]["state"] == "on_its_way"
        plain = [item for item in arguments if item != "--json"]
        result = await trio.to_thread.run_sync(CliRunner().invoke, main, plain)
        assert "on_its_way: a create of rev" in result.stdout
        for away in ("redis_url=redis://127.0.0.1:1", "database_url=postgresql://127.0.0.1:1/x"):
            cut = [item for item in arguments if not item.startswith(away.partition("=")[0])]
            cut = [item for item, after in zip(cut, [*cut[1:], ""], strict=True)
                   if (item, after) != ("--set", "--set")]  # fmt: skip
            result = await trio.to_thread.run_sync(CliRunner().invoke, main, [*cut, "--set", away])
            assert result.exit_code == 69, result.output
        result = await trio.to_thread.run_sync(CliRunner().invoke, main, ["trace", "x"])
        assert result.exit_code == 2
