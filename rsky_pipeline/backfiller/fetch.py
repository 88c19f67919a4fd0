"""Fetching a repo from the account's own PDS and verifying that it is what the account signed."""

from dataclasses import dataclass
from weakref import WeakValueDictionary

import trio

from rsky_pipeline.atproto.car import CarReader
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import verify_commit
from rsky_pipeline.atproto.errors import InvalidData
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.backfiller.budget import Budget
from rsky_pipeline.backfiller.outcome import RepoFailed
from rsky_pipeline.backfiller.unpack import Repo, open_repo
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.directory import Directory, IdentityNotFound, IdentityUnavailable
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.network.repositories import RepoUnavailable, get_repo
from rsky_pipeline.observability.backfiller import BackfillerMetrics

SMALL_REPO = 8 * 1024 * 1024  # most repos; a larger one is fetched again with a larger grant
PER_HOST = 8  # downloads from one host at once
TOTAL_SECONDS = 1_800.0
MAX_BYTES = 2 * 1024**3  # of a body, whatever it holds; the memory budget ends most sooner
# A block costs about this much beside its bytes: its key, its object headers, its dict entry.
BLOCK_OVERHEAD = 250


class HostSlots:
    """Bounds the downloads from each host; a host that nobody downloads from is forgotten.

    Strangers choose the names of hosts, so what is kept of them must not add up.
    """

    def __init__(self) -> None:
        self._limiters: WeakValueDictionary[str, trio.CapacityLimiter] = WeakValueDictionary()

    def of(self, host: str) -> trio.CapacityLimiter:
        """Return the limiter that all downloads from a host share."""
        limiter = self._limiters.get(host)
        if limiter is None:
            limiter = self._limiters[host] = trio.CapacityLimiter(PER_HOST)
        return limiter

    def __len__(self) -> int:
        return len(self._limiters)


class TooLarge(Exception):
    """The repo does not fit into its grant."""


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Everything that fetching needs; one for the worker."""

    http: HttpClient
    directory: Directory
    settings: Settings
    budget: Budget
    metrics: BackfillerMetrics
    hosts: HostSlots

    async def document(self, did: str, force: bool = False) -> DidDocument:
        """Resolve a DID. Raises RepoFailed."""
        try:
            return await self.directory.resolve(did, force)
        except IdentityNotFound as error:
            raise RepoFailed("permanent", "did_not_found", str(error)) from error
        except IdentityUnavailable as error:
            raise RepoFailed("transient", "did_unavailable", str(error)) from error

    async def download(self, did: str, pds: str, limit: int) -> Repo:
        """Fetch a repo of at most `limit` bytes in memory. Raises RepoFailed and TooLarge."""
        reader = CarReader()
        blocks: dict[Cid, bytes] = {}
        held = 0
        try:
            async with (
                self.hosts.of(pds),
                get_repo(
                    self.http, pds, did, max_bytes=MAX_BYTES, total_seconds=TOTAL_SECONDS
                ) as body,
            ):
                async for part in body:
                    self.metrics.bytes.inc(len(part))
                    for cid, block in reader.feed(part):
                        blocks[cid] = block
                        held += len(block) + BLOCK_OVERHEAD
                    if held > limit:
                        raise TooLarge
            return open_repo(reader.finish(), blocks, did)
        except RepoUnavailable as error:
            raise RepoFailed(error.kind, error.code, str(error), error.retry_after) from error
        except InvalidData as error:
            raise RepoFailed("invalid", "invalid_car", str(error)) from error

    async def verified(self, repo: Repo, document: DidDocument) -> None:
        """Check the commit's signature; a key that was rotated is looked up again once.

        Raises RepoFailed.
        """
        if _signed_by(repo, document):
            return
        document = await self.document(repo.commit.did, force=True)
        if not _signed_by(repo, document):
            reason = "no_key" if document.signing_key is None else "bad_signature"
            raise RepoFailed("invalid", reason, "the commit is not signed with the account's key")


def _signed_by(repo: Repo, document: DidDocument) -> bool:
    key = document.signing_key
    return key is not None and verify_commit(repo.commit, key)
