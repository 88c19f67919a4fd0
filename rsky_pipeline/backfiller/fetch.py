"""Fetching a repo from the account's own PDS and verifying that it is what the account signed."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from rsky_pipeline.atproto.car import CarReader
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import verify_commit
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.backfiller.addresses import Addresses
from rsky_pipeline.backfiller.blocks import Blocks, DiskFull
from rsky_pipeline.backfiller.budget import Budget, Slot, Slots
from rsky_pipeline.backfiller.hosts import Host, Hosts
from rsky_pipeline.backfiller.identities import Identities
from rsky_pipeline.backfiller.outcome import RepoFailed
from rsky_pipeline.backfiller.unpack import Repo, open_repo
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.http import (
    MAX_REDIRECTS,
    Download,
    HttpClient,
    HttpError,
    RedirectError,
    read_rate_limit,
)
from rsky_pipeline.network.repositories import RepoUnavailableError, classify, latest_rev, repo_url
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.threads import in_thread

ADMITTED = 1024 * 1024  # bytes that a download gets before it begins; most repos need no more
SLOW_SECONDS = 10.0  # a download that takes longer,
SLOW_RATE = 64 * 1024  # and comes with less than so many bytes a second, steps aside
# What says that the host is in trouble, not the repo.
HOST_REASONS = frozenset({"unreachable", "timeout", "too_slow", "server_error"})
# What may mean that the account has moved to another PDS since its document was read.
_MOVED_REASONS = frozenset(
    {"RepoNotFound", "NotFound", "RepoDeactivated", "RepoDeleted", "RepoInactive", "unreachable",
     "timeout", "refused", "forbidden"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Everything that fetching needs; one for a worker or a command."""

    http: HttpClient
    identities: Identities
    hosts: Hosts
    addresses: Addresses
    settings: Settings
    memory: Budget
    disk: Budget
    slots: Slots
    folder: Path  # of temporary files
    metrics: BackfillerMetrics
    files: trio.CapacityLimiter  # threads that write temporary files

    @asynccontextmanager
    async def fetch(self, did: str, *, fresh: bool = False) -> AsyncIterator[Repo]:
        """Resolve, download and verify a repo; its blocks are there for the length of the block.

        Where the PDS has nothing, or the signature is wrong, the DID is looked up again once: the
        account may have moved or its key may have been rotated. `fresh` looks it up anyhow. Raises
        RepoFailed and HostBusy.
        """
        document = await self.identities.document(did, force=fresh)
        with Blocks(self.memory, self.disk, self.folder) as blocks:
            try:
                repo = await self._from(document, blocks)
            except RepoFailed as error:
                again = await self._moved(document, error)
                if again is None:
                    raise
                document = again
                blocks.close()
                repo = await self._from(document, blocks)
            await self._verify(repo, document)
            yield repo

    def report(self) -> None:
        """Set the gauges of hosts."""
        self.metrics.hosts.set(len(self.hosts))
        self.metrics.hosts_parked.set(self.hosts.parked)

    async def rev(self, did: str) -> tuple[str, str]:
        """Ask the PDS of an account for the rev of its repo; return it and the PDS.

        Raises RepoFailed and HostBusy.
        """
        document = await self.identities.document(did)
        pds = _pds(document)
        async with self._turn(pds) as host, _accounted(host, pds):
            rev = await latest_rev(self.http, pds, did)
            host.state.succeeded(None, trio.current_time())
            return rev, pds

    async def _from(self, document: DidDocument, blocks: Blocks) -> Repo:
        """Download a repo from the PDS that a document names, which may send us elsewhere."""
        did, pds = document.did, _pds(document)
        url = repo_url(pds, did)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                async with self._turn(url) as host, _accounted(host, pds):
                    roots, size = await self._download(url, host, blocks)
                return open_repo(roots, blocks, did, pds, size)
            except RedirectError as elsewhere:
                url = elsewhere.url
        message = f"more than {MAX_REDIRECTS} redirects, the last to {url[:200]}"
        raise RepoFailed("invalid", "forbidden", message, host=pds)

    @asynccontextmanager
    async def _turn(self, url: str) -> AsyncIterator[Host]:
        address = await self.addresses.of(url)
        async with self.hosts.turn(url, address) as host:
            yield host

    async def _download(self, url: str, host: Host, blocks: Blocks) -> tuple[tuple[Cid, ...], int]:
        """Read a CAR into blocks; return its roots and size."""
        settings = self.settings
        async with self.slots.take() as slot:
            blocks.admitted(await self.memory.admit(ADMITTED))
            async with self.http.get(
                url, max_bytes=settings.backfiller_max_repo_mb * 1024 * 1024,
                total_seconds=settings.backfiller_repo_timeout_seconds,
                min_rate=settings.backfiller_min_rate, stay=True,
            ) as answer:  # fmt: skip
                roots, size = await self._read(answer, slot, blocks)
            limit = read_rate_limit(answer.headers, time.time())
            host.state.succeeded(limit, trio.current_time())
            return roots, size

    async def _read(
        self, answer: Download, slot: Slot, blocks: Blocks
    ) -> tuple[tuple[Cid, ...], int]:
        reader = CarReader()
        size, began = 0, trio.current_time()
        async for part in answer.chunks:
            size += len(part)
            self.metrics.bytes.inc(len(part))
            found = reader.feed(part)
            if blocks.on_disk or not blocks.fits(len(part), len(found)):
                await self._to_disk(blocks, found)
            else:
                blocks.add(found)
            elapsed = trio.current_time() - began
            if elapsed > SLOW_SECONDS and size < SLOW_RATE * elapsed:
                slot.step_aside()
        return reader.finish(), size

    async def _to_disk(self, blocks: Blocks, found: list[tuple[Cid, bytes]]) -> None:
        if not blocks.on_disk:
            await in_thread(blocks.move_to_disk, limiter=self.files)
            blocks.release_memory()
            self.metrics.spilled.inc()
        await in_thread(blocks.add, found, limiter=self.files)

    async def _verify(self, repo: Repo, document: DidDocument) -> None:
        if _signed_by(repo, document):
            return
        document = await self.identities.document(repo.commit.did, force=True)
        if not _signed_by(repo, document):
            reason = "no_key" if document.signing_key is None else "bad_signature"
            message = "the commit is not signed with the account's key"
            # The key may have been rotated since it was looked up: the next attempt must not see
            # the same document again, or all attempts would be gone before the new key is known.
            pause = self.identities.forced_pause
            raise RepoFailed("invalid", reason, message, pause, host=repo.host)

    async def _moved(self, document: DidDocument, error: RepoFailed) -> DidDocument | None:
        """Look an account up again; return its document if that names another PDS now."""
        if error.reason not in _MOVED_REASONS:
            return None
        again = await self.identities.document(document.did, force=True)
        return again if again.pds not in {None, document.pds} else None


