"""Fetches a repo from the account's PDS and verifies that the account signed it.

`Fetcher.fetch` is the algorithm: DID document, turn at the host, download slot, CAR into `Blocks`,
commit, signature. Failures raise RepoError; those caused by the host also count against the host.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from rsky_pipeline.atproto.car import CarReader
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.directory import Directory
from rsky_pipeline.network.http import (
    MAX_REDIRECTS,
    HttpClient,
    HttpError,
    RedirectError,
    read_rate_limit,
)
from rsky_pipeline.network.repositories import (
    PERMANENT_CODES,
    RepoUnavailableError,
    classify,
    latest_rev,
    repo_url,
)
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.repos.blocks import Blocks, Budget, DiskFullError
from rsky_pipeline.repos.hosts import LONGEST_PARKING_SECONDS, Addresses, Host, HostRules, HostTurns
from rsky_pipeline.repos.identities import Identities
from rsky_pipeline.repos.repo import Repo, RepoError, check_signature, open_repo
from rsky_pipeline.runtime.threads import in_thread

MAX_CACHED_ACCOUNTS = 20_000  # DID documents; each is used once or twice, soon after its look-up
# Shorter than the ingester's: a repo is rarely fetched twice, and look-ups wait for turns anyway.
FORCED_PAUSE_SECONDS = 5.0
DIRECTORY_CONCURRENCY = 16
DIRECTORY_PATIENCE_SECONDS = 60.0
ADMITTED_BYTES = 1024 * 1024  # memory granted before a download begins; enough for most repos
# A download that is older than SLOW_SECONDS and slower than SLOW_RATE bytes/s steps aside.
SLOW_SECONDS = 10.0
SLOW_RATE = 64 * 1024
# Failures of the host, not of the repo.
HOST_REASONS = frozenset({"unreachable", "timeout", "too_slow", "server_error"})
# The account may have moved to another PDS since its document was read.
_MOVED_REASONS = PERMANENT_CODES | {"unreachable", "timeout", "refused", "forbidden"}
_MB = 1024 * 1024


@dataclass(slots=True, eq=False)
class DownloadSlot:
    """One of the download slots; `step_aside` frees it early for another download."""

    slots: "DownloadSlots"
    is_aside: bool = False

    def step_aside(self) -> None:
        """Free the slot while this download continues, unless too many did so already."""
        if not self.is_aside:
            self.is_aside = self.slots.let_aside(self)


class DownloadSlots:
    """Bounds concurrent downloads; slow ones step aside, so slow hosts cannot fill all slots."""

    def __init__(self, total: int, aside: int) -> None:
        self._limiter = trio.CapacityLimiter(total)
        self._aside_most = aside
        self._running = 0
        self.aside = 0

    @property
    def busy(self) -> int:
        """How many downloads run, those aside included."""
        return self._running + self.aside

    @asynccontextmanager
    async def take(self) -> AsyncIterator[DownloadSlot]:
        """Wait for a slot and hold it until the block ends."""
        slot = DownloadSlot(self)
        await self._limiter.acquire_on_behalf_of(slot)
        self._running += 1
        try:
            yield slot
        finally:
            if slot.is_aside:
                self.aside -= 1
            else:
                self._running -= 1
                self._limiter.release_on_behalf_of(slot)

    def let_aside(self, slot: DownloadSlot) -> bool:
        """Pass a slow download's slot on; returns False if too many downloads are aside already."""
        if self.aside >= self._aside_most:
            return False
        self.aside += 1
        self._running -= 1
        self._limiter.release_on_behalf_of(slot)
        return True


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches repos; a worker or command has one, which holds the limits of all hosts."""

    http: HttpClient
    identities: Identities
    hosts: HostTurns
    addresses: Addresses
    settings: Settings
    memory: Budget
    disk: Budget
    slots: DownloadSlots
    folder: Path  # of temporary files
    metrics: BackfillerMetrics
    files: trio.CapacityLimiter  # threads that write temporary files

    @asynccontextmanager
    async def fetch(
        self, did: str, *, fresh: bool = False, patient: bool = False
    ) -> AsyncIterator[Repo]:
        """Resolve, download and verify a repo; its blocks are freed when the `async with` ends.

        If the PDS does not have the repo or the signature is invalid, the DID is resolved once more
        without the cache: the account may have moved, or its key may have been rotated. Where the
        document was read too short a time ago for that, what the PDS says of the account is no
        final answer to a `patient` caller: it comes again after the pause, with `fresh`, which
        bypasses the cache from the start. Raises RepoError and HostBusyError.
        """
        document = await self.identities.document(did, force=fresh)
        with closing(Blocks(self.memory, self.disk, self.folder)) as blocks:
            try:
                repo = await self._from(document, blocks)
            except RepoError as error:
                early = self.identities.asked_just_now(did)
                again = await self._moved(document, error)
                if again is None:
                    if patient and not fresh and early and error.kind == "permanent":
                        raise _later(error) from error
                    raise
                document = again
                blocks.close()
                repo = await self._from(document, blocks)
            await check_signature(
                repo.commit, document, partial(self.identities.document, did),
                FORCED_PAUSE_SECONDS, repo.host,
            )  # fmt: skip
            yield repo

    def report(self) -> None:
        """Update the gauges of hosts."""
        self.metrics.hosts.set(len(self.hosts))
        self.metrics.hosts_parked.set(self.hosts.parked)

    async def rev(self, did: str) -> tuple[str, str]:
        """Request the current rev of a repo (getLatestCommit); returns it and the PDS.

        Raises RepoError and HostBusyError.
        """
        document = await self.identities.document(did)
        pds = _pds(document)
        address = await self.addresses.of(pds)
        async with self.hosts.turn(pds, address) as host, _accounted(host, pds):
            rev = await latest_rev(self.http, pds, did)
            host.state.succeeded(None, trio.current_time())
            return rev, pds

    async def _from(self, document: DidDocument, blocks: Blocks) -> Repo:
        """Download a repo from the PDS in a DID document, following redirects."""
        did, pds = document.did, _pds(document)
        url = repo_url(pds, did)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                address = await self.addresses.of(url)
                async with self.hosts.turn(url, address) as host, _accounted(host, pds):
                    roots, size = await self._download(url, host, blocks)
                return open_repo(roots, blocks, did, pds, size)
            except RedirectError as elsewhere:
                url = elsewhere.url
        message = f"more than {MAX_REDIRECTS} redirects, the last to {url[:200]}"
        raise RepoError("invalid", "forbidden", message, host=pds)

    async def _download(self, url: str, host: Host, blocks: Blocks) -> tuple[tuple[Cid, ...], int]:
        """Read a CAR into blocks; return its roots and size."""
        settings = self.settings
        async with self.slots.take() as slot:
            blocks.admitted(await self.memory.admit(ADMITTED_BYTES))
            async with self.http.get(
                url, max_bytes=settings.backfiller_max_repo_mb * _MB,
                total_seconds=settings.backfiller_repo_timeout_seconds,
                min_rate=settings.backfiller_min_rate, stay=True,
            ) as answer:  # fmt: skip
                reader, size, began = CarReader(), 0, trio.current_time()
                async for part in answer.chunks:
                    size += len(part)
                    self.metrics.bytes.inc(len(part))
                    found = reader.feed(part)
                    if not blocks.keep(found, len(part)):
                        await self._to_disk(blocks, found)
                    elapsed = trio.current_time() - began
                    if elapsed > SLOW_SECONDS and size < SLOW_RATE * elapsed:
                        slot.step_aside()
                roots = reader.finish()
            limit = read_rate_limit(answer.headers, time.time())
            host.state.succeeded(limit, trio.current_time())
            return roots, size

    async def _to_disk(self, blocks: Blocks, found: list[tuple[Cid, bytes]]) -> None:
        if not blocks.on_disk:
            await in_thread(blocks.move_to_disk, limiter=self.files)
            blocks.release_memory()
            self.metrics.spilled.inc()
        await in_thread(blocks.add, found, limiter=self.files)

    async def _moved(self, document: DidDocument, error: RepoError) -> DidDocument | None:
        """Resolve a DID again; returns the document if it names another PDS now."""
        if error.reason not in _MOVED_REASONS:
            return None
        again = await self.identities.document(document.did, force=True)
        return again if again.pds not in {None, document.pds} else None


def _later(error: RepoError) -> RepoError:
    """Return the failure of a PDS that the account may have left since its document was read."""
    pause = FORCED_PAUSE_SECONDS
    return RepoError("transient", error.reason, str(error), pause, host=error.host)


@asynccontextmanager
async def _accounted(host: Host, pds: str) -> AsyncIterator[None]:
    """Translate request failures into RepoError, and count them against the host."""
    try:
        yield
    except InvalidDataError as error:
        host.state.succeeded(None, trio.current_time())
        raise RepoError("invalid", "invalid_car", str(error), host=pds) from error
    except DiskFullError as error:
        raise RepoError("rate_limited", "no_disk", str(error), 30.0, host=pds) from error
    except RedirectError:
        host.state.succeeded(None, trio.current_time())
        raise
    except (HttpError, RepoUnavailableError) as error:
        known = classify(error) if isinstance(error, HttpError) else error
        raise _noted(host, known, pds) from error


def _noted(host: Host, error: RepoUnavailableError, pds: str) -> RepoError:
    now, pause = trio.current_time(), error.retry_after
    if error.kind == "rate_limited":
        pause = host.state.limited(error.retry_after, error.limit, now)
        pause = max(pause, host.state.reserve(now))
    elif error.kind == "transient" and error.code in HOST_REASONS:
        host.state.failed(str(error), now)
    else:
        host.state.succeeded(error.limit, now)
    return RepoError(error.kind, error.code, str(error), pause, host=pds)


def _pds(document: DidDocument) -> str:
    if document.pds is None:
        message = f"the DID document of {document.did} names no PDS"
        raise RepoError("permanent", "no_pds", message)
    return document.pds


@asynccontextmanager
async def open_fetcher(settings: Settings, metrics: BackfillerMetrics) -> AsyncIterator[Fetcher]:
    """Open a fetcher, closed when the block ends."""
    async with HttpClient(
        allow_private=settings.allow_private_hosts,
        silence_seconds=settings.backfiller_http_timeout_seconds,
        max_connections=5 * settings.backfiller_concurrency + 2 * DIRECTORY_CONCURRENCY,
    ) as http:
        directory = Directory(
            http,
            settings.plc_url,
            allow_private=settings.allow_private_hosts,
            max_cached=MAX_CACHED_ACCOUNTS,
            forced_pause=FORCED_PAUSE_SECONDS,
        )
        rules = host_rules(settings)
        hosts = HostTurns(rules)
        plc = replace(
            rules,
            concurrency=DIRECTORY_CONCURRENCY,
            rate=settings.backfiller_directory_rate,
            waiting=1_000_000,
            patience=DIRECTORY_PATIENCE_SECONDS,
        )
        fetcher = Fetcher(
            http,
            Identities(directory, settings.plc_url, HostTurns(plc), hosts),
            hosts,
            Addresses(),
            settings,
            Budget(settings.backfiller_memory_mb * _MB),
            Budget(settings.backfiller_disk_mb * _MB),
            DownloadSlots(settings.backfiller_concurrency, 3 * settings.backfiller_concurrency),
            (settings.data_dir or Path.cwd()) / "backfill",
            metrics,
            trio.CapacityLimiter(2),
        )
        # Called from the metrics thread: reads only numbers.
        metrics.memory.set_function(lambda: fetcher.memory.used)
        metrics.disk.set_function(lambda: fetcher.disk.used)
        metrics.downloads.set_function(lambda: fetcher.slots.busy)
        yield fetcher


def host_rules(settings: Settings) -> HostRules:
    """Return the limits for every PDS."""
    return HostRules(
        settings.backfiller_host_concurrency,
        settings.backfiller_host_rate,
        pause_base=settings.backfiller_retry_initial_ms / 1000,
        pause_cap=min(LONGEST_PARKING_SECONDS, settings.backfiller_retry_max_ms / 1000),
    )
