"""Log lines for people and for machines."""

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rsky_pipeline.runtime.errors import UnavailableError
from rsky_pipeline.runtime.logging import MAX_MESSAGE, ThrottledLog, configure, get, log_trouble


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(format: str, level: str = "info") -> list[str]:
    stream = io.StringIO()
    configure(level, format, role="indexer", instance=2, stream=stream)  # type: ignore[arg-type]
    log = logging.getLogger("test")
    log.debug("hidden")
    log.warning("batch applied", extra={"rows": 5, "text": "two words\n", "long": "x" * 900})
    return stream.getvalue().splitlines()


def test_text() -> None:
    (line,) = lines("text")
    assert "indexer-2" in line
    assert line.endswith("x" * 500)
    assert 'WARNING batch applied rows=5 text="two words\\n"' in line
    assert "\x1b" not in line


@pytest.mark.parametrize("format", ["json", "auto"])
def test_json(format: str) -> None:
    (line,) = lines(format)
    body = json.loads(line)
    assert (body["level"], body["role"], body["instance"]) == ("warning", "indexer", 2)
    assert (body["msg"], body["rows"], body["text"]) == ("batch applied", 5, "two words\n")
    assert len(body["long"]) == 500


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_comes_from_outside_can_neither_start_a_line_nor_steer_a_terminal(
    format: str,
) -> None:
    stream = io.StringIO()
    configure("info", format, stream=stream)  # type: ignore[arg-type]
    get("test").info("a\nb\x1b[2J", extra={"value": "c\r\n\x1b[31m\u2028"})
    get("test").info("m" * 10_000)
    first, second = stream.getvalue().splitlines()
    assert first.isprintable()
    assert len(second) < MAX_MESSAGE + 200


def test_a_failure_keeps_its_traceback() -> None:
    stream = io.StringIO()
    configure("info", "json", stream=stream)
    try:
        raise KeyError("missing")
    except KeyError:
        get("test").exception("it failed")
    (line,) = stream.getvalue().splitlines()
    assert "KeyError: 'missing'" in json.loads(line)["exception"]


def test_a_traceback_cannot_command_a_terminal() -> None:
    stream = io.StringIO()
    configure("info", "text", stream=stream)
    try:
        raise ValueError("\x1b]0;owned\x07\u202e")
    except ValueError:
        get("test").exception("it failed")
    shown = stream.getvalue()
    assert "ValueError" in shown
    assert all(line.isprintable() for line in shown.split("\n"))


def test_a_terminal_gets_colours_unless_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain = Terminal(), Terminal()
    configure("info", "auto", role="ingester", stream=coloured)
    get("test").info("connected")
    monkeypatch.setenv("NO_COLOR", "1")
    configure("info", "auto", role="ingester", stream=plain)
    get("test").info("connected")
    assert "\x1b[32m" in coloured.getvalue()
    assert plain.getvalue().split()[1:] == ["ingester-1", "INFO", "connected"]


def test_the_journal_gets_priorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        configure("info", "auto", stream=stream)
        get("test").info("one")
        get("test").error("two")
        stream.seek(0)
        first, second = stream.read().splitlines()
    assert first.startswith("<6>{")
    assert second.startswith("<3>{")
    assert json.loads(second.removeprefix("<3>"))["msg"] == "two"


def test_a_level_hides_what_is_below() -> None:
    assert len(lines("json", "debug")) == 2
    assert lines("json", "error") == []


def test_a_throttled_line_says_how_many_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = ThrottledLog(logging.getLogger("flood"), 10, clock=lambda: now)
    for _ in range(3):
        log.warning("frame refused", key="bad_cbor", host="a.example")
    log.warning("frame refused", key="bad_car")
    now = 11.0
    log.warning("frame refused", key="bad_cbor", error=UnavailableError("gone"))
    log.error("frame failed", error=KeyError("did"))
    fields = [vars(record) for record in caplog.records if record.name == "flood"]
    assert [one.get("suppressed") for one in fields] == [None, None, 2, None]
    assert fields[0]["host"] == "a.example"
    assert (fields[2]["error"], fields[2]["exc_info"]) == ("gone", None)
    assert (fields[3]["error"], fields[3]["levelname"]) == ("'did'", "ERROR")
    assert fields[3]["exc_info"][0] is KeyError


def test_a_log_without_room_is_named_and_stops_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, path = get("test"), tmp_path / "log"
    with open("/dev/full", "w", buffering=1) as full, path.open("w") as good:
        configure("info", "json", stream=full)
        assert log_trouble() == ""
        log.info("lost")
        assert log_trouble() == "No space left on device"
        os.dup2(good.fileno(), full.fileno())  # as if there were room again
        log.info("written")
        assert log_trouble() == ""
    assert path.read_text().splitlines()[-1].endswith('"msg": "written"}')
    assert capsys.readouterr().err == ""
