"""A worker without a supervisor, as `rsky-indexer@2` is one: reached by commands and signals."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.cli import log_level, main
from rsky_pipeline.runtime.further_workers import further_workers, level_asked_for, note
from tests.integration.supervisor.pipeline import until


class Further:
    """A running worker, its log and its configuration."""

    def __init__(self, folder: Path, redis_url: str, database_url: str) -> None:
        self.folder, self.log, self.file = folder, folder / "log", folder / "own.toml"
        self.common = f"""
            redis_url = "{redis_url}"
            database_url = "{database_url}"
            data_dir = "{folder}"
            indexer_metrics_port = 0
            log_format = "json"
        """
        self.configure("info")
        command = [sys.executable, "-m", "rsky_pipeline", "worker", "indexer", "--instance", "2"]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--config", str(self.file)], stdout=output, stderr=output
            )
        self.until_logged('"msg": "ready"')

    def configure(self, level: str) -> None:
        self.file.write_text(f'{self.common}\nlog_level = "{level}"\n')

    def until_logged(self, text: str, times: int = 1) -> None:
        until(lambda: self.log.read_text().count(text) >= times or self.process.poll() is not None,
              text, 60)  # fmt: skip
        assert self.log.read_text().count(text) >= times, self.log.read_text()

    def ask(self, *words: str) -> Result:
        return CliRunner().invoke(main, ["log-level", *words, "--config", str(self.file)])


@pytest.fixture
def further(tmp_path: Path, clean_redis: str, schema_database: str) -> Iterator[Further]:
    started = Further(tmp_path, clean_redis, schema_database)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def test_its_log_level_changes_by_command_and_by_reload(
    further: Further, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = further.ask("indexer", "error", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["changed"] == ["indexer-2"]
    further.until_logged('"log level changed", "log_level": "error"')
    further.configure("debug")
    further.process.send_signal(signal.SIGHUP)
    further.until_logged('"log level changed", "log_level": "debug"')
    further.configure("loud")
    further.process.send_signal(signal.SIGHUP)
    further.until_logged("log level not read again")
    further.configure("info")

    assert further.ask("backfiller", "debug").exit_code == 3
    assert further.ask("supervisor", "debug").exit_code == 3
    monkeypatch.setattr(log_level, "ANSWER_SECONDS", 1.0)
    further.process.send_signal(signal.SIGSTOP)
    stopped = further.ask("all", "debug")
    assert (stopped.exit_code, "indexer-2: no answer" in stopped.stderr) == (4, True)
    assert list((further.folder / "run" / "workers").glob("*.level")) == []
    further.process.send_signal(signal.SIGCONT)
    further.process.send_signal(signal.SIGTERM)
    assert further.process.wait(60) == 0
    assert further.ask("all", "debug").exit_code == 3


def test_a_level_is_taken_once_and_by_the_worker_that_was_asked(tmp_path: Path) -> None:
    path = note(tmp_path, "indexer", 2, 1)
    assert path is not None
    (worker,) = further_workers(tmp_path)
    asked = path.with_suffix(".level")
    for text, level in (("debug", "debug"), ("loud", None), ("", None), ("\udcff", None)):
        asked.write_bytes(os.fsencode(text))
        assert level_asked_for(path) == level
        assert level_asked_for(path) is None
    asked.write_text("debug")
    assert note(tmp_path, "indexer", 2, 1) == path
    assert level_asked_for(path) is None, "it was asked of the worker before"
    assert further_workers(tmp_path) == [worker]
    assert level_asked_for(None) is None


@pytest.mark.parametrize(
    ("ending", "stays"),
    [("raise RuntimeError('a defect')", True), ("raise SettingError('wrong')", True),
     ("os.kill(os.getpid(), signal.SIGTERM)", False)],
)  # fmt: skip
def test_a_worker_that_failed_is_missed(tmp_path: Path, ending: str, stays: bool) -> None:
    """One that was stopped is not."""
    program = f"""
import os, signal, sys, trio
from pathlib import Path
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.errors import SettingError
from rsky_pipeline.runtime.worker import run_worker

folder = Path(sys.argv[1])

async def main(context):
    while not list(folder.glob("workers/*.json")):
        await trio.sleep(0.05)
    {ending}
    await context.stopping.wait()

settings = Settings(indexer_metrics_port=0, run_dir=folder)
sys.exit(run_worker(main, settings=settings, role="indexer", instance=2))
"""
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False)
    assert (result.returncode != 0) is stays
    assert bool(further_workers(tmp_path)) is stays
