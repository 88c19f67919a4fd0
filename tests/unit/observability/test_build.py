"""Every way of installing the program tells which build it is."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rsky_pipeline.atproto import compiled
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
    assert told.keys() == {"program", "version", "commit", "built_at", "compiled"}
    assert told["program"] == "rsky-pipeline"
    assert told["compiled"] is compiled.COMPILED


def test_people_are_told_that_the_compiled_readers_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rsky_pipeline.cli.version.has_compiled_readers", lambda: False)
    assert "compiled readers are missing" in CliRunner().invoke(main, ["version"]).output
