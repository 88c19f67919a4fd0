"""Accounts that an operator names, from arguments or a file. No network here."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rsky_pipeline.atproto.syntax import is_did

_EXAMPLES = 5
_MAX_LINE = 10_000  # characters
_METHODS = ("did:plc:", "did:web:")


@dataclass(slots=True)
class Refused:
    """What names no account that can be fetched: how many, and the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        """Note one."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(what[:200])


def valid(names: Iterable[str], refused: Refused) -> Iterator[str]:
    """Yield DIDs of the two methods that accounts have; what is none is noted."""
    for name in names:
        did = name.strip()
        if did.startswith(_METHODS) and is_did(did):
            yield did
        elif did:
            refused.add(did)


def from_file(path: Path) -> Iterator[str]:
    """Yield the names in a CSV file: of the column `did` if there is one, else the first.

    A file with a DID on each line is one too. Raises OSError.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        rows = csv.reader(line for line in lines if len(line) <= _MAX_LINE)
        column = 0
        for number, row in enumerate(rows):
            names = [cell.strip().lower() for cell in row]
            if number == 0 and "did" in names:
                column = names.index("did")
            elif len(row) > column and not row[column].startswith("#"):
                yield row[column]
