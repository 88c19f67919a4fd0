-- What the pipeline adds to the AppView's own tables. All of it is invisible to the official
-- migrator and data plane. Safe to repeat.
ALTER TABLE record ADD COLUMN IF NOT EXISTS rev varchar;
CREATE INDEX IF NOT EXISTS op_thread_reply_uri_idx ON op_thread_reply (uri);
