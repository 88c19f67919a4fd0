"""Which build of the program runs: the commit, as far as the installation tells."""

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

UNKNOWN = "unknown"
_DIGITS = 12


@cache
def commit() -> str:
    """Return the first digits of the commit, or `unknown`.

    It is in what pip recorded for an installation from git, or in the working copy we run from.
    """
    found = _from_installer() or _from_working_copy(Path(__file__).resolve().parents[2])
    return found[:_DIGITS] if found else UNKNOWN


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
