-- Tables of the pipeline's own, in a schema of their own. Safe to repeat.
CREATE SCHEMA IF NOT EXISTS rsky_pipeline;

-- The rev at which a uri was deleted: stops creates that arrive late.
CREATE TABLE IF NOT EXISTS rsky_pipeline.tombstone (
    uri text NOT NULL,
    did text NOT NULL,
    rev text NOT NULL,
    deleted_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tombstone_pkey PRIMARY KEY (uri)
);
CREATE INDEX IF NOT EXISTS tombstone_did_idx ON rsky_pipeline.tombstone (did);

-- The newest account event that was applied: a replayed older one must not undo it.
CREATE TABLE IF NOT EXISTS rsky_pipeline.account_event (
    did text NOT NULL,
    event_time text NOT NULL,
    active boolean NOT NULL,
    status text,
    CONSTRAINT account_event_pkey PRIMARY KEY (did)
);

-- Accounts whose handle has to be resolved again.
CREATE TABLE IF NOT EXISTS rsky_pipeline.handle_check (
    did text NOT NULL,
    forced boolean NOT NULL DEFAULT false,
    requested_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT handle_check_pkey PRIMARY KEY (did)
);
CREATE INDEX IF NOT EXISTS handle_check_requested_idx ON rsky_pipeline.handle_check (requested_at);
