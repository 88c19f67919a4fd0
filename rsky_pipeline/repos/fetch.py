"""Fetches a repo from the account's PDS and verifies that the account signed it.

`Fetcher.fetch` is the algorithm: DID document, turn at the host, download slot, CAR into `Blocks`,
commit, signature. Failures raise RepoError; those caused by the host also count against the host.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from rsky_pipeline.atproto.car import CarReader
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.configuration.selection import Selection, host_name
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.directory import Directory, SharedDocuments
from rsky_pipeline.network.http import (
    MAX_REDIRECTS,
    Download,
    HttpClient,
    HttpError,
    RedirectError,
    read_rate_limit,
)
from rsky_pipeline.network.plc_export import PlcExport
from rsky_pipeline.network.repositories import (
    PERMANENT_CODES,
    RepoUnavailableError,
    classify,
    latest_rev,
    repo_url,
)
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.repos.blocks import Blocks, Budget, DiskFullError, RepoTooBigError
from rsky_pipeline.repos.hosts import (
    LONGEST_PARKING_SECONDS,
    Addresses,
    FailingRepos,
    Host,
    HostRules,
    HostTurns,
)
from rsky_pipeline.repos.identities import Identities
from rsky_pipeline.repos.repo import BLOCKED, Repo, RepoError, check_signature, open_repo
from rsky_pipeline.runtime.threads import in_thread

MAX_CACHED_ACCOUNTS = 20_000  # DID documents; each is used once or twice, soon after its look-up
# Shorter than the ingester's: a repo is rarely fetched twice, and look-ups wait for turns anyway.
FORCED_PAUSE_SECONDS = 5.0
DIRECTORY_CONCURRENCY = 16
DIRECTORY_PATIENCE_SECONDS = 60.0
ADMITTED_BYTES = 1024 * 1024  # memory granted before a download begins; enough for most repos
# A download whose slot was taken SLOW_SECONDS ago, and that is slower than SLOW_RATE bytes/s since
# then, steps aside.
SLOW_SECONDS = 10.0
WATCH_SECONDS = 1.0  # between two looks of one that waits for a slot
SLOW_RATE = 64 * 1024
# Failures of the host, unless it serves other repos meanwhile: it does not answer, or what answers
# is not a PDS (a page of a proxy, a login, a maintenance page with status 200).
HOST_REASONS = frozenset(
    {"unreachable", "timeout", "too_slow", "server_error", "not_a_car", "not_xrpc", "malformed",
     "misled"}
)  # fmt: skip
# The account may have moved to another PDS since its document was read.
_MOVED_REASONS = PERMANENT_CODES | HOST_REASONS | {"refused", "forbidden", BLOCKED}
_MB = 1024 * 1024


class DownloadSlot:
    """One of the download slots. Its clock runs from when it is taken, over every phase."""

    def __init__(self) -> None:
        self.began = trio.current_time()
        self.received = 0  # bytes
        self.is_aside = False

    @property
    def is_slow(self) -> bool:
        """Whether it is slow: in connecting, in waiting for an answer, or in reading it."""
        seconds = trio.current_time() - self.began
        return seconds > SLOW_SECONDS and self.received < SLOW_RATE * seconds


class DownloadSlots:
    """Bounds concurrent downloads. While others wait, slow ones step aside and go on without their
    slot, so slow hosts cannot fill all slots."""

    def __init__(self, total: int, aside: int) -> None:
        self._limiter = trio.CapacityLimiter(total)
        self._aside_most = aside
        self._running: set[DownloadSlot] = set()
        self.aside = 0

    @property
    def busy(self) -> int:
        """How many downloads run, those aside included."""
        return len(self._running)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[DownloadSlot]:
        """Wait for a slot and hold it until the block ends."""
        slot = await self._taken()
        try:
            yield slot
        finally:
            self._running.discard(slot)
            if slot.is_aside:
                self.aside -= 1
            else:
                self._limiter.release_on_behalf_of(slot)

    async def _taken(self) -> DownloadSlot:
        slot = DownloadSlot()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._move_slow_ones)
                await self._limiter.acquire_on_behalf_of(slot)
                self._running.add(slot)
                slot.began = trio.current_time()
                nursery.cancel_scope.cancel()
        except BaseException:  # cancelled, perhaps just when it had the slot
            if slot in self._running:
                self._running.discard(slot)
                self._limiter.release_on_behalf_of(slot)
            raise
        return slot

    async def _move_slow_ones(self) -> None:
        while True:
            for slot in self._running:
                if self.aside < self._aside_most and not slot.is_aside and slot.is_slow:
                    slot.is_aside = True
                    self.aside += 1
                    self._limiter.release_on_behalf_of(slot)
            await trio.sleep(WATCH_SECONDS)


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
    failing: FailingRepos
    require_kept: Callable[[str, str], object]  # of account and host; raises RepoError

    async def follow_directory(self) -> None:
        """Have changed accounts looked up anew, until cancelled; see `follow_plc_export`."""
        if self.settings.follow_plc_export:
            await PlcExport(self.http, self.settings.plc_url, self.identities.forget).run()

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
                    final = error.kind == "permanent" and error.reason != BLOCKED
                    if patient and not fresh and early and final:
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
        pds = self._pds(document)
        address = await self.addresses.of(pds)
        async with self.hosts.turn(pds, address) as host, self._accounted(host, did, pds):
            rev = await latest_rev(self.http, pds, did)
            host.state.succeeded(None, trio.current_time())
            return rev, pds

    async def _from(self, document: DidDocument, blocks: Blocks) -> Repo:
        """Download a repo from the PDS in a DID document, following redirects."""
        did, pds = document.did, self._pds(document)
        url = repo_url(pds, did)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                address = await self.addresses.of(url)
                async with (
                    self.hosts.turn(url, address) as host,
                    self._accounted(host, did, pds),
                ):
                    roots, size = await self._download(url, host, blocks)
                return open_repo(roots, blocks, did, pds, size)
            except RedirectError as elsewhere:
                url = elsewhere.url
        message = f"more than {MAX_REDIRECTS} redirects, the last to {url[:200]}"
        raise RepoError("transient", "misled", message, host=pds, of_host=True)

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
                roots, size = await self._read(answer, slot, blocks)
            limit = read_rate_limit(answer.headers, time.time())
            host.state.succeeded(limit, trio.current_time())
            host.state.served += 1
            return roots, size

    async def _read(
        self, answer: Download, slot: DownloadSlot, blocks: Blocks
    ) -> tuple[tuple[Cid, ...], int]:
        reader, size = CarReader(), 0
        try:
            async for part in answer.chunks:
                size += len(part)
                slot.received = size
                self.metrics.bytes.inc(len(part))
                found = reader.feed(part)
                if not blocks.keep(found, len(part)):
                    await self._to_disk(blocks, found)
            return reader.finish(), size
        except InvalidDataError as error:
            if reader.roots is None:  # a page, an error in JSON, nothing at all
                message = f"{answer.url} answered {size} bytes that are no CAR"
                raise RepoUnavailableError("transient", "not_a_car", message) from error
            if error.reason != "truncated_car":
                raise
            # Another size each time is trouble on the way.
            message = f"the CAR ends after {size} bytes, in the middle of a block"
            raise RepoError("invalid", "truncated", message, mark=f"truncated {size}") from error

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

    def _pds(self, document: DidDocument) -> str:
        """Return the PDS of an account, before it is asked for anything. Raises RepoError."""
        if document.pds is None:
            message = f"the DID document of {document.did} names no PDS"
            raise RepoError("permanent", "no_pds", message)
        self.require_kept(document.did, document.pds)
        return document.pds

    @asynccontextmanager
    async def _accounted(self, host: Host, did: str, pds: str) -> AsyncIterator[None]:
        """Translate request failures into RepoError, and count them against the host."""
        state = host.state
        try:
            yield
        except (InvalidDataError, RepoError) as error:
            state.succeeded(None, trio.current_time())
            if isinstance(error, RepoError):
                error.host = pds
                raise
            raise RepoError("invalid", "invalid_car", str(error), host=pds) from error
        except RepoTooBigError as error:
            raise RepoError("invalid", "too_big", str(error), host=pds) from error
        except DiskFullError as error:
            raise RepoError("rate_limited", "no_disk", str(error), 30.0, host=pds) from error
        except RedirectError:
            state.succeeded(None, trio.current_time())
            raise
        except (HttpError, RepoUnavailableError) as error:
            known = classify(error) if isinstance(error, HttpError) else error
            raise self._noted(host, did, known, pds) from error
        self.failing.succeeded(did)

    def _noted(self, host: Host, did: str, error: RepoUnavailableError, pds: str) -> RepoError:
        now, pause, of_host, state = trio.current_time(), error.retry_after, False, host.state
        if error.kind == "rate_limited":
            pause = state.limited(error.retry_after, error.limit, now)
            pause = max(pause, state.reserve(now))
        elif error.kind == "transient" and error.code in HOST_REASONS:
            of_host = self.failing.failed(did, host)
            state.failed(str(error), now)
        else:
            state.succeeded(error.limit, now)
        return RepoError(error.kind, error.code, str(error), pause, host=pds, of_host=of_host)


def _later(error: RepoError) -> RepoError:
    """Return the failure of a PDS that the account may have left since its document was read."""
    pause = FORCED_PAUSE_SECONDS
    return RepoError("transient", error.reason, str(error), pause, host=error.host)


@asynccontextmanager
async def open_fetcher(
    settings: Settings,
    metrics: BackfillerMetrics,
    selection: Callable[[], Selection] = Selection,
    shared: SharedDocuments | None = None,
) -> AsyncIterator[Fetcher]:
    """Open a fetcher, closed when the block ends; `selection` returns what is left out.

    `shared` has the documents that the workers share, if it is for one of them.
    """
    async with HttpClient(
        allow_private=settings.allow_private_hosts,
        proxy=settings.proxy,
        silence_seconds=settings.backfiller_http_timeout_seconds,
        max_connections=5 * settings.backfiller_concurrency + 2 * DIRECTORY_CONCURRENCY,
    ) as http:
        directory = Directory(
            http,
            settings.plc_url,
            allow_private=settings.allow_private_hosts,
            max_cached=MAX_CACHED_ACCOUNTS,
            forced_pause=FORCED_PAUSE_SECONDS,
            fresh_seconds=settings.identity_cache_seconds,
            shared=shared,
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
            FailingRepos(),
            lambda did, pds: require_kept(selection(), did, pds),
        )
        # Called from the metrics thread: reads only numbers.
        metrics.memory.set_function(lambda: fetcher.memory.used)
        metrics.disk.set_function(lambda: fetcher.disk.used)
        metrics.downloads.set_function(lambda: fetcher.slots.busy)
        yield fetcher


def require_kept(selection: Selection, did: str, pds: str = "") -> None:
    """Raise RepoError for an account that is left out, or whose PDS is."""
    kind = selection.left_out(did, host=host_name(pds) if pds else "") if selection else None
    if kind is not None:
        raise RepoError("permanent", BLOCKED, f"the {kind} is blocked", host=pds, mark=kind)


def host_rules(settings: Settings) -> HostRules:
    """Return the limits for every PDS."""
    return HostRules(
        settings.backfiller_host_concurrency,
        settings.backfiller_host_rate,
        pause_base=settings.backfiller_retry_initial_ms / 1000,
        pause_cap=min(LONGEST_PARKING_SECONDS, settings.backfiller_retry_max_ms / 1000),
    )
