"""The order in which a repo's changes are made, wherever they go: to a stream or to PostgreSQL."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from rsky_pipeline.repos.repo import RepoPaths

MOST_ROUNDS = 5  # tries to reach a moment in which nothing older than the repo is left


class StillChangingError(Exception):
    """Older states kept arriving while a repo was brought up to date: try again."""


class RepoSink(Protocol):
    """Where the changes of one repo go; each call returns when they are safe there."""

    async def absent(self, after: str) -> list[str]:
        """Return stored paths behind `after` that are older than the repo and not in its tree.

        They ascend. It may return only the next few; an empty list means that there are no more.
        """

    async def delete(self, paths: Sequence[str]) -> None:
        """Delete records with the repo's rev."""

    async def put(self) -> None:
        """Put all wanted records of the tree with the repo's rev."""

    async def close(self) -> bool:
        """Let the repo's rev be its complete rev.

        Returns False, and does nothing, where it is seen that older states have come meanwhile.
        """


async def apply_repo(paths: RepoPaths, sink: RepoSink, named: Iterable[str] = ()) -> int:
    """Bring the stored rows of an account to the state of its repo; return the number of deletions.

    `named` are paths that somebody says are gone: each is deleted if the tree does not hold it.

    Why this order. Closing sets the complete rev, below which every state of a record counts as
    stale and is refused, whoever brings it and however late. So it must come last: after it nothing
    repairs a record that was left out. It is also what lets a later job skip the repo.

    Deletions come before creates. Where a worker is killed in between, the next attempt makes the
    rest; a record that was deleted is not shown again meanwhile by this repo, and a create and a
    deletion of one path cannot be at odds, since a path is in the tree or not.

    Between looking for older rows and closing, others may store older states: live events that were
    queued before. A sink that can see that under the locks of the account (PostgreSQL) refuses to
    close, and the round is repeated. A stream cannot: there the closing event is behind all live
    events that were queued before it, but not behind those that another worker holds, so the
    repo is looked at once more when its closing event was applied (`RepoJob.settles`).

    Raises StillChangingError, and what the sink raises. Repeating all of it changes nothing.
    """
    gone = list(absent(sorted(set(named)), paths.names())) if named else []
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


def absent(wanted: Iterable[str], held: Iterator[str]) -> Iterator[str]:
    """Yield the paths of `wanted` that are not among `held`; both ascend by their bytes.

    Paths are ASCII, so that the order of Python's texts is that of their bytes; another path is in
    no tree.
    """
    current = next(held, None)
    for path in wanted:
        while current is not None and current < path:
            current = next(held, None)
        if current != path:
            yield path
