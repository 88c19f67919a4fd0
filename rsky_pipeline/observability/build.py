"""The version, commit and build time of the running program, as far as they are recorded.

An executable file (`make binary`) has them in `build.json`. Otherwise the commit is the one that
pip recorded for an installation from git, or that of the working copy, without a build time.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib import import_module, resources
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from rsky_pipeline import __version__

UNKNOWN = "unknown"
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Build:
    """A build; `commit` and `built_at` (RFC 3339) are `unknown` where nothing records them."""

    version: str
    commit: str
    built_at: str

    def describe(self) -> str:
        """Return one line for people."""
        return f"{self.version} (commit {self.commit}, built {self.built_at})"


@cache
def build() -> Build:
    """Return the build that runs."""
    recorded = _from_build() or {}
    return Build(
        version=recorded.get("version", __version__),
        commit=recorded.get("commit") or commit_of_installation(),
        built_at=recorded.get("built_at", UNKNOWN),
    )


def commit() -> str:
    """Return the first digits of the commit, or `unknown`."""
    return build().commit


def problem_of_readers() -> str:
    """Return why the compiled readers are not in use, and the remedy; empty if they are."""
    compiled = import_module("rsky_pipeline.atproto.compiled")
    if compiled.COMPILED:
        return ""
    if compiled.STALE:
        return "compiled readers are older than their source: run make"
    return "the compiled readers are missing: reading frames and repos takes longer"


def commit_of_installation() -> str:
    """Return the commit that the installer recorded or the working copy has, or `unknown`."""
    found = _from_installer() or _from_working_copy(Path(__file__).resolve().parents[2])
    return found[:_DIGITS] if found else UNKNOWN


def _from_build() -> dict[str, str] | None:
    try:
        text = resources.files("rsky_pipeline").joinpath("build.json").read_text("utf-8")
        recorded = json.loads(text)
    except (OSError, ValueError):
        return None
    if not isinstance(recorded, dict):
        return None
    return {name: value for name, value in recorded.items() if isinstance(value, str)}


def _from_installer() -> str | None:
    try:
        recorded = distribution("rsky-pipeline").read_text("direct_url.json")  # PEP 610
        value = json.loads(recorded or "{}").get("vcs_info", {}).get("commit_id")
    except (PackageNotFoundError, ValueError, AttributeError):
        return None
    return value if isinstance(value, str) else None


def _from_working_copy(folder: Path) -> str | None:
    try:
        git = folder / ".git"
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        loose = git / name
        if loose.is_file():
            return loose.read_text().strip()
        for line in (git / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return line.partition(" ")[0]
    except (OSError, UnicodeDecodeError):
        return None
    return None
