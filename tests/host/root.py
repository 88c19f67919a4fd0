"""A Debian 12 with systemd, PostgreSQL 15, Redis 7 and Python 3.11, made once by debootstrap.

Nothing is ever changed in it: each run boots an overlay (`container.py`).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

VARIABLE = "RSKY_TEST_SYSTEMD_ROOT"
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
PYTHON = (3, 11)  # of that Debian: a program file is made for one version
# What a bare host of an operator has: the two stores, and nothing of ours.
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "postgresql", "redis-server", "openssl")
# What the root must hold, with the package that brings it.
PARTS = {
    "usr/lib/systemd/systemd": "systemd",
    "usr/bin/dbus-daemon": "dbus",
    "usr/bin/python3.11": "python3",
    "usr/lib/postgresql/15/bin/postgres": "postgresql",
    "usr/bin/redis-server": "redis-server",
    "usr/bin/openssl": "openssl",
}
# What this machine must have, with Debian's package of it.
PROGRAMS = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "mount": "mount",
}


def place() -> Path:
    """Return where the root is, or will be made."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "rsky-pipeline" / f"debian-{SUITE}"


def missing() -> list[str]:
    """Return a sentence for everything without which the tests cannot run here."""
    found = []
    if os.geteuid() != 0:
        found.append("a container needs root: sudo make test-host")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    for program, package in PROGRAMS.items():
        if program == "debootstrap" and _is_there(place()):
            continue
        if shutil.which(program, path=path) is None:
            found.append(f"there is no {program}: apt-get install {package}")
    if sys.version_info[:2] != PYTHON and not os.environ.get("RSKY_TEST_BINARY"):
        found.append(
            f"Debian 12 has Python {PYTHON[0]}.{PYTHON[1]}, and program files are made for the one "
            "that runs: use that one (make PYTHON=python3.11), or name a file of `make binary` in "
            "RSKY_TEST_BINARY"
        )  # fmt: skip
    if _is_there(place()):
        for part, package in PARTS.items():
            if not (place() / part).exists():
                found.append(
                    f"{place()} lacks {part}: chroot {place()} apt-get install {package}, or name "
                    f"another folder in {VARIABLE}"
                )
    return found


def ready(tell: Callable[[str], None] = print) -> Path:
    """Return the root; it is made if it is not there. Raises CalledProcessError."""
    root = place()
    if _is_there(root):
        tell(f"using the Debian in {root}")
        return root
    unfinished = root.with_name(f"{root.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tell(f"making a Debian in {root}: about 700 MB, two to four minutes")
    command = [
        "debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE,
        str(unfinished), MIRROR,
    ]  # fmt: skip
    with (root.with_name(f"{root.name}.log")).open("wb") as log:
        try:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
        except subprocess.CalledProcessError:
            tell(f"debootstrap failed; the reason is at the end of {log.name}")
            raise
    shutil.rmtree(unfinished / "var/cache/apt/archives", ignore_errors=True)
    unfinished.rename(root)
    return root


def _is_there(root: Path) -> bool:
    return (root / "etc/debian_version").exists()
