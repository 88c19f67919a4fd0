"""Detects whether this program runs from one executable file or as an installed package."""

import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path


def program_file() -> Path | None:
    """Return the running executable file (`make binary`), or None for an installed package."""
    path = Path(sys.argv[0]).absolute()
    return path if path.is_file() and zipfile.is_zipfile(path) else None


def program_command() -> tuple[str, ...]:
    """Return the command that starts this program, without arguments."""
    file = program_file()
    if file is not None:
        return (sys.executable, str(file))
    return (sys.executable, "-P", "-m", "rsky_pipeline")


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
