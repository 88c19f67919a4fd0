-- What became of fetching each repo, for `backfill status` and for an operator's own queries.
--
-- status: done         all of it was queued at `rev`, or what was stored was already new enough
--         waiting      an attempt failed; the next is at `next_attempt_at`
--         unavailable  the account is deactivated, suspended, taken down or gone: only a new job
--                      asks again
--         failed       given up after `attempts`; a dead letter says so too
--         cancelled    taken out of the queue by an operator
ALTER TABLE rsky_pipeline.backfill_repo
    ADD COLUMN IF NOT EXISTS kind text,  -- permanent, transient, rate_limited, invalid
    ADD COLUMN IF NOT EXISTS reason text,  -- a short stable code; `error` has the words
    ADD COLUMN IF NOT EXISTS host text,  -- of the PDS
    ADD COLUMN IF NOT EXISTS next_attempt_at timestamptz,
    ADD COLUMN IF NOT EXISTS records bigint,  -- queued by the last attempt that was done
    ADD COLUMN IF NOT EXISTS deletes bigint,  -- rows that the repo no longer held
    ADD COLUMN IF NOT EXISTS bytes bigint,  -- of its CAR
    ADD COLUMN IF NOT EXISTS seconds real;  -- that the last attempt took
CREATE INDEX backfill_repo_status_idx ON rsky_pipeline.backfill_repo (status, reason);
CREATE INDEX backfill_repo_updated_at_idx ON rsky_pipeline.backfill_repo (updated_at);
