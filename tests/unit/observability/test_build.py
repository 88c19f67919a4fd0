"""Every way of installing the program tells which build it is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import rsky_pipeline
from rsky_pipeline.atproto import compiled
from rsky_pipeline.atproto.native import MARK, digest_of
from rsky_pipeline.cli import main
from rsky_pipeline.observability import build as module


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is remembered belongs to the process, not to a test.
    monkeypatch.setattr(module, "build", module.build.__wrapped__)


def test_a_built_file_says_what_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build.json").write_text(
        json.dumps({"version": "7.1.0", "commit": "abc", "built_at": "2026-01-02T03:04:05Z"})
    )
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    result = CliRunner().invoke(main, ["--version"])
    assert result.output == "rsky-pipeline 7.1.0 (commit abc, built 2026-01-02T03:04:05Z)\n"


@pytest.mark.parametrize("text", ["", "[]", '{"version": 7}'])
def test_a_broken_record_is_as_good_as_none(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build.json").write_text(text)
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    assert module.build().built_at == "unknown"


def test_programs_read_json() -> None:
    told = json.loads(CliRunner().invoke(main, ["version", "--json"]).output)
    assert told.keys() == {
        "program",
        "version",
        "commit",
        "built_at",
        "compiled",
        "compiled_problem",
    }
    assert told["program"] == "rsky-pipeline"
    assert told["compiled"] is compiled.COMPILED


def test_people_are_told_that_the_compiled_readers_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "COMPILED", False)
    assert "compiled readers are missing" in CliRunner().invoke(main, ["version"]).output


@pytest.mark.parametrize("changed", ["atproto/native/frames.pyx", "atproto/native/common.pxd",
                                     "database/native.pyx"])  # fmt: skip
def test_readers_older_than_their_source_are_not_used(changed: str, tmp_path: Path) -> None:
    package = tmp_path / "rsky_pipeline"
    shutil.copytree(Path(rsky_pipeline.__file__).parent, package)
    code = (
        "from rsky_pipeline.atproto import compiled; from rsky_pipeline.database import texts; "
        "print(compiled.COMPILED, texts.pack_texts(['a']) is not None)"
    )

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    assert run("-c", code) == "True True\n"
    with (package / changed).open("a") as source:
        source.write("\n# changed\n")
    os.utime(package / changed, (2e9, 2e9))
    assert run("-c", code) == "False False\n"
    told = json.loads(run("-m", "rsky_pipeline", "version", "--json"))
    assert told["compiled"] is False
    assert told["compiled_problem"] == "compiled readers are older than their source: run make"
    for path in (*package.rglob("*.pyx"), *package.rglob("*.pxd")):  # as in a wheel
        path.unlink()
    assert run("-c", code) == "True True\n"


@pytest.mark.parametrize("folder", ["atproto/native", "database"])
def test_a_module_is_stale_by_its_sources_not_by_its_age(folder: str, tmp_path: Path) -> None:
    """Copies of modules are newer than anything, and checkouts newer than what was built."""
    place = tmp_path / folder
    place.mkdir(parents=True)
    source, declarations, module = place / "one.pyx", place / "shared.pxd", place / "one.abi3.so"
    source.write_text("def read(): ...")
    declarations.write_text("cdef enum: ...")
    module.write_bytes(b"\x7fELF " + MARK + digest_of(source) + b"\0")
    os.utime(source, (2e9, 2e9))
    assert not compiled.are_stale(tmp_path)
    os.utime(module, (3e9, 3e9))
    declarations.write_text("cdef enum: other")
    assert compiled.are_stale(tmp_path)
    declarations.write_text("cdef enum: ...")
    source.write_text("def read(more): ...")
    assert compiled.are_stale(tmp_path)
    module.unlink()
    assert not compiled.are_stale(tmp_path), "nothing is built"
