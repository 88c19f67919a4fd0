"""This program as a process: one executable file or an installed package, and its file limit."""

import ctypes
import os
import resource
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

WANTED_FILES = 65_536
SCRIPT = "rsky-pipeline"  # of an installed package
MODULE = "rsky_pipeline"


def program_file() -> Path | None:
    """Return the running executable file (`make binary`), or None for an installed package."""
    path = Path(sys.argv[0]).absolute()
    return path if path.is_file() and zipfile.is_zipfile(path) else None


def program_command() -> tuple[str, ...]:
    """Return the command that starts this program, without arguments.

    It names the file by which the program was called, so that `deploy` finds what to replace.
    """
    called = Path(sys.argv[0]).absolute()
    if program_file() is not None or (called.name == SCRIPT and called.is_file()):
        return (sys.executable, str(called))
    return (sys.executable, "-P", "-m", MODULE)


def started_program(words: Sequence[str], directory: Path) -> Path | None:
    """Return the program file of a command line, without arguments, that was begun in a directory.

    `python -m` names none: it is the script that was installed beside that interpreter.
    """
    file = directory / words[-1] if words else directory
    if tuple(words[-2:]) == ("-m", MODULE) and "/" in words[0]:
        file = (directory / words[0]).with_name(SCRIPT)
    return file if file.is_file() else None


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without our packages, to start another program file (`deploy`).

    An executable file passes its packages to its workers in PYTHONPATH, where they would shadow
    those of the other file.
    """
    if program_file() is None:
        return dict(environment)
    own = str(Path(__file__).resolve().parents[2])
    kept = [
        entry
        for entry in environment.get("PYTHONPATH", "").split(os.pathsep)
        if entry and os.path.realpath(entry) != own
    ]
    cleaned = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    return {**cleaned, "PYTHONPATH": os.pathsep.join(kept)} if kept else cleaned


def give_memory_back() -> None:
    """Return free pages to the system, also those between others: it takes less than 1 ms.

    By itself glibc returns only the end of its heap.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us; children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
