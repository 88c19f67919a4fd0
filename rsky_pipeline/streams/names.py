"""Names of streams and keys, as the original services used them."""

from rsky_pipeline.configuration.endpoints import HostKey
from rsky_pipeline.configuration.topology import (
    FIREHOSE_BACKFILL,
    FIREHOSE_LIVE,
    LABEL_LIVE,
    REPO_BACKFILL,
    REPO_BACKFILL_HIGH,
    REPO_BACKFILL_LOW,
    REPO_STREAMS,
    STREAMS,
)

# Raw frames that could not be used, each as JSON with its reason.
FIREHOSE_RAW_LETTERS = "firehose_raw_dlq"
LABEL_RAW_LETTERS = "label_raw_dlq"

__all__ = [
    "CURSOR_POSITIONS",
    "FIREHOSE_BACKFILL",
    "FIREHOSE_LIVE",
    "FIREHOSE_RAW_LETTERS",
    "GAPS",
    "LABEL_LIVE",
    "LABEL_RAW_LETTERS",
    "REPO_BACKFILL",
    "REPO_BACKFILL_HIGH",
    "REPO_BACKFILL_LOW",
    "REPO_STREAMS",
    "RESYNC_LATER",
    "STREAMS",
    "WAITING_KEY",
    "cursor_key",
    "dead_letters",
]

# A hash: what each stored cursor covers, by the cursor's key.
CURSOR_POSITIONS = "rsky_pipeline:cursors"
# A stream: gaps that were noticed, on their way to `rsky_pipeline.gap` in PostgreSQL.
GAPS = "rsky_pipeline:gaps"
# A stream: repos that are to be fetched again, but not so soon.
RESYNC_LATER = "rsky_pipeline:resync_later"
# A sorted set: repo jobs that wait for their time (`streams/waiting.py`).
WAITING_KEY = "rsky_pipeline:repos_waiting"


def dead_letters(stream: str) -> str:
    """Return the stream that holds what could not be processed of another one."""
    return f"{stream}_dlq"


def cursor_key(stream: str, host: HostKey) -> str:
    """Return the key of a host's cursor: `cursor_key(FIREHOSE_LIVE, endpoint.key)`."""
    return f"{stream}:cursor:{host}"
