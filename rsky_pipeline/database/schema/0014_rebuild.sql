-- How far `index-repo --rebuild` is, so that one that was killed goes on where it was; and what it
-- has found and written so far. The row is removed when it is done.
CREATE TABLE rsky_pipeline.rebuild (
    scope text PRIMARY KEY,  -- accounts, collections and source
    after text NOT NULL DEFAULT '',  -- the last account that is done, in the order of DIDs
    report jsonb NOT NULL DEFAULT '{}',
    began_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
