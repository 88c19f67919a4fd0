"""Environment variables of the original services that have no counterpart here.

They are no errors: a deployment that is moved over keeps its environment. `config check` tells
what becomes of each.
"""

from collections.abc import Mapping, Sequence

from rsky_pipeline.configuration.topology import (
    FIREHOSE_BACKFILL,
    FIREHOSE_LIVE,
    LABEL_LIVE,
    REPO_BACKFILL,
)

_MODE = "roles are chosen with `run --role`"
_CONSUMER = "consumers name themselves after host, role and number"
_POOL = "each worker has one writing connection; see indexer_workers"

_UNUSED: Mapping[str, str] = {
    "INGESTER_MODE": _MODE,
    "INDEXER_MODE": _MODE,
    "INDEXER_CONSUMER": _CONSUMER,
    "BACKFILLER_CONSUMER": _CONSUMER,
    "INDEXER_CONCURRENCY": "batches take the place of tasks; see indexer_batch_size",
    "BACKFILLER_BATCH_SIZE": "batches of firehose_backfill have a size of their own",
    "DB_POOL_MAX_SIZE": _POOL,
    "DB_POOL_MIN_IDLE": _POOL,
    "METRICS_PORT": "it meant a port for each process; set ingester_metrics_port, "
    "indexer_metrics_port and backfiller_metrics_port",
    "INGESTER_LABEL_STREAM_HIGH_WATER_MARK": "live_high_water_mark holds for label_live too",
    "BACKFILLER_SKIP_SIGNATURE_VERIFICATION": "commits of fetched repos are always verified",
    "ENABLE_DID_RESOLUTION": "identities are always resolved",
    "RUST_LOG": "set log_level",
}

# Names of streams and groups are fixed: all workers, also the original ones, must agree on them.
_FIXED: Mapping[str, str] = {
    "INGESTER_FIREHOSE_STREAM": FIREHOSE_LIVE,
    "INGESTER_LABEL_STREAM": LABEL_LIVE,
    "INGESTER_REPO_STREAM": REPO_BACKFILL,
    "INDEXER_STREAMS": f"{FIREHOSE_LIVE},{FIREHOSE_BACKFILL}",
    "INDEXER_LABEL_STREAM": LABEL_LIVE,
    "BACKFILLER_BACKFILL_STREAM": REPO_BACKFILL,
    "BACKFILLER_FIREHOSE_STREAM": FIREHOSE_BACKFILL,
    "BACKFILLER_DLQ_STREAM": f"{REPO_BACKFILL}_dlq",
}


def remarks(environ: Mapping[str, str]) -> Sequence[str]:
    """Return a line for each variable that is set and has no effect."""
    unused = [f"{name} has no effect: {why}" for name, why in _UNUSED.items() if environ.get(name)]
    fixed = [
        f"{name} = {environ[name][:100]!r} has no effect: the name is always {value}"
        for name, value in _FIXED.items()
        if environ.get(name) and environ[name].replace(" ", "") != value
    ]
    return unused + fixed
