-- Whether programs that do not know a step must not use a database that has it. Steps add only, so
-- it is false, and an older program can be put back, unless the step's file says otherwise.
ALTER TABLE rsky_pipeline.schema_version ADD COLUMN breaks_older boolean NOT NULL DEFAULT false;
