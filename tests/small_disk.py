"""A file system of a few megabytes or files, to be filled up; needs root, which may mount one."""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(slots=True)
class SmallDisk:
    """A mounted tmpfs."""

    folder: Path

    def use_up_inodes(self) -> None:
        """Make files until no more can be made."""
        self._until_full(lambda number: (self.folder / f"filler.{number}").touch())

    def use_up_bytes(self) -> None:
        """Write until nothing more can be written."""
        with (self.folder / "filler.bytes").open("ab", buffering=0) as file:
            self._until_full(lambda _: file.write(bytes(4096)))

    def make_room(self) -> None:
        """Remove what filled it up."""
        for path in self.folder.glob("filler.*"):
            path.unlink()

    @staticmethod
    def _until_full(step: Callable[[int], object]) -> None:
        number = 0
        while True:
            try:
                step(number)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return
            number += 1


@contextmanager
def small_disk(*, size: str = "64m", inodes: int = 1_000) -> Iterator[SmallDisk]:
    """Mount a file system of this size; skips the test where that is not possible."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = Path(tempfile.mkdtemp(prefix="rsky-small-", dir="/tmp"))
    options = f"size={size},nr_inodes={inodes},mode=0711"
    mount = ["mount", "-t", "tmpfs", "-o", options, "rsky-test", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        try:
            yield SmallDisk(folder)
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    finally:
        with suppress(OSError):
            shutil.rmtree(folder)
