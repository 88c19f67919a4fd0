"""Checks the system requirements of `make`, before the virtual environment; runs on any Python 3.

On Debian and Ubuntu the module that makes virtual environments and the headers of Python are
packages of their own, which the messages of pip and venv do not name.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig

OLDEST = (3, 11)
# Installation commands by the ID of os-release(5); the README has the same lines.
INSTALL = {
    "debian": "sudo apt-get install git make gcc python3 python3-venv python3-dev",
    "ubuntu": "sudo apt-get install git make gcc python3 python3-venv python3-dev",
    "fedora": "sudo dnf install git make gcc python3 python3-devel",
    "darwin": "xcode-select --install; brew install python@3.13",
}


def needed() -> list[str]:
    """Return missing packages that the virtual environment requires."""
    found = [f"the module {name}" for name in ("venv", "ensurepip") if not _has_module(name)]
    if tuple(sys.version_info) < OLDEST:
        found.append("Python 3.11 or later (choose one with: make PYTHON=/path/to/python3.11)")
    return found


def needed_to_compile() -> list[str]:
    """Return missing packages of the compiled readers; the program works without them, slower."""
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    found = [] if os.path.exists(header) else [header]
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if shutil.which(compiler.split()[0]) is None and shutil.which("cc") is None:
        found.append("a C compiler")
    return found


def system(release: str = "/etc/os-release") -> str | None:
    """Return the system's key of INSTALL, its own or that of the system it is like, or None."""
    if sys.platform == "darwin":
        return "darwin"
    try:
        with open(release, encoding="utf-8") as file:
            fields = dict(line.rstrip().split("=", 1) for line in file if "=" in line)
    except OSError:
        return None
    names = [fields.get(name, "").strip('"') for name in ("ID", "ID_LIKE")]
    return next((name for name in " ".join(names).split() if name in INSTALL), None)


def main() -> int:
    """Print missing packages and the command to install them; returns 2 if `make` cannot go on."""
    essential, compiling = needed(), needed_to_compile()
    if not essential and not compiling:
        return 0
    print(f"missing for {sys.executable}: {', '.join(essential + compiling)}")
    known = system()
    for line in [INSTALL[known]] if known else sorted(set(INSTALL.values())):
        print(f"    {line}")
    if essential:
        return 2
    print("going on without the compiled readers: everything works, slower")
    return 0


def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    sys.exit(main())
