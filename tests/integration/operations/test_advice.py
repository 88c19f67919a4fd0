"""Every command that a message advises does its work on a running pipeline, as it is advised."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from rsky_pipeline.cli import main
from rsky_pipeline.cli.exit_codes import ExitCode
from tests.pipelines import Running, pipeline_on
from tests.unit.test_advice import ADVISED

# They replace or start what the test itself runs, or change this machine; `block remove` is only
# named, without what to unblock; a shell takes the place of the process.
LEFT_OUT = (
    "block remove", "deploy", "rollback", "run", "simulate", "systemd", "stop --ordered",
    "db shell", "stores shell", "store shell",
)  # fmt: skip
DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
BSYNC = {"RSKY_PIPELINE_BSYNC_URL": "http://127.0.0.1:9", "RSKY_PIPELINE_BSYNC_KEY": "key"}
# What stands for a choice of the operator, by the beginning of the command.
CHOICES = {
    "backfill": ("X", "timeout"), "config": ("", ""),
    "cursor reset X --stream bsync_live": ("X", "mute"),
    "cursor set X SEQ --stream bsync_live": ("X", "mute"),
    "cursor set X X": ("X X", "HOST SEQ"), "cursor": ("X", "HOST"), "db recount": ("X", DID),
    "dlq retry X --id X": ("X --id X", "firehose_live --id 1-1"), "dlq": ("X", "firehose_live"),
    "index-repo --rebuild --source pds ACCOUNT": ("ACCOUNT", DID), "index-repo": ("X", DID),
    "restart": ("X", "backfiller"), "start": ("X", "backfiller"), "stop": ("X", "backfiller"),
    "streams": ("X", "firehose_live"),
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
    done = CliRunner().invoke(main, words(line, host, file), env=running.environ)
    usage = done.exit_code == ExitCode.USAGE and "--help`" in done.output
    asks = done.exit_code != 0 and ("--force" in done.output or "--yes" in done.output)
    crashed = done.exception is not None and not isinstance(done.exception, SystemExit)
    return (
        f"{line}: {done.exit_code}: {done.output} {done.exception}"
        if usage or asks or crashed
        else None
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_advised_command_can_be_carried_out(tmp_path: Path) -> None:
    lines = [line for line in ADVISED if not line.startswith(LEFT_OUT)]
    assert len(lines) > 20
    with pipeline_on("--rate=20", "--accounts=20", **BSYNC) as running:
        running.wait_for(lambda: len(running.pids()) == 5, 90)
        host = running.settings.relays[0].key
        # What stops comes last, and before it what starts again.
        lines.sort(key=lambda line: (line.startswith("stop"), line.startswith("restart")))
        assert [
            text for line in lines if (text := refused(running, line, host, tmp_path / "file"))
        ] == []
