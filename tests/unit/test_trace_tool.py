"""The tool that counts functions, files and hand-overs: what it counts, and what it leaves out."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rsky_pipeline.development import trace_hook
from rsky_pipeline.development.trace import Call, Span, report


def test_functions_called_while_idle_are_counted_apart(capsys: pytest.CaptureFixture[str]) -> None:
    send, read, write = ("store.py", "send"), ("role.py", "read"), ("role.py", "write")
    calls = [
        Call(5, "main: wait", 0, send),
        Call(11, "main: reader", 0, read),
        Call(12, "worker", 1, send),
        Call(13, "worker", 0, write),
        Call(14, "main: reader", 0, read),
        Call(21, "main: reader", 0, read),
    ]
    spans = [Span("idle", 0, 10), Span("a like", 10, 20), Span("a repo job", 20, 30)]
    report(spans, dict.fromkeys(("ingester", "indexer", "backfiller"), calls), story=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "a like"
    figures = "2 functions in 1 files, 2 hand-overs; with those also called while idle: "
    assert lines[2].split()[1:] == [*figures.split(), "3", "functions", "in", "2", "files"]
    story = [line.strip() for line in lines[3:7]]
    assert story == ["[main: reader]", "read  (role.py)", "[worker]", "write  (role.py)"]


def test_the_hook_records_a_worker(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(Path(trace_hook.__file__).read_text())
    package = tmp_path / "ours"
    package.mkdir()
    (package / "worker.py").write_text("def outer():\n    inner()\ndef inner():\n    pass\n")
    code = "import ours.worker, sys, time; ours.worker.outer(); print(flush=True); time.sleep(60)"
    environment = {
        **os.environ, "PYTHONPATH": str(tmp_path), "RSKY_TRACE_FOLDER": str(tmp_path),
        "RSKY_TRACE_ROOT": str(package),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", code, "worker"], env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        (tmp_path / "write").touch()
        deadline = time.monotonic() + 60
        while not (written := list(tmp_path.glob("*.jsonl"))) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    _, *lines = written[0].read_text().splitlines()
    assert [json.loads(line)[5] for line in lines] == ["outer", "inner"]
