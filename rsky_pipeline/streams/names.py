"""Names of streams and keys, as the original services used them."""

from rsky_pipeline.configuration.endpoints import HostKey
from rsky_pipeline.configuration.topology import (
    BSYNC_LIVE,
    FIREHOSE_BACKFILL,
    FIREHOSE_LIVE,
    LABEL_LIVE,
    REPO_BACKFILL,
    REPO_BACKFILL_HIGH,
    REPO_BACKFILL_LOW,
    REPO_STREAMS,
    STREAMS,
)

# Rejected frames, each as JSON with its reason.
FIREHOSE_RAW_LETTERS = "firehose_raw_dlq"
LABEL_RAW_LETTERS = "label_raw_dlq"

__all__ = [
    "BSYNC_LIVE",
    "CURSOR_POSITIONS",
    "FIREHOSE_BACKFILL",
    "FIREHOSE_LIVE",
    "FIREHOSE_RAW_LETTERS",
    "GAPS",
    "IDENTITIES",
    "INGESTERS",
    "LABEL_LIVE",
    "LABEL_RAW_LETTERS",
    "NUMBERINGS",
    "REPO_BACKFILL",
    "REPO_BACKFILL_HIGH",
    "REPO_BACKFILL_LOW",
    "REPO_STREAMS",
    "RESYNC_LATER",
    "STREAMS",
    "TRIALS",
    "WAITING_KEY",
    "cursor_key",
    "dead_letters",
]

# A hash: the coverage of each stored cursor, by cursor key.
CURSOR_POSITIONS = "rsky_pipeline:cursors"
# A hash: when a host began to number its events anew, in Unix seconds, by cursor key.
NUMBERINGS = "rsky_pipeline:numberings"
# A hash: the ingesters that run, each with a note that it renews (`ingester/others.py`).
INGESTERS = "rsky_pipeline:ingesters"
# Two hashes: documents of accounts that the roles share (`streams/identities.py`).
IDENTITIES = "rsky_pipeline:identities", "rsky_pipeline:identities:before"
# A stream: detected gaps, to be written to `rsky_pipeline.gap` in PostgreSQL.
GAPS = "rsky_pipeline:gaps"
# A stream: repos to fetch again after a delay.
RESYNC_LATER = "rsky_pipeline:resync_later"
# A hash: entries that are tried alone since they may crash their workers (`streams/consumer.py`).
TRIALS = "rsky_pipeline:trials"
# A sorted set: postponed repo jobs by due time (`streams/waiting.py`).
WAITING_KEY = "rsky_pipeline:repos_waiting"


def dead_letters(stream: str) -> str:
    """Return the name of a stream's dead-letter stream."""
    return f"{stream}_dlq"


def cursor_key(stream: str, host: HostKey) -> str:
    """Return the key of a host's cursor: `cursor_key(FIREHOSE_LIVE, endpoint.key)`."""
    return f"{stream}:cursor:{host}"
