"""From a handle to the DID that it belongs to. https://atproto.com/specs/handle#handle-resolution

A DNS TXT record and a document of the handle's host are both valid; DNS is asked first. Whether the
account claims the handle stands in its DID document.
"""

from collections.abc import Iterable
from urllib.parse import quote

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver
import trio

from rsky_pipeline.atproto.syntax import is_did, is_handle
from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.network.body import read_text
from rsky_pipeline.network.connect import is_public_name
from rsky_pipeline.network.http import HttpClient, HttpError

DNS_SECONDS = 5.0
HTTP_SECONDS = 10.0
MAX_DOCUMENT = 65_536
_PREFIX = "did="
_NO_ANSWER = (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.resolver.YXDOMAIN)


class HandleUnavailableError(Exception):
    """Neither DNS nor the host answered: try again later."""


class Handles:
    """Resolves handles, by DNS and HTTPS or by one server that answers for all of them."""

    def __init__(
        self, http: HttpClient, *, resolver_url: str | None = None, allow_private: bool = False
    ) -> None:
        self._http = http
        self._resolver = parse_endpoint(resolver_url) if resolver_url else None
        self._allow_private = allow_private

    async def resolve(self, handle: str) -> str | None:
        """Return the DID of a handle, None if it has none. Raises HandleUnavailableError."""
        handle = handle.lower()
        if not is_handle(handle):
            return None
        if self._resolver is not None:
            return await self._ask_resolver(handle)
        if not self._allow_private and not is_public_name(handle):
            return None
        failures: list[HandleUnavailableError] = []
        for ask in (self._ask_dns, self._ask_host):
            try:
                did = await ask(handle)
            except HandleUnavailableError as failure:
                failures.append(failure)
                continue
            if did is not None:
                return did
        if failures:
            raise failures[0]
        return None

    async def _ask_dns(self, handle: str) -> str | None:
        try:
            with trio.fail_after(DNS_SECONDS):
                answer = await dns.asyncresolver.resolve(
                    f"_atproto.{handle}.", dns.rdatatype.TXT, lifetime=DNS_SECONDS
                )
        except _NO_ANSWER:
            return None
        except (dns.exception.DNSException, trio.TooSlowError, OSError) as error:
            raise HandleUnavailableError(f"DNS of {handle}: {type(error).__name__}") from error
        return did_of_records(b"".join(record.strings) for record in answer)

    async def _ask_host(self, handle: str) -> str | None:
        scheme = "http" if self._allow_private else "https"
        url = f"{scheme}://{handle}/.well-known/atproto-did"
        try:
            body = await self._http.get_bytes(
                url, max_bytes=MAX_DOCUMENT, total_seconds=HTTP_SECONDS
            )
        except HttpError as failure:
            # Most hosts of handles serve no such document, and many do not exist: no, not unknown.
            unknown = failure.kind in {"timeout", "internal_error"}
            if unknown or failure.status >= 500 or failure.status == 429:
                raise HandleUnavailableError(str(failure)) from failure
            return None
        # Of a document with more lines the first one counts, as for the official services.
        text = read_text(body).lstrip().partition("\n")[0].strip()
        return text if is_did(text) else None

    async def _ask_resolver(self, handle: str) -> str | None:
        assert self._resolver is not None
        path = f"/xrpc/com.atproto.identity.resolveHandle?handle={quote(handle)}"
        try:
            answer = await self._http.get_json(
                self._resolver.http_url(path), total_seconds=HTTP_SECONDS, trusted=True
            )
        except HttpError as failure:
            if failure.kind == "status" and failure.status in {400, 404}:
                return None
            raise HandleUnavailableError(str(failure)) from failure
        did = answer.get("did") if isinstance(answer, dict) else None
        return did if isinstance(did, str) and is_did(did) else None


def did_of_records(texts: Iterable[bytes]) -> str | None:
    """Return the DID that TXT records name; several different ones name nobody."""
    found = {
        text[len(_PREFIX) :].strip()
        for raw in texts
        if (text := raw.decode("utf-8", "replace")).startswith(_PREFIX)
    }
    if len(found) != 1:
        return None
    (did,) = found
    return did if is_did(did) else None
