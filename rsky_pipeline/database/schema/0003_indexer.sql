-- What is known of a repo as a whole: everything up to this rev has been indexed, so an older state
-- that arrives late is stale even where no tombstone says so.
CREATE TABLE rsky_pipeline.repo_floor (
    did text PRIMARY KEY,
    rev text NOT NULL,
    pruned boolean NOT NULL DEFAULT false -- whether tombstones that it makes needless are removed
);
CREATE INDEX repo_floor_unpruned_idx ON rsky_pipeline.repo_floor (did) WHERE NOT pruned;

-- Records that cannot be indexed: the newest refused state of each, and why.
CREATE TABLE rsky_pipeline.rejected_record (
    uri text PRIMARY KEY,
    did text NOT NULL,
    collection text NOT NULL,
    rev text NOT NULL,
    cid text NOT NULL,
    reason text NOT NULL,
    message text NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX rejected_record_did_idx ON rsky_pipeline.rejected_record (did);
CREATE INDEX rejected_record_rejected_at_idx ON rsky_pipeline.rejected_record (rejected_at);

-- Looking up a handle that nobody answers for is put off longer each time.
ALTER TABLE rsky_pipeline.handle_check ADD COLUMN attempts integer NOT NULL DEFAULT 0;

-- Accounts that are said to be deleted, until their host confirms or denies it.
CREATE TABLE rsky_pipeline.deletion_check (
    did text PRIMARY KEY,
    attempts integer NOT NULL DEFAULT 0,
    requested_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX deletion_check_requested_at_idx ON rsky_pipeline.deletion_check (requested_at);
