"""`repo_backfill` to repos to `firehose_backfill`: fetch, verify, unpack, emit, retry.

Keeps the promise that an entry is acknowledged only after its last record is durably queued."""
