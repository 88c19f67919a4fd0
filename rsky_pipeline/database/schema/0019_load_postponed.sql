-- Indexes and counts that a first load into empty tables has put off until its rows are there.
-- A load that was interrupted left them here, and the next one goes on.
CREATE TABLE rsky_pipeline.load_postponed (
    name text PRIMARY KEY,  -- of an index; `counts` stands for all counts
    definition text NOT NULL
);
