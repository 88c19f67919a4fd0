"""How this program was started: from one executable file, or as an installed package."""

import sys
import zipfile
from pathlib import Path


def program_file() -> Path | None:
    """Return the executable file (`make binary`) that runs, or None for an installed package."""
    path = Path(sys.argv[0]).absolute()
    return path if path.is_file() and zipfile.is_zipfile(path) else None


def program_command() -> tuple[str, ...]:
    """Return how to start this program again, before its arguments."""
    file = program_file()
    if file is not None:
        return (sys.executable, str(file))
    return (sys.executable, "-m", "rsky_pipeline")
