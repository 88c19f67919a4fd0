"""The night of the original deployment plan, as one command: under load, with real program files.

Version A pollutes firehose_live as the original ingester did, and its indexer cannot keep up.
Version B is deployed while 1,000 events a second are published, and the stream is cleaned. Then
version C pollutes again: its verification fails and it is rolled back. Nothing is lost ever.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.configuration.load import load
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.demo.figures import Observer
from rsky_pipeline.demo.processes import Simulation, pipeline_environment
from rsky_pipeline.demo.simulator.compare import compare
from rsky_pipeline.embedded.locations import resolve_directories, store_urls
from rsky_pipeline.operations.cleaning import sample_stream
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.names import FIREHOSE_LIVE
from tests import binaries, leftovers
from tests.integration.deployment.versions import BROKEN, POLLUTING, SLOW
from tests.stores import scratch_directory

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

INGESTER, READER = "ingester/commits/convert.py", "streams/consumer.py"


@dataclass(slots=True)
class Host:
    """A host with an installed program, and the network that it follows."""

    folder: Path
    program: Path
    environ: dict[str, str]
    settings: Settings
    simulation: Simulation
    observer: Observer

    def command(self, *arguments: str, seconds: float = 300) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(self.program), *arguments],
            env=self.environ, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip

    def version(self) -> str:
        [supervisor] = json.loads(self.command("status", "--json").stdout)["supervisors"]
        return str(supervisor["version"])

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"still not: {what}"
            time.sleep(0.5)

    def kinds(self) -> dict[str, int]:
        """Return the types of the newest entries of the live stream."""
        with closing(connect(self.settings.redis_url or "", name="test")) as store:
            return dict(sample_stream(store, FIREHOSE_LIVE, 3_000).by_type)

    def nothing_waits(self) -> bool:
        return not self.observer.waiting(self.simulation.control.progress())


@contextmanager
def host(program: Path, *options: str) -> Iterator[Host]:
    """Install a program in a folder of its own; what runs ends with the block.

    It is stopped as an operator does, after which nothing may be left but the simulation.
    """
    with scratch_directory() as folder, leftovers.ended_with_us(folder):
        installed = folder / "bin" / "rsky-pipeline"
        installed.parent.mkdir()
        shutil.copy2(program, installed)
        simulation = Simulation(folder, options)
        environ = pipeline_environment(folder, simulation)
        environ["SHIV_ROOT"] = str(folder / "unpacked")
        settings = store_urls(resolve_directories(load(None, environ, {}).settings))
        observer = Observer(settings, simulation.control, simulation.relay, simulation.labeler)
        found = Host(folder, installed, environ, settings, simulation, observer)
        try:
            with closing(observer):
                yield found
            stopped = found.command("stop")
            assert stopped.returncode in (ExitCode.OK, ExitCode.NOT_RUNNING), stopped.stderr
            found.wait_for(
                lambda: list(leftovers.processes(str(folder))) == [simulation.process.pid],
                f"only the simulation is left, not {leftovers.processes(str(folder))}", 15,
            )  # fmt: skip
        finally:
            simulation.process.end()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return binaries.build(tmp_path_factory.mktemp("binary") / "original")


def deployed(result: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert result.stdout, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_the_plan_is_one_command_and_loses_nothing(original: Path, tmp_path: Path) -> None:
    a = binaries.variant(original, tmp_path / "a", "1.0.0", {INGESTER: POLLUTING, READER: SLOW})
    b = binaries.variant(original, tmp_path / "b", "2.0.0")
    c = binaries.variant(original, tmp_path / "c", "3.0.0", {INGESTER: POLLUTING})
    quick = ["--verify-window=5", "--json"]
    with host(a, "--rate=1000") as running:
        started = running.command("start", "--ordered")
        assert started.returncode == 0, started.stdout + started.stderr
        running.wait_for(lambda: running.kinds().get("repo", 0) > 500, "pollution waits")

        planned = running.command("deploy", str(b), "--purge=firehose_live:repo", "--dry-run")
        assert planned.returncode == 0, planned.stdout + planned.stderr
        assert "remove firehose_live:repo" in planned.stdout
        assert running.version() == "1.0.0"

        result = running.command(
            "deploy", str(b), "--purge=firehose_live:repo", "--watch=5", "--verify-for=60", *quick
        )
        document = deployed(result)
        assert document["outcome"] == "deployed", result.stderr
        assert result.returncode == 0
        [cleaned] = [step for step in document["steps"] if step["step"] == "clean"]
        answer = cleaned["details"]["answer"]
        assert answer["removed"] > 500
        assert answer["by_type"] == {"repo": answer["removed"]}
        assert running.version() == "2.0.0"
        assert "repo" not in running.kinds()

        result = running.command("deploy", str(c), "--verify-for=10", *quick)
        document = deployed(result)
        assert (document["outcome"], document["failed_step"]) == ("rolled back", "verify")
        assert "pollution" in document["reason"]
        assert result.returncode == ExitCode.DIFFERENCES
        assert running.version() == "2.0.0"
        assert running.program.read_bytes() == b.read_bytes()

        listed = json.loads(running.command("deployments", "list", "--json").stdout)["deployments"]
        assert [one["outcome"] for one in listed] == ["deployed", "rolled back"]
        assert "launches" not in listed[0]

        running.simulation.control.stop()
        running.wait_for(running.nothing_waits, "everything is indexed", 300)
        truth = running.simulation.control.truth(handles=True)
        url, schema = running.settings.database_url or "", running.settings.database_schema
        reports = compare(url, schema, truth)
        assert [report for report in reports if report.differences] == []
        assert running.observer.rows()["record"] > 10_000
        assert running.observer.dead_letters() == {}

        stopped = running.command("stop", "--ordered", "--json")
        assert stopped.returncode == 0, stopped.stderr
        steps = json.loads(stopped.stdout)["steps"]
        assert [step["role"] for step in steps[:3]] == ["indexer", "backfiller", "ingester"]
        findings = {finding["result"] for step in steps for finding in step["findings"]}
        assert findings == {"pass"}


def test_a_deployment_that_was_killed_is_undone_by_the_next(original: Path, tmp_path: Path) -> None:
    a = binaries.variant(original, tmp_path / "a", "1.0.0")
    b = binaries.variant(original, tmp_path / "b", "2.0.0")
    with host(a, "--rate=50") as running:
        assert running.command("start").returncode == 0
        process = subprocess.Popen(
            [str(running.program), "deploy", str(b), "--watch=10m", "--verify-window=2s"],
            env=running.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        journal = running.folder / "data" / "deployments.jsonl"
        try:
            running.wait_for(
                lambda: journal.exists() and '"step": "verify"' in journal.read_text(), "verifying"
            )
        finally:
            process.kill()
            process.wait()
        # Any journal may end in the middle of a line.
        with journal.open("ab") as file:
            file.write(b'{"id": "cut sh')
        assert running.version() == "2.0.0"
        result = running.command("rollback")
        assert result.returncode == 0, result.stdout + result.stderr
        assert running.version() == "1.0.0"
        assert running.program.read_bytes() == a.read_bytes()
        listed = json.loads(running.command("deployments", "list", "--json").stdout)["deployments"]
        assert [(one["outcome"], one["reason"]) for one in listed] == [
            ("rolled back", "was interrupted")
        ]
        # It is the program again: failed tries must not push out backups of other versions.
        assert not os.path.exists(listed[0]["backup"])


def test_a_crash_loop_is_undone_at_once_and_a_killed_deployment_goes_on(
    original: Path, tmp_path: Path
) -> None:
    a = binaries.variant(original, tmp_path / "a", "1.0.0")
    b = binaries.variant(original, tmp_path / "b", "2.0.0")
    broken = binaries.variant(original, tmp_path / "c", "3.0.0", {"indexer/role.py": BROKEN})
    with host(a, "--rate=50") as running:
        assert running.command("start").returncode == 0
        quick = ["--watch=0", "--verify-window=3"]
        result = running.command("deploy", str(broken), "--json", *quick)
        document = deployed(result)
        assert (document["outcome"], document["failed_step"]) == ("rolled back", "start")
        assert "indexer-1 is crashloop: exit code 1: ImportError: no module" in document["reason"]
        assert running.version() == "1.0.0"

        process = subprocess.Popen(
            [str(running.program), "deploy", str(b)],
            env=running.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        journal = running.folder / "data" / "deployments.jsonl"
        swapped = '"step": "swap", "state": "done"'
        try:
            running.wait_for(lambda: journal.read_text().count(swapped) == 2, "it is swapped")
        finally:
            process.kill()
            process.wait()
        assert "deploy --resume" in json.loads(running.command("status", "--json").stdout)[
            "deployment"
        ]  # fmt: skip
        result = running.command("deploy", "--resume", *quick)
        assert result.returncode == 0, result.stdout + result.stderr
        assert running.version() == "2.0.0"
        # Neither versions that are not installed nor copies for the checks are left.
        unpacked = [path for path in (running.folder / "unpacked").iterdir() if path.is_dir()]
        assert [path.name.split("-")[1] for path in unpacked] == ["pipeline_2.0.0"]
