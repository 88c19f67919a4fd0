-- What rsky-pipeline needs beside the AppView's tables. The AppView sees one additional nullable
-- column and one additional index.

-- The revision of the repo that wrote the row: an older event never overwrites a newer state.
ALTER TABLE record ADD COLUMN IF NOT EXISTS rev varchar;

-- A deleted reply is looked up by its own uri; the primary key starts with the root's.
CREATE INDEX IF NOT EXISTS op_thread_reply_uri_idx ON op_thread_reply (uri);

-- Deletes by record: a create that arrives later with an older revision loses against them.
CREATE TABLE rsky_pipeline.tombstone (
    uri text PRIMARY KEY,
    did text NOT NULL,
    rev text NOT NULL,
    deleted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX tombstone_did_idx ON rsky_pipeline.tombstone (did);

-- The newest account event applied: an older one that is replayed must not undo it.
CREATE TABLE rsky_pipeline.account_event (
    did text PRIMARY KEY,
    relay text,
    seq bigint,
    event_time text,
    active boolean,
    status text
);

-- Handles that wait for a check against DNS and the account's DID document.
CREATE TABLE rsky_pipeline.handle_check (
    did text PRIMARY KEY,
    forced boolean NOT NULL DEFAULT false,
    requested_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX handle_check_requested_at_idx ON rsky_pipeline.handle_check (requested_at);

-- The last outcome of fetching each repo.
CREATE TABLE rsky_pipeline.backfill_repo (
    did text PRIMARY KEY,
    status text NOT NULL,
    rev text,
    error text,
    attempts integer NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now()
);
