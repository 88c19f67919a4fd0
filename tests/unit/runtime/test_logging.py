"""Log lines for people and for machines."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from rsky_pipeline.runtime.logging import Throttled, configure


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


def test_a_level_hides_what_is_below() -> None:
    assert len(lines("json", "debug")) == 2
    assert lines("json", "error") == []


def test_throttled_lines_are_counted() -> None:
    now = 0.0
    throttled = Throttled(10, clock=lambda: now)
    assert [throttled.allow("a") for _ in range(3)] == [0, None, None]
    assert throttled.allow("b") == 0
    now = 11.0
    assert throttled.allow("a") == 2
