-- What an operator has blocked (`block add`). Workers leave it out from the commit on.
CREATE TABLE rsky_pipeline.block (
    kind text NOT NULL,  -- account, host or collection
    subject text NOT NULL,  -- a DID; a host (.example.com: all below it); an NSID or a prefix
    rows text NOT NULL DEFAULT 'keep',  -- what is done with rows that are there
    reason text NOT NULL DEFAULT '',
    added_by text NOT NULL DEFAULT '',
    since timestamptz NOT NULL DEFAULT now(),
    lifted boolean NOT NULL DEFAULT false,  -- it does not count any more, and is being repaired
    PRIMARY KEY (kind, subject)
);
-- Accounts of blocked hosts, as known when the host was blocked.
CREATE TABLE rsky_pipeline.blocked_account (
    host text NOT NULL,  -- subject of the block
    did text NOT NULL,
    PRIMARY KEY (host, did)
);
-- Raised by each change of blocks, and read in each transaction that writes events.
CREATE TABLE rsky_pipeline.selection (version bigint NOT NULL);

-- The `takedownRef` of a record or account that was deleted, for when it comes back.
ALTER TABLE rsky_pipeline.tombstone ADD COLUMN takedown text;
CREATE TABLE rsky_pipeline.account_takedown (
    did text PRIMARY KEY,
    ref text NOT NULL
);
