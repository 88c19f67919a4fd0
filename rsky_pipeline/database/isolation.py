"""Isolates entries that PostgreSQL or our own code rejects, so that the rest of a batch is applied.

A batch that fails is split in halves, recursively, until single entries are left; an entry that
fails alone is a culprit. The class of the error does not matter, with one exception: errors of the
connection, the server or the schema (`DatabaseError.follows_data` is false) hit every entry and are
raised, so that the caller retries the batch instead of dead-lettering all of it.

For example, one unstorable record among 1,000 costs about 20 failed or smaller transactions, and
999 records are stored.
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

CONFLICT_PAUSE_SECONDS = 0.05  # upper bound after the first conflict; grows linearly

# An error other than BadDataError that hits each of at least this many entries has a common cause,
# for example a missing function or a defect of a new version. Dead-lettering all entries for it
# would empty the streams into the dead letters, so it is raised.
SYSTEMIC = 10


@dataclass(frozen=True, slots=True)
class Culprit(Generic[Entry]):
    """A rejected entry; `reason` is `bad_data` or `internal_error`, `message` the error."""

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
    """Apply entries in order; returns the rejected ones after all others are applied.

    `apply` must be safe to repeat. Raises errors that do not follow the data, and an error that
    hits all of SYSTEMIC or more entries; the batch may then be partly applied. `source` returns the
    owner of an entry: if all entries have one owner, for example a backfilled repo that fills whole
    batches, the error is its own and not systemic. A caller that has retried a systemic error for
    long enough passes `blame_all`, which returns all entries as culprits.
    `earlier` are the owners of preceding entries that all failed too: they count as hit, for
    callers that apply few entries at a time.
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
    """Run a transaction up to `tries` times while it conflicts with others; blocks between tries.

    Raises the last TransactionConflictError; the caller should then back off for longer.
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
    """Collect culprits; returns a failure that may be systemic, or None."""
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
    except Exception as error:  # noqa: BLE001 - one entry must not stop the others
        failure, culprit = error, ("internal_error", described(error))
    else:
        return None
    if len(entries) > 1:
        middle = len(entries) // 2
        first = _apply(entries[:middle], apply, culprits, repeated=True)
        return _apply(entries[middle:], apply, culprits, repeated=True) or first
    if failure is not None and not repeated:  # a single entry, not retried yet: may be transient
        return _apply(entries, apply, culprits, repeated=True)
    culprits.append(Culprit(entries[0], *culprit))
    return failure


def _described(error: DatabaseError) -> str:
    return f"{error}, in: {error.statement}" if error.statement else str(error)
