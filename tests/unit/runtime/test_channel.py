"""What passes between supervisor and worker arrives as it was."""

import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.channel import (
    decode_event,
    decode_settings,
    encode_event,
    encode_settings,
    read_settings,
)


def changed_settings() -> Settings:
    """Return settings of which no field has its default, as far as types tell how to change it."""
    changes: dict[str, object] = {"data_dir": Path("/a b"), "run_dir": Path("/r"), "redis_url": "x"}
    for item in fields(Settings):
        value = getattr(Settings(), item.name)
        if isinstance(value, bool):
            changes[item.name] = not value
        elif isinstance(value, int):
            changes[item.name] = value + 1
        elif isinstance(value, tuple):
            changes[item.name] = (*value, "ws://127.0.0.1:1")
        elif isinstance(value, str):
            changes[item.name] = value + "é"
    return replace(Settings(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [Settings(), changed_settings()])
def test_settings_survive_the_pipe(settings: Settings) -> None:
    assert decode_settings(encode_settings(settings)) == settings
    read, write = os.pipe()
    os.write(write, encode_settings(settings))
    os.close(write)
    assert read_settings(read) == settings


def test_settings_too_large_for_a_pipe_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 60000"):
        encode_settings(Settings(relay_hosts=("x" * 70_000,)))


def test_an_event_is_one_line() -> None:
    line = encode_event({"event": "exit", "reason": "two\nlines", "path": Path("/x")})
    assert line.count(b"\n") == 1
    assert decode_event(line) == {"event": "exit", "reason": "two\nlines", "path": "/x"}


@pytest.mark.parametrize("line", [b"", b"\xff", b"[1]", b'{"event":1}', b"[" * 100, b"null"])
def test_what_is_no_event_is_ignored(line: bytes) -> None:
    assert decode_event(line) is None
