"""Every command that a message advises does its work on a running pipeline, as it is advised."""

import subprocess
import sys
from pathlib import Path

import pytest

from rsky_pipeline.cli.exit_codes import ExitCode
from tests.pipelines import Running, pipeline_on
from tests.unit.test_advice import ADVISED

# They replace or start what the test itself runs, or change this machine.
LEFT_OUT = ("deploy", "rollback", "run", "simulate", "systemd", "stop --ordered")
DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
# What stands for a choice of the operator, by the beginning of the command.
CHOICES = {
    "backfill": ("X", "timeout"), "config": ("", ""), "cursor": ("X", "HOST"),
    "dlq retry X --id X": ("X --id X", "firehose_live --id 1-1"), "dlq": ("X", "firehose_live"),
    "index-repo": ("X", DID), "restart": ("X", "backfiller"), "start": ("X", "backfiller"),
    "stop": ("X", "backfiller"), "streams": ("X", "firehose_live"),
}  # fmt: skip


def words(line: str, host: str, file: Path) -> list[str]:
    """Return a command with what an operator would choose."""
    before, after = next(
        (pair for beginning, pair in CHOICES.items() if line.startswith(beginning)), ("", "")
    )
    line = line.replace(before, after) if before else line
    line = line.replace("HOST", host).replace("SEQ", "0").replace("ROLE", "backfiller")
    return line.replace("FILE", str(file)).split()


def refused(running: Running, line: str, host: str, file: Path) -> str | None:
    """Run a command; return its output if it asks for another one, or cannot be used so."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rsky_pipeline", *words(line, host, file)],
        env=running.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    text = done.stdout + done.stderr
    wrong = done.returncode == ExitCode.USAGE or "--force" in text or "--yes" in text
    return f"{line}: {done.returncode}: {text}" if wrong or "Traceback" in text else None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_advised_command_can_be_carried_out(tmp_path: Path) -> None:
    lines = [line for line in ADVISED if not line.startswith(LEFT_OUT)]
    assert len(lines) > 20
    with pipeline_on("--rate=20", "--accounts=20") as running:
        running.wait_for(lambda: len(running.pids()) == 5, 90)
        host = running.settings.relays[0].key
        # What stops comes last, and before it what starts again.
        lines.sort(key=lambda line: (line.startswith("stop"), line.startswith("restart")))
        assert [
            text for line in lines if (text := refused(running, line, host, tmp_path / "file"))
        ] == []
