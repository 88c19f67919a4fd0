-- How far each indexer has written each of its streams: a number that rises with every transaction,
-- in the transaction. What is acknowledged in Redis is noted there with its number, so that a
-- database without its newest transactions is recognised.
CREATE TABLE rsky_pipeline.applied_mark (
    worker text NOT NULL,
    stream text NOT NULL,
    number bigint NOT NULL,
    reached timestamptz NOT NULL,  -- when the entries of that transaction came into the stream
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (worker, stream)
) WITH (fillfactor = 10);
