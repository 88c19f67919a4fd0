"""The order in which a repo's changes are applied, whether to a stream or to PostgreSQL."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from rsky_pipeline.repos.repo import RepoPaths

MOST_ROUNDS = 5  # attempts to close while older states keep arriving
_END = (None, None)


class StillChangingError(Exception):
    """Older states kept arriving while a repo was applied: retry later."""


class RepoSink(Protocol):
    """Destination of one repo's changes; each call returns once they are durable there."""

    async def absent(self, after: str) -> list[str]:
        """Return stored paths after `after` that are older than the repo and not in its tree.

        Paths ascend. A call may return one page of them; an empty list ends the paging.
        """

    async def delete(self, paths: Sequence[str]) -> None:
        """Delete records with the repo's rev."""

    async def put(self) -> None:
        """Put all wanted records of the tree with the repo's rev."""

    async def close(self) -> bool:
        """Set the complete rev to the repo's rev.

        Returns False, changing nothing, if older states have been stored meanwhile.
        """


async def apply_repo(paths: RepoPaths, sink: RepoSink, named: Iterable[str] = ()) -> int:
    """Bring the stored rows of an account to the state of its repo; return the number of deletions.

    `named` are paths reported as deleted, for example by a commit that could not be applied: each
    is deleted unless the tree holds it.

    Closing must come last. It sets the complete rev, and from then on the indexer rejects every
    older state of a record as stale, from any source and however late. A record left out before
    closing would therefore never be repaired: later jobs compare the complete rev and skip the
    repo.

    Deletions come before creates. If the worker is killed in between, the next attempt applies
    everything again, and meanwhile this repo has not restored a deleted record. The two cannot
    conflict, because a path either is in the tree or is not.

    Between the query for older rows and the close, live events queued earlier may store older
    states. PostgreSQL detects that under the locks of the account: `close` returns False and the
    round is repeated. A stream cannot detect it. The closing event follows all live events queued
    before it, but not the events that another worker has already read and not yet applied. So the
    job comes back once the closing event is applied, and checks for older rows (`RepoJob.settles`).

    Raises StillChangingError, and the errors of the sink. Safe to repeat.
    """
    gone = list(absent(sorted(set(named)), paths)) if named else []
    if gone:
        await sink.delete(gone)
    deleted = len(gone)
    for number in range(MOST_ROUNDS):
        after = ""
        while page := await sink.absent(after):
            await sink.delete(page)
            deleted += len(page)
            after = page[-1]
        if number == 0:
            await sink.put()
        if await sink.close():
            return deleted
    raise StillChangingError(f"older states of {paths.repo.commit.did} keep arriving")


def absent(wanted: Iterable[str], held: RepoPaths) -> Iterator[str]:
    """Yield the paths of `wanted`, which ascend by bytes, that a tree does not hold.

    Paths are ASCII, so Python's string order is byte order; a path that is not ASCII is in no tree.
    """
    tree = iter(held)
    current, _ = next(tree, _END)
    for path in wanted:
        while current is not None and current < path:
            current, _ = next(tree, _END)
        if current != path:
            yield path
