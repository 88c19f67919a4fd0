"""The indexer role: entries of the streams become rows of the AppView's tables.

In: entries of `firehose_live`, `label_live`, `bsync_live` and `firehose_backfill`, as one consumer
of the group `indexer_group`. Out: rows of the AppView's schema and of `rsky_pipeline`,
acknowledgements, dead letters. Read `core.apply` first: an entry is read (`core.entries`), a batch
is planned without I/O (`core.plan`), its rows are written in one transaction (`core.write`, from
the declarations in `collections`), and it is acknowledged after the commit (`role`). Operations of
bsync, which are no records, are applied by `bsync.apply`.

Tasks of a worker: one reader a stream, one that applies and one that acknowledges (each with a
thread and a connection of its own, so that the next batch is read and the one before acknowledged
while one is applied), the upkeep of streams and tables, and the look-ups of handles and deleted
accounts (`accounts`). The role must not know the producers of entries, nor the formats of relays
and repos.
"""
