-- Replies that came before a post above them, until it comes: whom they have told, and where they
-- go on. Without this the authors of what comes later would not be told.
CREATE TABLE rsky_pipeline.early_reply (
    uri text PRIMARY KEY,
    missing text NOT NULL,  -- uri of the nearest post above that is not there
    height integer NOT NULL,  -- of that post above the reply; the parent has 1
    told text NOT NULL,  -- DIDs that are not told again, separated by spaces
    hidden text NOT NULL,  -- replies that the thread's owner hides: nobody above them is told
    noticed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX early_reply_missing_idx ON rsky_pipeline.early_reply (missing);
CREATE INDEX early_reply_noticed_at_idx ON rsky_pipeline.early_reply (noticed_at);

-- Whether the floor is that of an account that was purged, which leaves no marks in threads.
ALTER TABLE rsky_pipeline.repo_floor ADD COLUMN purged boolean NOT NULL DEFAULT false;
