"""Brings whole repos in: from the streams of repos to `firehose_backfill`.

In: entries of `repo_backfill_high`, `repo_backfill`, `repo_backfill_low` (`streams/repo_job.py`),
repos over HTTP, the revs that PostgreSQL has. Out: events of `firehose_backfill`, and a row of
`rsky_pipeline.backfill_repo` for each outcome. An entry is acknowledged only after its last event
and its outcome are stored.

`attempt.py` is read first: the whole way of one job. `worker.py` takes entries while there is room
and starts a trio task for each; `jobs.py` takes and ends them; `store.py` writes events and
outcomes. Every store is called in the thread of a link: `read`, `settle` (endings), `append` and
`watch` for Redis, `look-ups` and `outcomes` for PostgreSQL. One call serves many jobs
(`runtime/coalescer.py`), since a thread hop and a round trip cost more than the work of one. Repos
of some size are unpacked in one further thread, temporary files are written in two.

How a repo is fetched, verified and compared is in `rsky_pipeline.repos`. This package knows nothing
of the indexer but its stream and its group, and nothing of where jobs come from.
"""
