"""Following the changes of the did:plc directory, so that no stale document proves anything.

An account's document is cached for `identity_cache_seconds`, and #identity events of relays end
that sooner. A relay may not send them, though, and a key that was taken away would prove commits
until then. The directory's export names every account that has changed, in the order of time.
https://web.plc.directory/api/redoc#operation/Export
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import orjson
import trio

from rsky_pipeline.configuration.endpoints import parse_endpoint
from rsky_pipeline.network.http import HttpClient, HttpError
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.logging import ThrottledLog

_log = logging.getLogger(__name__)
LOOK_SECONDS = 3.0  # between two looks
PAGE_OPERATIONS = 1_000
MAX_PAGE = 32 * 1024 * 1024  # bytes; an operation has 7,500 at most, nearly all 1,000
# Operations become visible a moment after the time that they bear, and not all in its order.
OVERLAP = timedelta(seconds=10)
BEGINNING = timedelta(hours=1)  # before our time, as the directory's clock may be another one
_MAX_SEEN = 20_000
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


class PlcExport:
    """Reads the operations of a directory from now on; `changed` is called for each account."""

    def __init__(self, http: HttpClient, plc_url: str, changed: Callable[[str], object]) -> None:
        self._http = http
        self._plc = parse_endpoint(plc_url)
        self._changed = changed
        self._seen: OrderedDict[str, None] = OrderedDict()  # CIDs of operations
        self._after = datetime.now(UTC) - BEGINNING
        self._log = ThrottledLog(_log)

    async def run(self) -> None:
        """Read until cancelled."""
        _log.info("following the directory", extra={"host": self._plc.key})
        backoff = Backoff()
        while True:
            began = trio.current_time()
            try:
                while await self.look():
                    pass
            except HttpError as error:
                backoff, wait = backoff.failed(trio.current_time())
                wait = max(wait, error.retry_after or 0.0)
                self._log.warning(
                    "the export of the directory cannot be read", key=error.kind,
                    host=self._plc.key, error=str(error), wait_s=round(wait, 1),
                )  # fmt: skip
            else:
                backoff, wait = backoff.worked(began), LOOK_SECONDS
            await trio.sleep(wait)

    async def look(self) -> bool:
        """Read a page; return whether another one waits. Raises HttpError."""
        after = self._after.strftime(_TIME)
        url = self._plc.http_url(f"/export?count={PAGE_OPERATIONS}&after={quote(after)}")
        body = await self._http.get_bytes(url, max_bytes=MAX_PAGE, total_seconds=60.0, trusted=True)
        operations = [_operation(line) for line in body.splitlines() if line.strip()]
        newest = self._after
        for number, found in enumerate(operations):
            if found is None:
                raise HttpError("malformed", f"{url} has no operation in line {number + 1}")
            did, cid, time = found
            newest = max(newest, time)
            if cid not in self._seen:
                self._changed(did)
            self._seen[cid] = None
            self._seen.move_to_end(cid)
        while len(self._seen) > _MAX_SEEN:
            self._seen.popitem(last=False)
        full = len(operations) >= PAGE_OPERATIONS and newest > self._after
        # Behind a full page go on where it ends; at the end look once more at the last seconds.
        self._after = newest if full else max(self._after, newest - OVERLAP)
        return full


def _operation(line: bytes) -> tuple[str, str, datetime] | None:
    """Return account, CID and time of an operation, None if the line has none."""
    try:
        item = orjson.loads(line)
        did, cid, time = item["did"], item["cid"], datetime.fromisoformat(item["createdAt"])
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(did, str) or not isinstance(cid, str) or time.tzinfo is None:
        return None
    return did, cid, time
