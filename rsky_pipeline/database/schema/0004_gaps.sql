-- Events of relays that were not seen, and what was done about it.
CREATE TABLE rsky_pipeline.gap (
    id text PRIMARY KEY,
    host text NOT NULL,
    kind text NOT NULL,
    from_seq bigint,
    to_seq bigint,
    from_time text,
    to_time text,
    detected_at timestamptz NOT NULL DEFAULT now(),
    status text NOT NULL DEFAULT 'open',
    repos_listed bigint NOT NULL DEFAULT 0,
    repos_queued bigint NOT NULL DEFAULT 0,
    list_cursor text,
    error text,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX gap_status_idx ON rsky_pipeline.gap (status);
