"""Processor time and memory of a pipeline's processes, by their part in it (Linux)."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from pathlib import Path

from rsky_pipeline.supervisor.spawn import descendants

_TICK = os.sysconf("SC_CLK_TCK")
_PARTS = (
    (re.compile(rb"^postgres: (walwriter|checkpointer|background writer)"), "PostgreSQL: {0}"),
    (re.compile(rb"^postgres: (autovacuum|io|logical|archiver)"), "PostgreSQL: others"),
    (re.compile(rb"^postgres: "), "PostgreSQL: backends"),
    (re.compile(rb"postgres\0-D\0"), "PostgreSQL: others"),
    (re.compile(rb"valkey-server"), "Valkey"),
    (re.compile(rb"\0worker\0(\w+)"), "{0}"),
    (re.compile(rb"\0load-worker\0"), "load"),
    (re.compile(rb"multiprocessing"), "writers"),
    (re.compile(rb"\0run\0"), "supervisor"),
)


def cpu_seconds(roots: Iterable[int], without: Set[int] = frozenset()) -> Counter[str]:
    """Return the processor time so far of the trees below these processes, by part.

    `without` names processes that do not count, such as the backend of the one who measures.

    What ended PostgreSQL backends used is with `PostgreSQL: others`, which waited for them.
    """
    used: Counter[str] = Counter()
    for pid, part in _parts(roots):
        if pid in without:
            continue
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        ticks = fields[11:15] if part.startswith("PostgreSQL") else fields[11:13]
        used[part] += sum(map(int, ticks)) / _TICK  # type: ignore[assignment]
    return used


def processor_seconds(pid: int) -> float:
    """Return the processor time of one process, as fine as the kernel counts it.

    What threads used that have ended is not in it.
    """
    found = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in found) / 1e9


def memory_bytes(roots: Iterable[int]) -> Counter[str]:
    """Return the proportional set size (PSS) of the trees below these processes, by part."""
    used: Counter[str] = Counter()
    for pid, part in _parts(roots):
        with suppress(OSError):  # it has ended meanwhile
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            used[part] += int(re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)[0]) * 1024
    return used


def _parts(roots: Iterable[int]) -> Iterator[tuple[int, str]]:
    for root in roots:
        for pid in (root, *descendants(root)):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            for pattern, name in _PARTS:
                if found := pattern.search(command):
                    yield pid, name.format(*(group.decode() for group in found.groups()))
                    break
