"""A log file that is rotated, renamed, or grows; and what a hang-up means without one."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rsky_pipeline.runtime.log_file import LogFile, open_private


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "supervisor.log"


@pytest.fixture
def descriptor(path: Path) -> Iterator[int]:
    found = open_private(path)
    yield found
    os.close(found)


@pytest.mark.parametrize("read", [False, True])
def test_a_fifo_is_no_log(path: Path, read: bool) -> None:
    """Opening it would wait for whoever reads it."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if read else None
    with pytest.raises(OSError, match="It is a FIFO"):
        open_private(path)
    if reader is not None:
        os.close(reader)


def test_a_log_is_private_also_one_that_was_not(path: Path) -> None:
    path.touch(0o644)
    path.chmod(0o644)
    os.close(open_private(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_hang_up_reopens_a_renamed_file(path: Path, descriptor: int) -> None:
    log = LogFile(descriptor)
    os.write(descriptor, b"before\n")
    old = path.rename(path.with_name("old"))
    os.write(descriptor, b"between\n")
    assert not log.hang_up()
    os.write(descriptor, b"after\n")
    assert (old.read_text(), path.read_text()) == ("before\nbetween\n", "after\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_others_follow_the_name(path: Path, descriptor: int) -> None:
    log = LogFile(descriptor)
    log.follow()
    path.rename(path.with_name("old"))
    log.follow()
    os.write(descriptor, b"after\n")
    log.follow()
    assert path.read_text() == "after\n"


def test_our_own_log_is_bounded(path: Path, descriptor: int) -> None:
    log, other = LogFile(descriptor), LogFile(descriptor)
    for number in range(5):
        os.write(descriptor, b"%d" % number * 60)
        log.follow(path, 100)
        other.follow(path, 100)
    sizes = {each.name: each.stat().st_size for each in path.parent.iterdir()}
    assert sizes == {"supervisor.log": 60, "supervisor.log.1": 120}
    log.follow(path.with_name("another.log"), 1)
    assert len(list(path.parent.iterdir())) == 2


def test_a_folder_that_is_gone_ends_nothing(path: Path, descriptor: int) -> None:
    log = LogFile(descriptor)
    path.unlink()
    path.parent.rename(path.parent.with_name("gone"))
    log.follow()
    assert not log.hang_up()
    assert os.write(descriptor, b"still there")


def test_a_file_without_a_name_is_left_alone(tmp_path: Path) -> None:
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        log = LogFile(file.fileno())
        assert log.path is None
        log.follow()
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_only_a_lost_terminal_stops() -> None:
    reading, writing = os.pipe()
    try:
        log = LogFile(writing)
        log.follow()
        assert log.path is None
    finally:
        os.close(reading)
        os.close(writing)
