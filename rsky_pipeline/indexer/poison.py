"""Keeps one bad entry from stopping the others.

A transaction that PostgreSQL refuses because of its data, or that our own code cannot make, is
halved until the culprits are found; everything else is applied. Errors that are not about the data
(no connection, a lock, a missing table) are not poison: they are raised and tried again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rsky_pipeline.database.errors import BadData, DatabaseError

Entry = TypeVar("Entry")

# A failure of our own that hits every one of this many entries is not about one of them.
SYSTEMIC = 10


@dataclass(frozen=True, slots=True)
class Culprit(Generic[Entry]):
    """An entry that cannot be applied, and why."""

    entry: Entry
    reason: str
    message: str


def apply_isolated(
    entries: Sequence[Entry], apply: Callable[[Sequence[Entry]], None]
) -> list[Culprit[Entry]]:
    """Apply entries in order; return those that cannot be, after everything else is applied.

    Raises what is not about the data, and what is about all of many entries; then only a part may
    have been applied, which is no harm since applying can be repeated.
    """
    culprits: list[Culprit[Entry]] = []
    failure = _apply(entries, apply, culprits)
    if failure is not None and len(culprits) == len(entries) >= SYSTEMIC:
        raise failure
    return culprits


def _apply(
    entries: Sequence[Entry],
    apply: Callable[[Sequence[Entry]], None],
    culprits: list[Culprit[Entry]],
) -> Exception | None:
    """Return the last failure of our own code, None if there was none or the data was at fault."""
    try:
        apply(entries)
    except BadData as error:
        failure: Exception | None = None
        culprit = ("bad_data", str(error))
    except DatabaseError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop the others
        failure = error
        culprit = ("internal_error", f"{type(error).__name__}: {error}")
    else:
        return None
    if len(entries) == 1:
        culprits.append(Culprit(entries[0], *culprit))
        return failure
    middle = len(entries) // 2
    first = _apply(entries[:middle], apply, culprits)
    return _apply(entries[middle:], apply, culprits) or first
