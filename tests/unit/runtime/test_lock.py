"""A lock lives as long as any process that inherited it, and names its holder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsky_pipeline.runtime import lock as locks
from rsky_pipeline.runtime.errors import PermissionDeniedError


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.lock"
    assert not locks.is_held(path)
    first = locks.acquire(path)
    assert first is not None
    assert locks.acquire(path) is None
    assert locks.is_held(path)
    first.let_go()
    first.let_go()
    assert not locks.is_held(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_child_keeps_the_lock_after_us(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    lock = locks.acquire(path)
    assert lock is not None
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(lock.descriptor,)) as child:
        lock.name_holder(child.pid)
        lock.let_go()
        assert locks.is_held(path)
        found = locks.holder(path)
        assert found is not None
        assert found.pid == child.pid
        assert found.runs()
        child.communicate(b"\n")
    assert not locks.is_held(path)
    assert not found.runs()


def test_a_reused_pid_is_not_the_holder() -> None:
    started = locks.start_ticks(os.getpid())
    assert started is not None
    assert locks.Holder(os.getpid(), started).runs()
    assert not locks.Holder(os.getpid(), started - 1).runs()
    assert locks.start_ticks(2**22 + 1) is None


def test_a_shorter_note_replaces_a_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.write_text("x" * 500)
    lock = locks.acquire(path)
    assert lock is not None
    assert locks.holder(path) is None
    lock.name_us()
    found = locks.holder(path)
    assert found is not None
    assert found.pid == os.getpid()
    lock.let_go()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionDeniedError, match=r"file/a\.lock.*choose another run_dir"):
        locks.acquire(tmp_path / "file" / "a.lock")
