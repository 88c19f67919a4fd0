"""A worker whose role does what a test wants: real process, real harness, pretended work.

Reads `behaviour.json` in the data directory: for each role `ready_after`, `exit_after`,
`exit_code`, `drain_seconds`, `drain_until` (a file is there), `deaf` (ignores everything but QUIT),
`stuck` (blocks its loop).
Appends what happens to `trace.txt`, and writes the settings that it got to `seen-ROLE.json`.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click
import trio
from prometheus_client import Gauge

from rsky_pipeline.runtime.channel import WorkerPipes, read_settings
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.errors import SettingError
from rsky_pipeline.runtime.worker import run_worker


def data_of(context: WorkerContext) -> Path:
    assert context.settings.data_dir is not None
    return context.settings.data_dir


def trace(context: WorkerContext, what: str) -> None:
    with (data_of(context) / "trace.txt").open("a") as file:
        file.write(f"{context.role}-{context.instance} {what} {os.getpid()}\n")


async def pretend(context: WorkerContext) -> None:
    everything = json.loads((data_of(context) / "behaviour.json").read_text())
    behaviour: dict[str, Any] = everything.get(context.role, {})
    trace(context, "began")
    seen = {"batch": context.settings.indexer_batch_size, "level": context.settings.log_level}
    (data_of(context) / f"seen-{context.role}.json").write_text(json.dumps(seen))
    length = Gauge("rsky_stream_length", "Entries", ["stream"], registry=context.registry)
    length.labels("firehose_live").set(11)
    context.health({"rate": 7.0, "lag": 3, "pending": 2})
    if behaviour.get("bad_configuration"):
        raise SettingError("relay_hosts: there is no such relay")
    await trio.sleep(behaviour.get("ready_after", 0))
    context.ready()
    trace(context, "ready")
    if "exit_after" in behaviour:
        await trio.sleep(behaviour["exit_after"])
        sys.stdout.flush()
        os._exit(behaviour.get("exit_code", 9))
    if behaviour.get("stuck"):
        time.sleep(1000)  # noqa: ASYNC251  # a loop that hangs is what is wanted
    await context.stopping.wait()
    trace(context, "stopping")
    with trio.move_on_after(behaviour.get("drain_seconds", 0)):
        if behaviour.get("deaf"):
            await trio.sleep_forever()
        await context.escalated.wait()
        trace(context, "hurried")
    while "drain_until" in behaviour and not (data_of(context) / behaviour["drain_until"]).exists():
        await trio.sleep(0.02)
    context.health({"pending": 0})
    trace(context, "drained")


@click.command()
@click.argument("role")
@click.option("--instance", type=int)
@click.option("--settings-fd", type=int)
@click.option("--events-fd", type=int)
@click.option("--liveness-fd", type=int)
def main(role: str, instance: int, settings_fd: int, events_fd: int, liveness_fd: int) -> None:
    settings = read_settings(settings_fd)
    pipes = WorkerPipes(events_fd, liveness_fd)
    sys.exit(run_worker(pretend, settings=settings, role=role, instance=instance, pipes=pipes))


if __name__ == "__main__":
    main()
