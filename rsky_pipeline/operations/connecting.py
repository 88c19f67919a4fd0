"""Connecting to everything that a configuration names: `config check --connect`, before a start.

Each peer is asked for what the pipeline needs of it, all at the same time, for some seconds at
most. Nothing is written.
"""

import os
import pwd
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import trio

from rsky_pipeline.configuration.endpoints import Endpoint, parse_endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.store_urls import files_of
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError, LoginRefusedError
from rsky_pipeline.database.schema import pending
from rsky_pipeline.ingester.bsync import BsyncClient, explained, is_refusal
from rsky_pipeline.network.directory import (
    Directory,
    IdentityNotFoundError,
    IdentityUnavailableError,
)
from rsky_pipeline.network.handles import Handles, HandleUnavailableError
from rsky_pipeline.network.http import HttpClient, HttpError
from rsky_pipeline.network.subscription import DisconnectedError, Timeouts, subscribe
from rsky_pipeline.runtime.errors import printable
from rsky_pipeline.streams.bsync import BSYNC_LOGS
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.errors import (
    LoginRejectedError,
    StoreRejectedError,
    StoreUnavailableError,
)
from rsky_pipeline.streams.server import server_facts

FIRST_EVENT_SECONDS = 5.0
PEER_SECONDS = 30.0
_TIMEOUTS = Timeouts(connect=10.0)
_LISTING = "/xrpc/com.atproto.sync.listRepos?limit=1"
# Any account will do: that it does not exist is an answer, too.
_SOME_DID, _SOME_HANDLE = "did:plc:z72i7hdynmk6r22z27h6tvur", "bsky.app"


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """The answer of a peer. `is_wrong`: a setting has to be changed, waiting does not help."""

    peer: str
    setting: str
    ok: bool
    detail: str
    is_wrong: bool = False


class _RefusedError(Exception):
    """What a peer that answers does not do for us."""


def unreadable_files(settings: Settings, account: str) -> list[str]:
    """Return a line for each file of the stores' URLs that an account cannot read.

    Root reads everything, and so says nothing about the units. Only root may ask; none where there
    is no such account.
    """
    try:
        entry = pwd.getpwnam(account)
    except KeyError:
        return []
    groups = os.getgrouplist(account, entry.pw_gid)
    lines = []
    for setting in ("redis_url", "database_url"):
        for path in files_of(getattr(settings, setting) or ""):
            test = subprocess.run(
                ["test", "-r", str(path)], check=False, user=entry.pw_uid, group=entry.pw_gid,
                extra_groups=groups,
            )  # fmt: skip
            if test.returncode:
                lines.append(
                    f"{setting}: the account {account} of the units cannot read {path}, or it is "
                    "not there: see its owner and mode, and those of its folders"
                )
    return lines


def ask_everybody(settings: Settings) -> list[PeerAnswer]:
    """Connect to stores, relays, labelers, directory, resolver and bsync. Not for use within trio.

    `settings` are as configured: embedded stores are left out, since they run with the pipeline.
    """
    return trio.run(_ask_everybody, settings)


async def _ask_everybody(settings: Settings) -> list[PeerAnswer]:
    async with HttpClient(allow_private=settings.allow_private_hosts, proxy=settings.proxy) as http:
        questions = list(_questions(settings, http))
        answers: dict[int, PeerAnswer] = {}

        async def ask(number: int) -> None:
            peer, setting, question = questions[number]
            answers[number] = await _answer(peer, setting, question)

        async with trio.open_nursery() as nursery:
            for number in range(len(questions)):
                nursery.start_soon(ask, number)
    return [answers[number] for number in range(len(questions))]


_Question = Callable[[], Awaitable[str]]


def _questions(settings: Settings, http: HttpClient) -> Iterator[tuple[str, str, _Question]]:
    """Yield the name of each peer, its setting, and what returns its answer in a few words."""
    for name, setting, ask in (
        ("Redis", "redis_url", _ask_redis),
        ("PostgreSQL", "database_url", _ask_database),
    ):
        if getattr(settings, setting) is not None:
            yield (
                name,
                setting,
                partial(trio.to_thread.run_sync, ask, settings, abandon_on_cancel=True),
            )
    for relay in settings.relays:
        yield f"relay {relay.key}", "relay_hosts", partial(_ask_relay, settings, http, relay)
    for labeler in settings.labelers:
        ask_labeler = partial(_subscribe, settings, labeler, "com.atproto.label.subscribeLabels")
        yield f"labeler {labeler.key}", "labeler_hosts", ask_labeler
    yield "directory", "plc_url", partial(_ask_directory, settings, http)
    if settings.bsync_url:
        yield "bsync", "bsync_url", partial(_ask_bsync, settings, http)
    if settings.handle_resolver_url:
        yield "handle resolver", "handle_resolver_url", partial(_ask_resolver, settings, http)


