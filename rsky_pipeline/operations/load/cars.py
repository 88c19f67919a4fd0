"""A CAR file on disk to a verified repo: hashes, commit, and the whole tree.

The rules are those for a fetched repo; only where the account's name comes from differs: a file is
whoever's its commit says, which the signature then proves.
"""

from dataclasses import dataclass
from pathlib import Path

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.commit import Commit, parse_commit
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.backfiller.outcome import RepoFailed
from rsky_pipeline.backfiller.unpack import Paths, Repo, list_paths
from rsky_pipeline.operations.load.outcome import LoadFailed

# A tree has as many nodes as its account has records or so; no honest account has 20 million.
_MAX_BLOCKS = 50_000_000


@dataclass(frozen=True, slots=True)
class StoredRepo:
    """A complete repo, and the path and CID of each of its records."""

    repo: Repo
    paths: Paths

    @property
    def commit(self) -> Commit:
        """The commit that the account signed."""
        return self.repo.commit


def read_repo(path: str, max_bytes: int) -> StoredRepo:
    """Read a repo and check everything that its bytes can prove. Raises LoadFailed."""
    try:
        size = Path(path).stat().st_size
        if size > max_bytes:
            raise LoadFailed("too_big", f"{size:,} bytes, {max_bytes:,} are allowed (--max-car-mb)")
        data = Path(path).read_bytes()
    except OSError as error:
        raise LoadFailed("unreadable", f"{error.strerror or error}") from error
    try:
        car = read_car(data, max_blocks=_MAX_BLOCKS)
    except InvalidDataError as error:
        raise LoadFailed("invalid_car", str(error)) from error
    root = car.roots[0]
    repo = Repo(root, _commit(car.blocks.get(root)), car.blocks, size=size)
    try:
        return StoredRepo(repo, list_paths(repo))
    except RepoFailed as failure:
        raise LoadFailed(failure.reason, str(failure)) from failure


def _commit(block: bytes | None) -> Commit:
    if block is None:
        raise LoadFailed("incomplete", "the CAR does not hold its root")
    try:
        return parse_commit(block)
    except InvalidDataError as error:
        raise LoadFailed("invalid_commit", str(error)) from error
