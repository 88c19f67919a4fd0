"""Isolates entries that PostgreSQL or our own code rejects, so that the rest of a batch is applied.

A batch that fails is split in halves, recursively, until single entries are left; an entry that
fails alone is a culprit. The class of the error does not matter, with one exception: errors of the
connection, the server or the schema (`DatabaseError.follows_data` is false) hit every entry and are
raised, so that the caller retries the batch instead of dead-lettering all of it.

For example, one unstorable record among 1,000 costs about 20 failed or smaller transactions, and
999 records are stored.

An error of another class may hit every entry too, for example where a function is missing or a new
version has a defect. No entry alone shows that, only a row of them: `Isolation` remembers it from
batch to batch.

A conflict (a lock, a timeout) is waited for as well, since it follows from others' transactions.
One that lasts may be an entry's own, for example a statement that always exceeds its time:
`Isolation` then cuts the batch a little smaller at each try.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rsky_pipeline.database.errors import BadDataError, DatabaseError, TransactionConflictError
from rsky_pipeline.runtime.errors import described

Entry = TypeVar("Entry")
Result = TypeVar("Result")

CONFLICT_PAUSE_SECONDS = 0.05  # upper bound after the first conflict; grows linearly
SYSTEMIC = 10  # entries of several owners in a row that fail: none of them is to blame
# A batch waits for so long (a function may be missing while somebody upgrades the database), and
# is given up then: it must not stop the others for ever.
SYSTEMIC_SECONDS = 600.0
_STATEMENT_TIMEOUT = "57014"
MAX_CONFLICTING = 2  # pieces of a batch; with more of them, others hold locks on whole tables


@dataclass(frozen=True, slots=True)
class Culprit(Generic[Entry]):
    """A rejected entry; `reason` is `bad_data` or `internal_error`, `message` the error."""

    entry: Entry
    reason: str
    message: str


class Isolation(Generic[Entry]):
    """Applies batches, and gives up no more than a few entries to an error that hits all of them.

    Such an error is systemic: since the last entry that was applied it hit at least SYSTEMIC
    entries of more than one owner. Entries of a single owner, for example a backfilled repo that
    fills whole batches, may all be at fault. Values that PostgreSQL cannot store always are.
    """

    def __init__(
        self, owner: Callable[[Entry], object], patience_seconds: float = SYSTEMIC_SECONDS
    ) -> None:
        """`patience_seconds` bounds the wait of one batch for a systemic error to go away."""
        self._owner = owner
        self._patience = patience_seconds
        self._given_up: deque[object] = deque(maxlen=SYSTEMIC)  # owners, since one was applied
        self._since: float | None = None  # when the present batch met a systemic error first
        self._conflicting_since: float | None = None
        self._piece = 0  # entries of a piece of the present batch; 0: it is not cut

    def apply(
        self, groups: Sequence[Sequence[Entry]], apply: Callable[[Sequence[Entry]], object]
    ) -> list[Culprit[Entry]]:
        """Apply a batch, each group on its own; returns the culprits after all others are applied.

        `apply` must be safe to repeat. Raises errors that do not follow the data, and a systemic
        one as DatabaseError; the batch may then be partly applied. The caller waits and applies
        the same batch again; when it has waited for longer than its patience, all are culprits.
        """
        culprits: list[Culprit[Entry]] = []
        failure: Exception | None = None
        conflicts: list[Sequence[Entry]] = []
        pieces = list(self._cut(groups))
        try:
            for piece in pieces:
                try:
                    failure = _apply(piece, apply, culprits) or failure
                except TransactionConflictError as error:
                    conflicts.append(piece)
                    if not self._piece or len(conflicts) > MAX_CONFLICTING:
                        raise
                    conflict = error
            if conflicts and self._piece > 1:
                raise conflict
        except DatabaseError as error:
            self._since = None  # another error: the wait for a systemic one is over
            self._conflicted(error, max(map(len, pieces)))
            raise
        culprits += [
            Culprit(piece[0], "internal_error", _described(conflict)) for piece in conflicts
        ]
        self._conflicting_since, self._piece = None, 0
        if conflicts:
            return culprits
        if len(culprits) < sum(map(len, groups)):
            self._given_up.clear()
            self._since = None
            return culprits
        hit = [self._owner(one.entry) for one in culprits if one.reason == "internal_error"]
        if failure is not None and self._is_systemic(hit):
            now = time.monotonic()
            self._since = now if self._since is None else self._since
            if now - self._since <= self._patience:
                raise _as_database_error(failure) from failure
        self._given_up.extend(hit)
        self._since = None  # the next batch waits anew
        return culprits

    def _cut(self, groups: Sequence[Sequence[Entry]]) -> Iterator[Sequence[Entry]]:
        for group in groups:
            size = self._piece or len(group)
            for start in range(0, len(group), size or 1):
                yield group[start : start + size]

    def _conflicted(self, error: DatabaseError, largest: int) -> None:
        """After an error of the present batch: cut it smaller if it conflicts for too long.

        A piece a try, so that no call lasts for many times a statement's timeout.
        """
        if not isinstance(error, TransactionConflictError):
            self._conflicting_since, self._piece = None, 0
            return
        now = time.monotonic()
        if self._conflicting_since is None:
            self._conflicting_since = now
        elif now - self._conflicting_since > self._patience:
            self._piece = max(1, largest // 2)

    def _is_systemic(self, hit: Sequence[object]) -> bool:
        owners = [*self._given_up, *hit]
        return len(owners) >= SYSTEMIC and len(set(owners)) > 1


def apply_isolated(
    entries: Sequence[Entry], apply: Callable[[Sequence[Entry]], object]
) -> list[Culprit[Entry]]:
    """Apply entries in order; returns the culprits, maybe all, after all others are applied.

    For callers that lose nothing with an entry. `apply` must be safe to repeat. Raises errors that
    do not follow the data; the entries may then be partly applied.
    """
    culprits: list[Culprit[Entry]] = []
    if entries:
        _apply(entries, apply, culprits)
    return culprits


def retry_conflicts(transaction: Callable[[], Result], tries: int) -> Result:
    """Run a transaction up to `tries` times while it conflicts with others; blocks between tries.

    A statement that exceeded its time is not run again at once: it has blocked for long already.
    Raises the last TransactionConflictError; the caller should then back off for longer.
    """
    for attempt in range(1, tries):
        try:
            return transaction()
        except TransactionConflictError as error:
            if error.sqlstate == _STATEMENT_TIMEOUT:
                raise
            time.sleep(random.uniform(0.0, CONFLICT_PAUSE_SECONDS * attempt))
    return transaction()


def _apply(
    entries: Sequence[Entry],
    apply: Callable[[Sequence[Entry]], object],
    culprits: list[Culprit[Entry]],
    *,
    repeated: bool = False,
) -> Exception | None:
    """Collect culprits; returns a failure that is not of bad data, or None."""
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


def _as_database_error(failure: Exception) -> DatabaseError:
    return failure if isinstance(failure, DatabaseError) else DatabaseError(described(failure))


def _described(error: DatabaseError) -> str:
    return f"{error}, in: {error.statement}" if error.statement else str(error)
