"""`rsky-pipeline demo`: the whole pipeline on a simulated network, compared row for row."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import print_table

DRAIN_SECONDS = 60.0
START_SECONDS = 60.0


@click.command()
@click.option("--seconds", default=40.0, show_default=True, help="How long the network lives.")
@click.option("--rate", default=300.0, show_default=True, help="Events a second.")
@click.option("--accounts", default=150, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=1, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the data directory.")
def command(seconds: float, rate: float, accounts: int, seed: int, keep: bool) -> None:
    """Run everything on loopback for a while, stop in order, and compare every row.

    Exits with 0 if the database holds exactly what was published, with 6 if not.
    """
    folder = Path(tempfile.mkdtemp(prefix="rsky-demo-"))
    demo = Demo(folder, seconds, rate, accounts, seed)
    try:
        code = demo.run()
    finally:
        demo.close()
        if keep:
            click.echo(f"kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    raise click.exceptions.Exit(code)


class Demo:
    """The processes of one demonstration."""

    def __init__(self, folder: Path, seconds: float, rate: float, accounts: int, seed: int) -> None:
        self._folder = folder
        self._seconds = seconds
        self._processes: list[subprocess.Popen[str]] = []
        self._log = (folder / "pipeline.log").open("w")
        options = [f"--rate={rate}", f"--accounts={accounts}", f"--seed={seed}", "--json"]
        simulator = self._start("simulate", *options, stdout=subprocess.PIPE)
        assert simulator.stdout is not None
        announced = json.loads(simulator.stdout.readline())
        self._url: str = announced["url"]
        self._environ = os.environ | announced["environment"] | {
            "RSKY_PIPELINE_DATA_DIR": str(folder),
            "RSKY_PIPELINE_VERIFY": "signature",
            "RSKY_PIPELINE_HANDLE_RESOLVER_URL": self._url,
            **{f"RSKY_PIPELINE_{name}_METRICS_PORT": "0"
               for name in ("INGESTER", "INDEXER", "BACKFILLER", "SUPERVISOR")},
        }  # fmt: skip
        from rsky_pipeline.configuration.settings import declarations

        if "handle_resolver_url" not in declarations():
            del self._environ["RSKY_PIPELINE_HANDLE_RESOLVER_URL"]

    def run(self) -> int:
        """Carry the demonstration out and return the exit code."""
        click.echo(f"simulated network at {self._url}; log in {self._log.name}")
        pipeline = self._start("run", "--role", "all", stdout=self._log, stderr=self._log)
        try:
            self._watch(pipeline)
        except KeyboardInterrupt:
            click.echo("stopping")
        if pipeline.poll() is not None:
            click.echo(f"the pipeline ended with code {pipeline.returncode}:", err=True)
            click.echo(Path(self._log.name).read_text()[-3000:], err=True)
            return ExitCode.FAILED
        published = self._ask("stop")["seq"]
        click.echo(f"published {published} events; waiting until all of them are indexed")
        self._wait_until_drained()
        truth = self._ask("truth")
        code = self._compare(truth)
        stopped = self._call("stop", "--ordered")
        return code or (ExitCode.OK if stopped == 0 else ExitCode.FORCED)

    def close(self) -> None:
        """End whatever still runs."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in reversed(self._processes):
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._log.close()

    def _watch(self, pipeline: "subprocess.Popen[str]") -> None:
        end = time.monotonic() + self._seconds
        while time.monotonic() < end and pipeline.poll() is None:
            time.sleep(3)
            status = self._status() or {}
            workers = [item for item in status.get("processes", []) if item["kind"] == "worker"]
            shown = [
                f"{item['name']} {item['state']} {item['rate'] or 0:.0f}/s" for item in workers
            ]
            shown += [f"{name} {length}" for name, length in status.get("streams", {}).items()]
            click.echo(f"{self._ask('status')['seq']:>8} published | {' | '.join(shown)}")

    def _wait_until_drained(self) -> None:
        from rsky_pipeline.configuration.load import load
        from rsky_pipeline.embedded.locations import resolve_directories, store_urls
        from rsky_pipeline.streams.connection import connect
        from rsky_pipeline.streams.lag import inspect
        from rsky_pipeline.streams.names import FIREHOSE_LIVE, STREAMS, cursor_key

        settings = store_urls(resolve_directories(load(None, self._environ, {}).settings))
        store = connect(settings.redis_url or "", name="demo")
        published = self._ask("status")["seq"]
        deadline = time.monotonic() + DRAIN_SECONDS
        quiet = 0
        while time.monotonic() < deadline and quiet < 3:
            cursor = store.call("GET", cursor_key(FIREHOSE_LIVE, self._url))
            idle = cursor is not None and int(cursor) >= published
            for stream in STREAMS:
                report = inspect(store, stream)
                idle &= not any(group.lag or group.pending for group in report.groups)
            quiet = quiet + 1 if idle else 0
            time.sleep(0.5)
        store.close()
        if quiet < 3:
            click.echo(f"not everything was indexed within {DRAIN_SECONDS:.0f} s", err=True)

    def _compare(self, truth: dict[str, Any]) -> int:
        from rsky_pipeline.configuration.load import load
        from rsky_pipeline.embedded.locations import resolve_directories, store_urls
        from rsky_pipeline.simulator.compare import compare

        settings = store_urls(resolve_directories(load(None, self._environ, {}).settings))
        reports = compare(settings.database_url or "", settings.database_schema, truth)
        header = ("TABLE", "EXPECTED", "FOUND", "MISSING", "EXTRA", "DIFFERENT")
        rows = [(r.name, r.expected, r.found, r.missing, r.extra, r.different) for r in reports]
        print_table(header, rows)
        for report in reports:
            for example in report.examples:
                click.echo(f"{report.name}: {example[:500]}")
        total = sum(report.differences for report in reports)
        click.echo(f"{total} differences in {sum(r.expected for r in reports)} rows")
        return ExitCode.DIFFERENCES if total else ExitCode.OK

    def _start(self, *arguments: str, **streams: Any) -> "subprocess.Popen[str]":
        process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-m", "rsky_pipeline", *arguments],
            env=getattr(self, "_environ", None),
            text=True,
            start_new_session=True,  # Ctrl-C is ours to answer
            **streams,
        )
        self._processes.append(process)
        return process

    def _call(self, *arguments: str) -> int:
        command = [sys.executable, "-m", "rsky_pipeline", *arguments]
        return subprocess.run(command, env=self._environ, check=False).returncode

    def _status(self) -> dict[str, Any] | None:
        result = subprocess.run(
            [sys.executable, "-m", "rsky_pipeline", "status", "--json"],
            env=self._environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
        try:
            document: dict[str, Any] = json.loads(result.stdout)
        except json.JSONDecodeError:
            return None
        return document

    def _ask(self, what: str) -> dict[str, Any]:
        address = f"{self._url}/simulator/{what}"  # http, on loopback
        with urllib.request.urlopen(address, timeout=60) as response:  # noqa: S310
            document: dict[str, Any] = json.load(response)
        return document
