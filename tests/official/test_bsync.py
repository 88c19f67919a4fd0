"""What becomes of bsync: killed, with another key, late ids, another database. Rows stay right."""

import json
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rsky_pipeline.embedded.locations import run_directory
from rsky_pipeline.streams.bsync import BSYNC_LOGS
from rsky_pipeline.supervisor import client
from tests import leftovers, stores
from tests.official.appview import BSYNC_KEY, AppView, start_bsync
from tests.official.installation import Installation
from tests.official.network import Network, Process, free_port, official_network, wait_until
from tests.official.people import People
from tests.official.pipeline import Following, following
from tests.official.private import PrivateLife
from tests.official.rows import PRIVATE
from tests.official.world import reading

pytestmark = [pytest.mark.official, pytest.mark.timeout(1_800)]
ACCOUNTS = 8
PUBLIC_ACTS = 60
PRIVATE_ACTS = 40  # a scenario
SEED = 29
SCHEMA = "reader"  # of the official reader
KEYS = ("first-own-key", "second-own-key")  # of the pipeline, beside the AppView's
SECONDS = 120.0
_MUTE = "app.bsky.graph.muteActor"

Place = tuple[str, str]  # database and schema


@dataclass
class Town:
    """Some accounts, an AppView over our rows, bsync, and two who read it."""

    network: Network
    people: People
    live: Following
    key_file: Path
    port: int
    schemas: list[str] = field(default_factory=lambda: ["bsync"])
    bsync: Process | None = None
    reader: Process | None = None
    appview: AppView | None = None
    life: PrivateLife | None = None

    @property
    def places(self) -> tuple[Place, Place]:
        """Where the official rows are, and where ours are."""
        return (self.network.database_url, SCHEMA), (self.live.url, self.live.schema)

    def start_bsync(self, *keys: str) -> None:
        """Start bsync on the newest of its databases, with these keys."""
        assert self.bsync is None
        self.bsync = start_bsync(
            self.network, self.schemas[-1], BSYNC_PORT=str(self.port),
            BSYNC_API_KEYS=",".join((BSYNC_KEY, *keys)),
        )  # fmt: skip

    def end_bsync(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End bsync by a signal."""
        assert self.bsync is not None
        self.bsync.process.send_signal(number)
        self.network.end(self.bsync)
        self.bsync = None

    def restart_reader(self) -> None:
        """Let the official reader begin again with the first operation."""
        if self.reader is not None:
            self.network.end(self.reader)
        self.reader = self.network.service(
            "reader", databaseUrl=self.network.database_url, schema=SCHEMA,
            bsync=reading(f"http://127.0.0.1:{self.port}"),
        )  # fmt: skip

    def live_privately(self, acts: int = PRIVATE_ACTS) -> None:
        """Let people do things through the AppView."""
        assert self.life is not None
        for _ in range(acts):
            self.life.act()

    def mute(self, number: int, subject: int) -> None:
        """Let one account mute another one."""
        assert self.life is not None
        everybody = self.people.everybody
        self.life.write(everybody[number], _MUTE, {"actor": everybody[subject].did})

    def log(self, table: str) -> list[int]:
        """Return the ids of a log of bsync that are visible."""
        with psycopg.connect(self.network.database_url) as connection:
            query = f"SELECT id FROM {self.schemas[-1]}.{table} ORDER BY id"
            return [row[0] for row in connection.execute(query)]

    def differences(self) -> dict[str, tuple[Counter[str], Counter[str]]]:
        """Return the rows that only one has, by table: officially, ours."""
        found = {}
        for table in (*PRIVATE, "post_agg"):
            official, ours = (bsync_rows(place, table) for place in self.places)
            if official != ours:
                found[table] = official - ours, ours - official
        return found

    def agree(self) -> None:
        """Return when both have applied everything."""
        assert self.life is not None
        wait_until(lambda: not self.differences(), lambda: str(self.differences()), SECONDS)

    def findings(self) -> dict[str, str]:
        """Return the figures of what the ingester finds, by rule."""
        [supervisor] = client.find(run_directory(self.live.settings))
        return {
            each["kind"]: each["figure"]
            for process in supervisor.status["processes"] if process["role"] == "ingester"
            for each in process["findings"]
        }  # fmt: skip


def bsync_rows(place: Place, table: str) -> Counter[str]:
    """Return the rows that operations of bsync make, without the times of whoever wrote them."""
    query = f"SELECT row_to_json(t) FROM {place[1]}.{table} t"
    if table == "post_agg":
        query = f"""SELECT json_build_object('uri', uri, 'bookmarks', "bookmarkCount")
            FROM {place[1]}.post_agg WHERE "bookmarkCount" > 0"""
    with psycopg.connect(place[0]) as connection:
        found = connection.execute(query).fetchall()
    hidden = PRIVATE.get(table, ())
    return Counter(
        json.dumps({name: value for name, value in row.items() if name not in hidden},
                   sort_keys=True) for (row,) in found
    )  # fmt: skip


@pytest.fixture(scope="module")
def town(installation: Installation, database_server: str) -> Iterator[Town]:
    """Everything, and people who have lived a little."""
    with ExitStack() as stack:
        database = stack.enter_context(stores.fresh_database(database_server))
        folder = stack.enter_context(stores.scratch_directory())
        stack.enter_context(leftovers.ended_with_us(folder))
        network = stack.enter_context(official_network(installation, folder, database))
        key_file, port = folder / "key", free_port()
        key_file.write_text(KEYS[0])
        live = stack.enter_context(following(
            network, folder / "live", BSYNC_URL=f"http://127.0.0.1:{port}",
            BSYNC_KEY_FILE=str(key_file), ENUMERATE_REPOS="false", INITIAL_CURSOR="oldest",
        ))  # fmt: skip
        live.command("db", "init", "--appview", installation.release)
        found = Town(network, People(network, SEED), live, key_file, port)
        found.start_bsync(KEYS[0])
        found.restart_reader()
        for _ in range(ACCOUNTS):
            found.people.join(network.pdses[0])
        for _ in range(PUBLIC_ACTS):
            found.people.act()
        live.wait()
        url = live.command("config", "url").strip()
        found.appview = AppView.start(network, url, live.schema, f"http://127.0.0.1:{port}")
        found.life = PrivateLife(found.people, found.appview, random.Random(SEED))
        found.live_privately()
        found.agree()
        yield found


def test_a_killed_bsync(town: Town) -> None:
    """Who writes meanwhile gets an error; both readers go on by themselves."""
    assert town.life is not None
    for _ in range(2):
        town.live_privately()
        town.end_bsync(signal.SIGKILL)
        town.live_privately(10)
        town.start_bsync(KEYS[0])
    town.live_privately()
    town.agree()
    assert any(each.endswith(" 500") for each in town.life.refused)


@contextmanager
def held(town: Town, statement: str, values: tuple[Any, ...]) -> Iterator[None]:
    """Hold a transaction of bsync's database open, with one statement in it."""
    with psycopg.connect(town.network.database_url) as connection:
        connection.execute(statement, values)
        yield
        connection.commit()


def test_an_id_that_becomes_visible_late(town: Town, figures: dict[str, Any]) -> None:
    """A commit of bsync is held open while later operations are read."""
    people, schema = [each.did for each in town.people.everybody], town.schemas[-1]
    town.live_privately(10)
    town.agree()
    subject = next(number for number in range(1, ACCOUNTS) if not _mutes(town, 0, number))
    last = max(town.log("mute_op"))
    # bsync's own transaction has taken its id, and waits for the row of the item.
    item = f"""INSERT INTO {schema}.mute_item ("actorDid", subject, "fromId") VALUES (%s, %s, 0)
        ON CONFLICT ("actorDid", subject) DO UPDATE SET "fromId" = 0"""
    with held(town, item, (people[0], people[subject])):
        waiting = threading.Thread(target=town.mute, args=(0, subject))
        waiting.start()
        wait_until(lambda: _is_taken(town, last + 1), lambda: "bsync does not wait", SECONDS)
        for other in (3, 4, 5):
            town.mute(2, other)
        wait_until(lambda: _read(town, "mute", last + 4), lambda: "not read", SECONDS)
        assert last + 1 not in town.log("mute_op")
    waiting.join()
    assert last + 1 in town.log("mute_op")
    # So it is for a draft, whose operation another bsync on the same database has not committed.
    last = max(town.log("operation"))
    draft = f"""INSERT INTO {schema}.operation ("actorDid", namespace, key, method, payload)
        VALUES (%s, 'app.bsky.draft.defs#draftWithId', '3l2222222222a', 1, %s)"""
    payload = b'{"id":"3l2222222222a","draft":{"posts":[{"text":"late"}]}}'
    with held(town, draft, (people[3], payload)):
        while len(town.log("operation")) < 2 or max(town.log("operation")) < last + 3:
            town.live_privately(1)
        read_until = max(town.log("operation"))
        wait_until(lambda: _read(town, "operation", read_until), lambda: "not read", SECONDS)
    wait_until(lambda: _lost(town) == LATE, lambda: str(town.differences()), SECONDS)
    figures["bsync: rows of late ids that the official reader has lost"] = _lost(town)
    assert not any(official for official, _ in town.differences().values())
    town.restart_reader()
    town.agree()


def _mutes(town: Town, number: int, subject: int) -> bool:
    everybody = town.people.everybody
    row = {"mutedByDid": everybody[number].did, "subjectDid": everybody[subject].did}
    return any(
        row.items() <= json.loads(each).items() for each in bsync_rows(town.places[0], "mute")
    )


LATE = {"draft": 1, "mute": 1, "private_data": 1}


def _lost(town: Town) -> dict[str, int]:
    """Return how many rows the official reader lacks, by table."""
    return {table: ours.total() for table, (_, ours) in town.differences().items()}


def _is_taken(town: Town, number: int) -> bool:
    """Tell whether an id of the log of mutes was given out."""
    with psycopg.connect(town.network.database_url) as connection:
        row = connection.execute(
            f"SELECT last_value FROM {town.schemas[-1]}.mute_op_id_seq"
        ).fetchone()
    return row is not None and row[0] >= number


def _read(town: Town, log: str, number: int) -> bool:
    """Tell whether both readers are past an id, as their rows show."""
    with psycopg.connect(town.live.url) as connection:
        query = "SELECT place FROM rsky_pipeline.bsync_log WHERE log = %s"
        row = connection.execute(query, [log]).fetchone()
    official = all(
        (not official and not ours) or table in LATE
        for table, (official, ours) in town.differences().items()
    )
    return row is not None and row[0] >= number and official


def test_another_key(town: Town) -> None:
    """A key that bsync has no more is one finding; with the new one reading goes on."""
    log = town.live.folder / "pipeline.log"
    town.end_bsync()
    town.start_bsync(KEYS[1])
    town.live_privately()
    wait_until(lambda: "bsync_refused" in town.findings(), lambda: str(town.findings()), SECONDS)
    assert "bsync refuses bsync_key (401)" in town.findings()["bsync_refused"]
    assert log.read_text().count("bsync refuses to be read") == 1
    assert town.differences()
    town.key_file.write_text(KEYS[1])
    town.live.command("restart", "ingester")
    town.live_privately()
    town.agree()
    wait_until(
        lambda: "bsync_refused" not in town.findings(), lambda: str(town.findings()), SECONDS
    )


def test_another_database(town: Town, figures: dict[str, Any]) -> None:
    """Its ids begin again: nothing of it is read until an operator says so."""
    assert town.life is not None
    before = [bsync_rows(town.places[1], table) for table in PRIVATE]
    town.end_bsync()
    town.schemas.append("bsync_anew")
    town.start_bsync(KEYS[1])
    town.live_privately()
    wait_until(lambda: "bsync_replaced" in town.findings(), lambda: str(town.findings()), SECONDS)
    assert [bsync_rows(town.places[1], table) for table in PRIVATE] == before
    for log in BSYNC_LOGS:
        town.live.command("cursor", "reset", log, "--stream", "bsync_live", "--force")
    town.restart_reader()
    town.live_privately()
    town.agree()
    wait_until(
        lambda: "bsync_replaced" not in town.findings(), lambda: str(town.findings()), SECONDS
    )
    figures["bsync: done in private"] = dict(sorted(town.life.counts.items()))
    figures["bsync: rows"] = {table: bsync_rows(town.places[1], table).total() for table in PRIVATE}
    assert not [each for each in town.life.refused if each[-3:] not in ("400", "500")]
