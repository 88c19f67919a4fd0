"""Is every relay reachable, and is our clock right?"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import trio

from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.http import HttpClient, HttpError
from rsky_pipeline.operations.verification.report import Check, Status, passed, skipped

TIMEOUT_SECONDS = 10.0
CLOCK_WARN_SECONDS, CLOCK_FAIL_SECONDS = 5.0, 60.0
_PATH = "/xrpc/com.atproto.sync.listRepos?limit=1"
_MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Answered:
    """What a relay said: an error, or the seconds that its clock is ahead of ours if it told."""

    relay: str
    seconds: float = 0.0
    ahead: float | None = None
    error: str | None = None


def ask_relays(settings: Settings) -> list[Answered]:
    """Ask all relays at once. Not for use within a trio loop."""
    endpoints = settings.relays
    found: dict[str, Answered] = {}

    async def ask(http: HttpClient, endpoint: Endpoint) -> None:
        found[endpoint.key] = await _ask(http, endpoint)

    async def ask_all() -> None:
        async with (
            HttpClient(allow_private=settings.allow_private_hosts) as http,
            trio.open_nursery() as nursery,
        ):
            for endpoint in endpoints:
                nursery.start_soon(ask, http, endpoint)

    trio.run(ask_all)
    return [found[endpoint.key] for endpoint in endpoints]


async def _ask(
    http: HttpClient, endpoint: Endpoint, clock: Callable[[], float] = time.time
) -> Answered:
    url, began = endpoint.http_url(_PATH), clock()
    try:
        async with http.get(
            url, max_bytes=_MAX_BYTES, total_seconds=TIMEOUT_SECONDS, trusted=True
        ) as answer:
            ended, date = clock(), answer.headers.get("date", "")
    except HttpError as error:
        return Answered(endpoint.key, error=str(error))
    return Answered(endpoint.key, ended - began, _ahead(date, (began + ended) / 2))


def _ahead(date: str, now: float) -> float | None:
    """Return how far a Date header, which has whole seconds, is ahead of a moment."""
    try:
        return parsedate_to_datetime(date).timestamp() + 0.5 - now
    except ValueError:
        return None


def check_relays(answers: list[Answered]) -> Iterator[Check]:
    """Turn what the relays said into checks. Pure."""
    for answer in answers:
        name, clock = f"relay:{answer.relay}", f"clock:{answer.relay}"
        if answer.error is not None:
            yield Check(name, "fail", answer.error,
                        "check relay_hosts, DNS and the network, or use another relay")  # fmt: skip
            continue
        yield passed(name, f"answered in {answer.seconds * 1000:,.0f} ms", answer.seconds)
        if answer.ahead is None:
            yield skipped(clock, "the relay does not tell the time")
            continue
        off = abs(answer.ahead)
        figure = f"our clock and the relay's differ by {off:,.1f} s"
        if off > CLOCK_WARN_SECONDS:
            status: Status = "fail" if off > CLOCK_FAIL_SECONDS else "warn"
            yield Check(clock, status, figure, "see whether NTP runs here", answer.ahead)
        else:
            yield passed(clock, figure, answer.ahead)
