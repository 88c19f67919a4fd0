"""HTTP with everything bounded: addresses, redirects, bytes, silence and total time.

Hosts come from DID documents that strangers wrote, and are connected to only where `connect`
allows it. Endpoints that the operator configured are trusted. `HttpClient` is the one client of all
roles: whatever goes wrong with a request is an HttpError.

Servers state their rate limits in headers: `ratelimit-limit`, `-remaining` and `-reset` (Unix
seconds; in the drafts of the IETF seconds from now), newer ones in one `ratelimit` field with `r`
and `t`, and `retry-after` in seconds or as a date (RFC 9110, 10.2.3).
"""

import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import chain
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

import orjson
import trio

from rsky_pipeline.configuration.endpoints import normal_host
from rsky_pipeline.configuration.proxy import Proxy
from rsky_pipeline.network.body import BodyDecoder, BodyError, read_json
from rsky_pipeline.network.connect import ForbiddenAddressError
from rsky_pipeline.network.pool import (
    BROKEN,
    ClientResponse,
    ConnectionPool,
    InvalidUrlError,
    PostedBody,
    parse_url,
)
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.errors import described, printable

MAX_REDIRECTS = 5
MAX_JSON = 1_048_576  # bytes
MAX_ERROR_BODY = 16_384  # bytes
MAX_CONNECTIONS = 200
LONGEST_SECONDS = 3_600.0  # of a pause, whatever a host asks for
_EPOCH_FROM = 1_000_000_000  # a larger reset is an instant, not a duration
_FIELD = re.compile(r"(?:^|;)\s*([rt])=(\d{1,12})\b")
_MAX_MESSAGE = 1_000
_SUCCESS = frozenset({200, 203})  # 203: a proxy on the way changed something
FailureKind = Literal[
    "unreachable", "timeout", "too_slow", "status", "too_big", "forbidden", "malformed",
    "internal_error",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How many requests are left, and the seconds until there are as many as ever."""

    remaining: int
    reset_seconds: float


class HttpError(Exception):
    """A request that gave no usable answer.

    `status` and `code` (the XRPC error name) are set for `kind` "status"; `retry_after` is the
    pause in seconds that the server asked for (`read_pause`), `limit` its rate limit, if stated.
    `misled`: what is "forbidden" is not the URL, but where its host led: by a redirect, or since
    its name has no public address at the moment.
    """

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        retry_after: float | None = None,
        limit: RateLimit | None = None,
        misled: bool = False,
    ) -> None:
        super().__init__(printable(message[:_MAX_MESSAGE]))  # most of it may be a stranger's
        self.kind = kind
        self.misled = misled
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.limit = limit


class RedirectError(Exception):
    """A host sent us to another one, for a caller that keeps account of hosts; `url` is where."""

    def __init__(self, url: str) -> None:
        super().__init__(f"redirected to {url[:200]}")
        self.url = url


@dataclass(frozen=True, slots=True)
class Download:
    """A successful response whose body is still to be read."""

    url: str
    headers: Mapping[str, str]  # names in lower case
    chunks: AsyncIterator[bytes]


class HttpClient:
    """One pool of connections; use as an async context manager, or `close` it.

    Whatever a URL, a host or its answer makes the libraries below raise is that request's
    HttpError, of kind "internal_error" where nobody declared it; `boundary` counts those.
    """

    def __init__(
        self, *, allow_private: bool, silence_seconds: float = 60.0,
        max_connections: int = MAX_CONNECTIONS, boundary: Boundary | None = None,
        proxy: Proxy | None = None,
    ) -> None:  # fmt: skip
        self._boundary = boundary or Boundary()
        self._allow_private = allow_private
        self._silence_seconds = silence_seconds
        context = ssl.create_default_context()
        self._trusted = ConnectionPool(
            context,
            guarded=False,
            silence_seconds=silence_seconds,
            most=max_connections,
            proxy=proxy,
        )
        self._guarded = (
            self._trusted
            if allow_private
            else ConnectionPool(
                context,
                guarded=True,
                silence_seconds=silence_seconds,
                most=max_connections,
                proxy=proxy,
            )
        )

    async def __aenter__(self) -> "HttpClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._trusted.close()
        self._guarded.close()  # may be the same

    @asynccontextmanager
    async def get(
        self, url: str, *, max_bytes: int, total_seconds: float, trusted: bool = False,
        min_rate: float = 0.0, stay: bool = False,
    ) -> AsyncIterator[Download]:  # fmt: skip
        """Open a successful response, following redirects; raises HttpError.

        `max_bytes` bounds the body, as sent and as decompressed, `total_seconds` everything. The
        body must begin within the silence that is allowed, however its head is sent, redirects
        included, and come with `min_rate` bytes a second over that time. `trusted` is for endpoints
        that the operator configured. With `stay` a redirect to another host raises RedirectError.
        """
        window = _Window(min_rate, self._silence_seconds)
        until, response = trio.current_time() + total_seconds, None
        with trio.CancelScope(deadline=self._head_until(until)) as scope:
            response = await self._open(url, max_bytes, trusted, stay)
            scope.deadline = until
            try:
                async with aclosing(self._bounded(response, max_bytes, window)) as chunks:
                    yield Download(response.url, response.headers, chunks)
            finally:
                self._close(response)
        if scope.cancelled_caught:
            raise self._late(url, total_seconds, response)

    async def get_json(
        self, url: str, *, max_bytes: int = MAX_JSON, total_seconds: float = 30.0,
        trusted: bool = False,
    ) -> Any:  # fmt: skip
        """Return a JSON document; raises HttpError."""
        body = await self.get_bytes(
            url, max_bytes=max_bytes, total_seconds=total_seconds, trusted=trusted
        )
        try:
            return read_json(body)
        except ValueError as error:
            raise HttpError("malformed", f"{url} does not answer with JSON") from error

    async def get_bytes(
        self, url: str, *, max_bytes: int, total_seconds: float = 30.0, trusted: bool = False
    ) -> bytes:
        """Return a whole body; raises HttpError."""
        body = bytearray()
        async with self.get(
            url, max_bytes=max_bytes, total_seconds=total_seconds, trusted=trusted
        ) as answer:
            async for chunk in answer.chunks:
                body += chunk
        return bytes(body)

    async def post_json(
        self, url: str, document: object, *, headers: Mapping[str, str], max_bytes: int,
        total_seconds: float,
    ) -> Any:  # fmt: skip
        """Send a JSON document to an endpoint that the operator configured, and return the answer.

        It may be sent twice. Redirects are refused, since secrets may be in the headers. Raises
        HttpError.
        """
        posted = PostedBody(orjson.dumps(document), {"Content-Type": "application/json", **headers})
        body = bytearray()
        until, response = trio.current_time() + total_seconds, None
        with trio.CancelScope(deadline=self._head_until(until)) as scope:
            response = await self._post(url, posted, max_bytes)
            scope.deadline = until
            try:
                async for chunk in self._bounded(response, max_bytes):
                    body += chunk
            finally:
                self._close(response)
        if scope.cancelled_caught:
            raise self._late(url, total_seconds, response)
        try:
            return read_json(bytes(body))
        except ValueError as error:
            raise HttpError("malformed", f"{url} does not answer with JSON") from error

    def _head_until(self, until: float) -> float:
        """Return when the head of an answer has to be there.

        A scope whose deadline moves, for a second one costs as much as reading a document's JSON.
        """
        return min(until, trio.current_time() + self._silence_seconds)

    def _late(self, url: str, total_seconds: float, response: ClientResponse | None) -> HttpError:
        """Return the error of a request that ran out of time before or behind its head."""
        if response is not None:
            return HttpError("timeout", f"{_host(url)} took more than {total_seconds:.0f} s")
        seconds = min(total_seconds, self._silence_seconds)
        return HttpError("timeout", f"{_host(url)} did not answer within {seconds:g} s")

    async def _post(self, url: str, posted: PostedBody, max_bytes: int) -> ClientResponse:
        self._check_scheme(url, trusted=True)
        try:
            response = await _send(self._trusted, url, posted)
        except HttpError:
            raise
        except Exception as error:
            raise self._internal(error, url) from error
        if response.status in _SUCCESS:
            return await self._announced(response, max_bytes)
        try:
            raise await self._refusal(response)
        finally:
            self._close(response)

    async def _open(self, url: str, max_bytes: int, trusted: bool, stay: bool) -> ClientResponse:
        """Return a successful response. Raises HttpError and RedirectError."""
        try:
            response = await self._follow(url, trusted, stay)
        except (HttpError, RedirectError):
            raise
        except Exception as error:
            raise self._internal(error, url) from error
        return await self._announced(response, max_bytes)

    async def _announced(self, response: ClientResponse, max_bytes: int) -> ClientResponse:
        """Return a response unless it announces that it is too large. Raises HttpError."""
        length = response.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > max_bytes:
            self._close(response)
            raise HttpError("too_big", f"{response.url} announces {length} bytes")
        return response

    async def _follow(self, url: str, trusted: bool, stay: bool) -> ClientResponse:
        self._check_scheme(url, trusted)
        for hop in range(MAX_REDIRECTS + 1):
            try:
                response = await _send(self._trusted if trusted else self._guarded, url)
            except HttpError as error:
                error.misled |= hop > 0
                raise
            if response.status in _SUCCESS:
                return response
            try:
                if response.location is None:
                    raise await self._refusal(response)
                target = redirect_target(url, response.location)
            finally:
                self._close(response)
            same_host = _origin(target) == _origin(url)
            # Wherever a trusted server sends us, it is no longer the operator's choice.
            trusted = trusted and same_host
            self._check_scheme(target, trusted, misled=True)
            if stay and not same_host:
                raise RedirectError(target)
            url = target
        message = f"more than {MAX_REDIRECTS} redirects, the last to {url}"
        raise HttpError("forbidden", message, misled=True)

    def _check_scheme(self, url: str, trusted: bool, *, misled: bool = False) -> None:
        scheme = url.partition(":")[0].lower()
        if scheme != "https" and not (scheme == "http" and (trusted or self._allow_private)):
            raise HttpError("forbidden", f"{url[:200]} is not https", misled=misled)

    async def _bounded(
        self, response: ClientResponse, max_bytes: int, window: "_Window | None" = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the body, decompressed, in time and in bounds. Raises HttpError."""
        received = total = 0
        try:
            decoder = BodyDecoder(response.headers.get("content-encoding", ""))
            asked = trio.current_time()
            while chunk := await response.receive():
                received += len(chunk)
                waited = trio.current_time() - asked
                if window is not None and window.too_slow(waited, len(chunk)):
                    raise HttpError("too_slow", f"{response.url} sends too slowly")
                for piece in chain(decoder.feed(chunk), (b"",)):
                    total += len(piece)
                    if max(total, received) > max_bytes:
                        message = f"{response.url} sends more than {max_bytes} bytes"
                        raise HttpError("too_big", message)
                    if piece:
                        yield piece
                asked = trio.current_time()
        except BodyError as error:
            raise HttpError("malformed", f"{response.url}: {error}") from error
        except HttpError:
            raise
        except trio.TooSlowError as error:
            raise HttpError("timeout", f"{response.host} stopped sending") from error
        except (*BROKEN, OSError) as error:
            raise HttpError("unreachable", f"{response.host} broke off: {_cause(error)}") from error
        except Exception as error:
            raise self._internal(error, response.url) from error

    async def _refusal(self, response: ClientResponse) -> HttpError:
        """Read the body and headers of a refusal."""
        body = bytearray()
        try:
            async for chunk in self._bounded(response, MAX_ERROR_BODY):
                body += chunk
            document = read_json(bytes(body))
        except (HttpError, ValueError):
            document = None  # an HTML page or a cut-off body adds nothing to the status
        fields = document if isinstance(document, dict) else {}
        code = fields.get("error", fields.get("code"))  # of XRPC, of the Connect protocol
        now = time.time()
        return HttpError(
            "status",
            f"{response.url} answered {response.status} {str(code or '')[:100]}".strip(),
            status=response.status,
            code=code if isinstance(code, str) else "",
            retry_after=read_pause(response.status, response.headers, now),
            limit=read_rate_limit(response.headers, now),
        )

    def _close(self, response: ClientResponse) -> None:
        """Close a response; an exception of the connection does not change the outcome."""
        try:
            response.close()
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            self._boundary.caught(error, "close", host=response.host)

    def _internal(self, error: Exception, url: str) -> HttpError:
        self._boundary.caught(error, "request", host=_host(url))
        return HttpError("internal_error", f"{_host(url)}: {described(error)}")


async def _send(pool: ConnectionPool, url: str, posted: PostedBody | None = None) -> ClientResponse:
    try:
        return await pool.send(url, posted)
    except ForbiddenAddressError as error:
        raise HttpError("forbidden", str(error), misled=error.resolved) from error
    except trio.TooSlowError as error:
        raise HttpError("timeout", f"{_host(url)} does not answer") from error
    except (*BROKEN, InvalidUrlError, OSError) as error:  # ssl.SSLError is an OSError
        message = f"{_host(url)} cannot be reached: {_cause(error)}"
        raise HttpError("unreachable", message) from error


def _cause(error: Exception) -> BaseException:
    """Return the error of the system or of TLS behind trio's."""
    return error.__cause__ or error if isinstance(error, trio.BrokenResourceError) else error


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or url)[:200]
    except ValueError:
        return url[:200]


