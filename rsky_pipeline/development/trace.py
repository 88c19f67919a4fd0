"""Print the way of one commit and of one repo job through the running pipeline.

    python -m rsky_pipeline.development.trace [--story]

A simulated network and the real processes with embedded stores are started, everything is indexed,
and then one like is published, and one repo is queued. `trace_hook` records which functions of ours
the workers call, in which thread and which task. Printed are, for each worker, the distinct
functions and files, and the hand-overs: how often the work passes to another task or thread.
Functions that a worker also calls while nothing happens (waiting, metrics, timers) are counted
apart; a function that serves both, for example one that sends a command to Redis, is among them.

Compiled functions are not seen. With --story the calls are printed in their order, each function
once, indented as they call each other.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio

import rsky_pipeline
from rsky_pipeline.cli.simulate import settings as followed
from rsky_pipeline.configuration.load import load
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.database.connection import Database
from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.demo.simulator.clock import Clock
from rsky_pipeline.demo.simulator.hosts import Urls
from rsky_pipeline.demo.simulator.network import Network, Ports
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.development import trace_hook
from rsky_pipeline.embedded.locations import resolve_directories, store_urls
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import STREAMS

START_SECONDS = 120.0
IDLE_SECONDS = 16.0  # longer than the slowest timer of a worker, the backfiller's maintenance
AFTER_SECONDS = 1.5  # until an acknowledgement and a cursor are stored
ROOT = Path(rsky_pipeline.__file__).parent


class TraceError(Exception):
    """The pipeline did not index the like or the repo that is traced."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function of ours; `where` is the thread, and the task in a thread with a loop."""

    at: int
    where: str
    depth: int
    function: tuple[str, str]  # file and qualified name


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, in nanoseconds of the monotonic clock, and its meaning."""

    name: str
    begin: int
    end: int


def main() -> None:
    """Run the pipeline, print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--story", action="store_true", help="print the calls in their order")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rsky-trace-"))
    try:
        spans, processes = trio.run(_record, folder)
        report(spans, processes, story=arguments.story)
    except* TraceError as errors:
        sys.exit(str(errors.exceptions[0]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(spans: list[Span], processes: dict[str, list[Call]], *, story: bool) -> None:
    """Print functions, files and hand-overs of each worker that takes part in a span."""
    idle, *others = spans
    for span, roles in zip(
        others, (("ingester", "indexer"), ("backfiller", "indexer")), strict=True
    ):
        print(f"\n{span.name}")
        for role in roles:
            calls = processes[role]
            waiting = {call.function for call in _within(calls, idle)}
            own = [call for call in _within(calls, span) if call.function not in waiting]
            everything = {call.function for call in _within(calls, span)}
            print(
                f"  {role:<11}{_figures({call.function for call in own})}, "
                f"{_hand_overs(own)} hand-overs; with those also called while idle: "
                f"{_figures(everything)}"
            )
            if story:
                _tell(own)


def _tell(calls: list[Call]) -> None:
    seen, where = set(), ""
    for call in calls:
        if call.function in seen:
            continue
        seen.add(call.function)
        if call.where != where:
            where = call.where
            print(f"    [{where}]")
        file, name = call.function
        print(f"      {'  ' * call.depth}{name}  ({file})")


def _figures(functions: set[tuple[str, str]]) -> str:
    return f"{len(functions)} functions in {len({file for file, _ in functions})} files"


def _hand_overs(calls: list[Call]) -> int:
    return sum(call.where != before.where for before, call in pairwise(calls))


def _within(calls: list[Call], span: Span) -> list[Call]:
    return [call for call in calls if span.begin <= call.at < span.end]


async def _record(folder: Path) -> tuple[list[Span], dict[str, list[Call]]]:
    world = World(1, 20, Clock(), calm=True)
    world.add_history(60)
    network = Network(world)
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(network.serve, Ports())
        try:
            environment = _environment(folder, urls)
            settings = load(None, environment, {}).settings
            with _pipeline(folder, environment):
                settings = store_urls(resolve_directories(settings))
                spans = await _live(network, world, settings, environment)
                return spans, await trio.to_thread.run_sync(_collect, folder)
        finally:
            network.close()
            nursery.cancel_scope.cancel()
    raise AssertionError


async def _live(
    network: Network, world: World, settings: Settings, environment: dict[str, str]
) -> list[Span]:
    author = next(account for account in world.accounts if account.historic)
    await _until(lambda: _is_quiet(settings), "everything is indexed")
    await _like(network, world, settings)  # the first one meets cold caches
    await _until(lambda: _is_quiet(settings), "the first like is indexed")
    begin = time.monotonic_ns()
    await trio.sleep(IDLE_SECONDS)
    idle = Span("idle", begin, time.monotonic_ns())

    begin = time.monotonic_ns()
    await _like(network, world, settings)
    await trio.sleep(AFTER_SECONDS)
    like = Span("a like", begin, time.monotonic_ns())

    begin = time.monotonic_ns()
    command = [sys.executable, "-P", "-m", "rsky_pipeline", "backfill", "add", "--force"]
    await trio.run_process([*command, author.did], env=environment, capture_stdout=True)
    await _until(lambda: _fetched_again(settings, author.did), "the repo is fetched")
    await trio.sleep(AFTER_SECONDS)
    return [idle, like, Span("a repo job", begin, time.monotonic_ns())]


async def _like(network: Network, world: World, settings: Settings) -> None:
    """Publish a like of a post that its author has not liked yet; wait for its row."""
    author = next(account for account in world.accounts if account.historic)
    uri = world.write(author, mix.LIKE)
    network.advance(1)
    query = "SELECT (SELECT count(*) FROM {0} WHERE uri = '{1}')"  # both are ours
    await _until(lambda: _query(settings, query.format("record", uri)) == 1, "a like")
    if not _query(settings, query.format('"like"', uri)):
        raise TraceError("the like is a duplicate of another: take another seed")


def _fetched_again(settings: Settings, did: str) -> bool:
    seconds = _query(
        settings,
        "SELECT extract(epoch FROM now() - updated_at)::int FROM rsky_pipeline.backfill_repo "
        f"WHERE did = '{did}'",  # it is ours
    )
    return seconds < IDLE_SECONDS and _is_quiet(settings)


def _is_quiet(settings: Settings) -> bool:
    """Return whether repos were indexed and no stream has an entry left for a group."""
    with closing(connect(settings.redis_url or "", name="trace")) as store:
        reports = [inspect(store, stream) for stream in STREAMS]
    groups = [group for report in reports for group in report.groups]
    if len(groups) < len(STREAMS) or any(group.lag + group.pending for group in groups):
        return False
    return _query(settings, "SELECT count(*) FROM record") > 0


def _query(settings: Settings, sql: str) -> int:
    with Database.connect(
        settings.database_url or "", schema=settings.database_schema, name="trace"
    ) as database:
        return int(database.query(sql)[0][0])


async def _until(condition: Callable[[], bool], meaning: str) -> None:
    deadline, quiet = time.monotonic() + START_SECONDS, 0
    while quiet < 3:
        if time.monotonic() > deadline:
            raise TraceError(f"waited {START_SECONDS:.0f} s until {meaning}")
        try:
            quiet = quiet + 1 if await trio.to_thread.run_sync(condition) else 0
        except Exception as error:  # noqa: BLE001  # the stores are still starting
            meaning = f"{meaning.partition(';')[0]}; {error}"
        await trio.sleep(0.1)


def _environment(folder: Path, urls: Urls) -> dict[str, str]:
    hook = folder / "hook"
    hook.mkdir()
    shutil.copy(trace_hook.__file__, hook / "sitecustomize.py")
    own = {
        **{name.upper(): text for name, text in followed(urls).items()},
        "DATA_DIR": str(folder / "data"),
        "RUN_DIR": str(folder / "run"),
        **{f"{name.upper()}_METRICS_PORT": "0" for name in (*ROLE_NAMES, "supervisor")},
    }
    path = os.pathsep.join([str(hook), str(ROOT.parent)])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RSKY_")}
    return {
        **kept,
        **{f"RSKY_PIPELINE_{name}": value for name, value in own.items()},
        "PYTHONPATH": path,
        "RSKY_TRACE_FOLDER": str(folder),
        "RSKY_TRACE_ROOT": str(ROOT),
    }


@contextmanager
def _pipeline(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rsky_pipeline", "run"],
            env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield
    except BaseException:
        print((folder / "log").read_text()[-4_000:], file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _collect(folder: Path) -> dict[str, list[Call]]:
    """Have the workers write their calls; return them by role."""
    (folder / "write").touch()
    deadline = time.monotonic() + START_SECONDS
    found: dict[str, list[Call]] = {}
    while len(found) < len(ROLE_NAMES) and time.monotonic() < deadline:
        time.sleep(0.2)
        for path in folder.glob("*.jsonl"):
            head, *lines = path.read_text().splitlines()
            role = next(role for role in ROLE_NAMES if role in json.loads(head)["argv"])
            found[role] = [_call(json.loads(line)) for line in lines]
    return found


def _call(values: list[Any]) -> Call:
    at, thread, task, depth, file, name = values
    return Call(at, f"{thread}: {task}" if task else thread, depth, (file, name))


if __name__ == "__main__":
    main()
