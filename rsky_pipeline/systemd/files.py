"""The files that are shipped, where each belongs, and putting them there or taking them away.

Units name `/usr/local/bin/rsky-pipeline`; another path is written into them as they are installed.
Files that an operator edits are created and never overwritten or removed.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

STANDARD_PROGRAM = Path("/usr/local/bin/rsky-pipeline")
UNIT_FOLDER = Path("etc/systemd/system")
CONFIGURATION = Path("etc/rsky-pipeline/rsky-pipeline.toml")
_BEGINNING = "# Installed by `rsky-pipeline systemd install`; changes belong into a drop-in.\n"

State = Literal["missing", "current", "differs"]


@dataclass(frozen=True, slots=True)
class Shipped:
    """A file of ours: its place below the root of the system, and its contents."""

    path: Path
    text: str
    kept: bool = False  # the operator's own once it exists

    def state(self, root: Path) -> State:
        """Return its state on this system. Raises OSError."""
        try:
            found = (root / self.path).read_text()
        except FileNotFoundError:
            return "missing"
        return "current" if found == self.text or self.kept else "differs"


def shipped(program: Path = STANDARD_PROGRAM) -> list[Shipped]:
    """Return every file, with the units starting this program."""
    return sorted(_files(program), key=lambda file: file.path)


def _files(program: Path) -> Iterator[Shipped]:
    for source in resources.files("rsky_pipeline.systemd").joinpath("units").iterdir():
        text = source.read_text("utf-8")
        name = source.name
        if name.endswith((".service", ".target")):
            text = _BEGINNING + text.replace(f"={STANDARD_PROGRAM} ", f"={program} ")
            yield Shipped(UNIT_FOLDER / name, text)
        elif name.endswith((".sysusers", ".tmpfiles")):
            stem, _, kind = name.rpartition(".")
            yield Shipped(Path("etc", f"{kind}.d", f"{stem}.conf"), text)
        elif name == CONFIGURATION.name:
            yield Shipped(CONFIGURATION, text, kept=True)


def install(root: Path, files: list[Shipped], *, dry_run: bool) -> list[str]:
    """Write files that are missing or differ; return a line for each change. Raises OSError."""
    done = []
    for file in files:
        state = file.state(root)
        place = root / file.path
        if state == "current":
            continue
        done.append(f"{'create' if state == 'missing' else 'replace'} {place}")
        if not dry_run:
            _write(place, file.text)
    return done


def uninstall(root: Path, files: list[Shipped], *, dry_run: bool) -> list[str]:
    """Remove the installed files; return a line for each change. Raises OSError.

    The operator's own files, data, account and directories stay.
    """
    done = []
    for file in files:
        place = root / file.path
        if file.kept or not place.exists():
            continue
        done.append(f"remove {place}")
        if not dry_run:
            place.unlink()
    return done


def _write(place: Path, text: str) -> None:
    """Write a file that systemd may read at any moment: complete, or not at all."""
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    unfinished = place.with_name(f".{place.name}.new")
    unfinished.write_text(text)
    unfinished.chmod(0o644)
    os.replace(unfinished, place)
