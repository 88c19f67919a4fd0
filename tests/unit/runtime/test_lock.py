"""A lock lives as long as any process that inherited it, and its holders are found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime import lock as locks
from rsky_pipeline.runtime.errors import PermissionDeniedError, UnavailableError
from rsky_pipeline.supervisor import ownership
from rsky_pipeline.supervisor.control import open_socket
from tests.small_disk import small_disk


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
    assert locks.holders(path) == [os.getpid()]
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(lock.descriptor,)) as child:
        assert locks.holders(path) == [os.getpid(), child.pid]
        lock.let_go()
        assert locks.is_held(path)
        assert locks.holders(path) == [child.pid]
        child.communicate(b"\n")
    assert not locks.is_held(path)
    assert locks.holders(path) == []


def test_a_holder_whose_other_files_come_and_go_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.lock"
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]  # listed before the lock's
    lock = locks.acquire(path)
    assert lock is not None
    read = os.readlink

    def read_and_close(file: Path) -> str:
        if others and Path(file).parent.parent.name == str(os.getpid()):
            os.close(others.pop())
        return read(file)

    monkeypatch.setattr(os, "readlink", read_and_close)
    assert locks.holders(path) == [os.getpid()]
    assert not others
    lock.let_go()


def test_who_has_the_file_open_without_the_lock_is_no_holder(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    lock = locks.acquire(path)
    assert lock is not None
    command = [sys.executable, "-c", "import sys; file = open(sys.argv[1]); print(); input()"]
    with subprocess.Popen(
        [*command, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as looks:
        assert looks.stdout is not None
        looks.stdout.readline()
        assert locks.holders(path) == [os.getpid()]
        looks.communicate(b"\n")
    lock.let_go()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionDeniedError, match=r"file/a\.lock.*choose another run_dir"):
        locks.acquire(tmp_path / "file" / "a.lock")


async def test_a_disk_without_inodes_is_no_final_error(tmp_path: Path) -> None:
    """A unit that ends with it is started again, and there may be room by then."""
    with small_disk(inodes=20) as small:
        small.use_up_inodes()
        with pytest.raises(UnavailableError, match=r"a\.lock: No space left .*df -i"):
            locks.acquire(small.folder / "a.lock")
        with pytest.raises(UnavailableError, match=r"pipeline\.sock.*df -i"):
            open_socket(small.folder / "pipeline.sock")
        configured = Settings(data_dir=small.folder / "data", run_dir=small.folder / "run")
        with pytest.raises(UnavailableError, match="No space left"):
            ownership.take(configured, ["indexer"], embeds=True)
        small.make_room()
        lock = locks.acquire(small.folder / "a.lock")
        assert lock is not None
        lock.let_go()
        ownership.take(configured, ["indexer"], embeds=True).close()