def _origin(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port of a URL, each in its one spelling."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, normal_host(parts.hostname or "") or "", port


def redirect_target(url: str, location: str) -> str:
    """Return where a redirect leads. Raises HttpError if it is no web server: the host's fault."""
    try:
        target = urljoin(url, location.strip())
        scheme = urlsplit(target).scheme
        if scheme in {"http", "https"}:
            parse_url(target)
    except ValueError as error:  # InvalidUrlError is one
        raise HttpError("malformed", f"{url} redirects to {location[:200]!r}") from error
    if scheme not in {"http", "https"}:
        message = f"{url} redirects to {location[:200]!r}, which is not https"
        raise HttpError("forbidden", message, misled=True)
    return target


class _Window:
    """Detects a body that comes too slowly; only the time spent waiting for it counts."""

    def __init__(self, min_rate: float, seconds: float) -> None:
        self._min_rate = min_rate
        self._seconds = seconds
        self._waited = 0.0
        self._received = 0

    def too_slow(self, waited: float, received: int) -> bool:
        """Note a part of the body; return whether a full window has held too little."""
        self._waited += waited
        self._received += received
        if self._waited < self._seconds:
            return False
        slow = self._received < self._min_rate * self._waited
        self._waited, self._received = 0.0, 0
        return slow


def read_rate_limit(headers: Mapping[str, str], now: float) -> RateLimit | None:
    """Read the rate limit from the headers of a response; `now` in Unix seconds."""
    remaining, reset = headers.get("ratelimit-remaining"), headers.get("ratelimit-reset")
    if remaining is None:
        fields = dict(_FIELD.findall(headers.get("ratelimit", "")[:200]))
        remaining, reset = fields.get("r"), fields.get("t")
    if not _is_number(remaining) or not _is_number(reset):
        return None
    seconds = float(reset or 0)
    if seconds >= _EPOCH_FROM:
        seconds -= now
    return RateLimit(int(remaining or 0), min(max(seconds, 0.0), LONGEST_SECONDS))


def read_pause(status: int, headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that a refusal asks to wait for, None where it does not say.

    A 429 without Retry-After, as PDSes sent it for years, is over when its limit resets.
    """
    seconds = read_retry_after(headers.get("retry-after"), now)
    if seconds is None and status == 429:
        limit = read_rate_limit(headers, now)
        if limit is not None and not limit.remaining:
            return limit.reset_seconds
    return seconds


def read_retry_after(text: str | None, now: float) -> float | None:
    """Return the seconds of a Retry-After header, None without a usable one."""
    if text is None or len(text) > 100:
        return None
    if _is_number(text):
        seconds = float(text)
    else:
        moment = read_date(text)
        if moment is None:
            return None
        seconds = moment - now
    return min(max(seconds, 0.0), LONGEST_SECONDS)


def read_date(text: str) -> float | None:
    """Return the Unix seconds of a date in a header, None for any other text."""
    try:
        return parsedate_to_datetime(text[:100]).timestamp()
    except (ValueError, OverflowError, OSError, LookupError, TypeError):  # of odd numbers and words
        return None


def _is_number(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and len(text) <= 12