async def _ask_bsync(settings: Settings, http: HttpClient) -> str:
    endpoint = parse_endpoint(settings.bsync_url or "")
    client = BsyncClient(http, endpoint, settings.bsync_key)
    try:
        await client.scan(BSYNC_LOGS[0], 0, 1)
    except HttpError as error:
        if is_refusal(error):
            raise _RefusedError(explained(error)) from error
        raise
    return f"{endpoint} serves its logs"


async def _answer(peer: str, setting: str, question: _Question) -> PeerAnswer:
    began = time.monotonic()
    try:
        with trio.fail_after(PEER_SECONDS):
            detail = await question()
    except (LoginRejectedError, LoginRefusedError, _RefusedError) as error:
        return PeerAnswer(peer, setting, False, _line(error), is_wrong=True)
    except (
        StoreUnavailableError, StoreRejectedError, DatabaseError, DisconnectedError, HttpError,
        IdentityUnavailableError, HandleUnavailableError,
    ) as error:  # fmt: skip
        return PeerAnswer(peer, setting, False, _line(error))
    except trio.TooSlowError:
        return PeerAnswer(peer, setting, False, f"no answer within {PEER_SECONDS:.0f} s")
    took = (time.monotonic() - began) * 1000
    return PeerAnswer(peer, setting, True, f"{detail} ({took:,.0f} ms)")


def _line(error: Exception) -> str:
    return printable(" ".join(str(error).split()))


def _ask_redis(settings: Settings) -> str:
    with closing(connect(settings.redis_url or "", name="check")) as store:
        facts = server_facts(store)
    version = facts.get("valkey_version") or facts.get("redis_version", "of unknown version")
    name = "Valkey" if "valkey_version" in facts else "Redis"
    limit = int(facts.get("maxmemory", 0)) or int(facts.get("total_system_memory", 0))
    return f"{name} {version}, {limit / 1e6:,.0f} MB of memory"


def _ask_database(settings: Settings) -> str:
    url, schema = settings.database_url or "", settings.database_schema
    with Database.connect(url, schema=schema, name="check") as database:
        [(version, role, may_create)] = database.query(
            "SELECT current_setting('server_version'), current_user::text, "
            "has_database_privilege(current_database(), 'CREATE')"
        )
    steps = pending(url, schema)
    if steps and not may_create:
        raise _RefusedError(
            f"{role} may not make the schema: GRANT CREATE ON DATABASE to it, or run "
            f"`rsky-pipeline db init` once as another role: {len(steps)} changes are pending"
        )
    what = f"{len(steps)} changes of the schema pending" if steps else "the schema is up to date"
    return f"PostgreSQL {version} as {role}, {what}"


async def _ask_relay(settings: Settings, http: HttpClient, relay: Endpoint) -> str:
    detail = await _subscribe(settings, relay, "com.atproto.sync.subscribeRepos")
    try:
        await http.get_json(relay.http_url(_LISTING), total_seconds=10.0, trusted=True)
    except HttpError as error:
        needed = settings.enumerate_repos or settings.repair_gaps
        text = f"{detail}, but listRepos fails: {_line(error)}"
        if needed and error.kind == "status" and error.status in (401, 403, 404, 501):
            raise _RefusedError(
                f"{text}: choose another relay, or enumerate_repos = false"
            ) from error
        return text
    return f"{detail}, listRepos answers"


async def _subscribe(settings: Settings, endpoint: Endpoint, nsid: str) -> str:
    async with subscribe(
        endpoint, nsid, None, timeouts=_TIMEOUTS, proxy=settings.proxy
    ) as subscription:
        with trio.move_on_after(FIRST_EVENT_SECONDS):
            await subscription.receive()
            return "events come"
    return f"connected, no event within {FIRST_EVENT_SECONDS:.0f} s"


async def _ask_directory(settings: Settings, http: HttpClient) -> str:
    directory = Directory(http, settings.plc_url, allow_private=settings.allow_private_hosts)
    try:
        await directory.resolve(_SOME_DID)
    except IdentityNotFoundError:
        return f"{settings.plc_url} answers"
    return f"{settings.plc_url} has documents"


async def _ask_resolver(settings: Settings, http: HttpClient) -> str:
    resolver = settings.handle_resolver_url
    did = await Handles(http, resolver_url=resolver).resolve(_SOME_HANDLE)
    return f"{resolver} resolves {_SOME_HANDLE}" if did else f"{resolver} answers"