@asynccontextmanager
async def _accounted(host: Host, pds: str) -> AsyncIterator[None]:
    """Turn what can go wrong with a request into RepoFailed, and note it at the host."""
    try:
        yield
    except InvalidDataError as error:
        host.state.succeeded(None, trio.current_time())
        raise RepoFailed("invalid", "invalid_car", str(error), host=pds) from error
    except DiskFull as error:
        raise RepoFailed("rate_limited", "no_disk", str(error), 30.0, host=pds) from error
    except RedirectError:
        host.state.succeeded(None, trio.current_time())
        raise
    except (HttpError, RepoUnavailableError) as error:
        known = classify(error) if isinstance(error, HttpError) else error
        raise _noted(host, known, pds) from error


def _noted(host: Host, error: RepoUnavailableError, pds: str) -> RepoFailed:
    now, pause = trio.current_time(), error.retry_after
    if error.kind == "rate_limited":
        pause = host.state.limited(error.retry_after, error.limit, now)
        pause = max(pause, host.state.reserve(now))
    elif error.kind == "transient" and error.code in HOST_REASONS:
        host.state.failed(str(error), now)
    else:
        host.state.succeeded(error.limit, now)
    return RepoFailed(error.kind, error.code, str(error), pause, host=pds)


def _pds(document: DidDocument) -> str:
    if document.pds is None:
        message = f"the DID document of {document.did} names no PDS"
        raise RepoFailed("permanent", "no_pds", message)
    return document.pds


def _signed_by(repo: Repo, document: DidDocument) -> bool:
    key = document.signing_key
    return key is not None and verify_commit(repo.commit, key)
