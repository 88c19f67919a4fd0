"""Which files there are to load, and which go together into one task. No database here."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".car"
TASK_BYTES = 4 * 1024 * 1024  # of the files of one task, unless a single one is larger
TASK_FILES = 100


@dataclass(frozen=True, slots=True)
class CarFile:
    """A file as it was found; another size or time means another content."""

    path: str
    size: int
    mtime_ns: int


def scan(directory: Path) -> Iterator[CarFile]:
    """Yield all CAR files below a directory in the order of their paths. Raises OSError.

    Symbolic links to files are followed, links to directories are not.
    """
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from scan(Path(entry.path))
        elif entry.name.endswith(SUFFIX) and entry.is_file():
            status = entry.stat()
            yield CarFile(os.path.abspath(entry.path), status.st_size, status.st_mtime_ns)


def tasks(files: Iterable[CarFile]) -> Iterator[list[CarFile]]:
    """Put files together, in their order, so that many small repos share their transactions."""
    together: list[CarFile] = []
    size = 0
    for file in files:
        if together and (size + file.size > TASK_BYTES or len(together) >= TASK_FILES):
            yield together
            together, size = [], 0
        together.append(file)
        size += file.size
    if together:
        yield together
