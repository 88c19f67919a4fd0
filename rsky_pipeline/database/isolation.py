"""Keeps one bad entry from stopping the others, for every batch that goes to PostgreSQL.

A transaction that PostgreSQL refuses, or that our own code cannot make, is halved until the
culprits are found; everything else is applied. The class of the error does not matter: an entry
that fails again when it is alone is a culprit. Only errors of the connection, the server or the
schema are waited for (`DatabaseError.follows_data`): they are raised.
"""

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rsky_pipeline.database.errors import BadDataError, DatabaseError, TransactionConflictError
from rsky_pipeline.runtime.errors import described

Entry = TypeVar("Entry")
Result = TypeVar("Result")

CONFLICT_PAUSE_SECONDS = 0.05  # at most, after the first conflict; grows with each

# A failure that is not plainly about values, and that hits every one of this many entries, is not
# about one of them: a function that is missing, a defect of a new version.
SYSTEMIC = 10


@dataclass(frozen=True, slots=True)
class Culprit(Generic[Entry]):
    """An entry that cannot be applied, and why; `reason` is `bad_data` or `internal_error`."""

    entry: Entry
    reason: str
    message: str


def apply_isolated(
    entries: Sequence[Entry],
    apply: Callable[[Sequence[Entry]], object],
    *,
    source: Callable[[Entry], object] = lambda entry: entry,
    blame_all: bool = False,
    earlier: Collection[object] = (),
) -> list[Culprit[Entry]]:
    """Apply entries in order; return those that cannot be, after everything else is applied.

    `apply` must be repeatable. Raises what is not about the data, and what fails for all of many
    entries; then only a part may have been applied. `source` names whose entry it is: one source
    (a repo that is brought in fills whole batches) never makes a failure systemic. `blame_all` is
    for the caller who has waited long enough for what fails for all of them. `earlier` are the
    sources of the entries before these, all of which failed as well: where few entries come at a
    time, they tell what is systemic.
    """
    culprits: list[Culprit[Entry]] = []
    failure = _apply(entries, apply, culprits)
    hits_all = len(culprits) == len(entries) and len(entries) + len(earlier) >= SYSTEMIC
    if failure is None or not hits_all or blame_all:
        return culprits
    if len({*earlier, *(source(entry) for entry in entries)}) > 1:
        raise failure
    return culprits


def retry_conflicts(transaction: Callable[[], Result], tries: int) -> Result:
    """Run a transaction again after a conflict with another one; blocking, with short pauses.

    Raises the last TransactionConflictError, after which the caller should pause for longer.
    """
    for attempt in range(1, tries):
        try:
            return transaction()
        except TransactionConflictError:
            time.sleep(random.uniform(0.0, CONFLICT_PAUSE_SECONDS * attempt))
    return transaction()


def _apply(
    entries: Sequence[Entry],
    apply: Callable[[Sequence[Entry]], object],
    culprits: list[Culprit[Entry]],
    *,
    repeated: bool = False,
) -> Exception | None:
    """Return the last failure that may be systemic, None if there was none."""
    failure: Exception | None = None
    culprit: tuple[str, str]
    try:
        apply(entries)
    except BadDataError as error:
        culprit = ("bad_data", _described(error))
    except DatabaseError as error:
        if not error.follows_data:
            raise
        failure, culprit = error, ("internal_error", _described(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop the others
        failure, culprit = error, ("internal_error", described(error))
    else:
        return None
    if len(entries) > 1:
        middle = len(entries) // 2
        first = _apply(entries[:middle], apply, culprits, repeated=True)
        return _apply(entries[middle:], apply, culprits, repeated=True) or first
    if failure is not None and not repeated:  # alone from the start: it may have been a moment's
        return _apply(entries, apply, culprits, repeated=True)
    culprits.append(Culprit(entries[0], *culprit))
    return failure


def _described(error: DatabaseError) -> str:
    return f"{error}, in: {error.statement}" if error.statement else str(error)
