-- What became of each file of `rsky-pipeline load`, so that it goes on where it was stopped.
--
-- status: loaded   every record is in the tables
--         current  what was stored was as new as the file
--         failed   `reason` and `error` say why
CREATE TABLE rsky_pipeline.load_file (
    path text PRIMARY KEY,
    size bigint NOT NULL,
    mtime_ns bigint NOT NULL,  -- with the size: another one means another content
    status text NOT NULL,
    did text,
    rev text,
    reason text,
    error text,
    records bigint NOT NULL DEFAULT 0,
    refused jsonb,  -- records that cannot be indexed, by reason
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX load_file_status_idx ON rsky_pipeline.load_file (status, reason);
