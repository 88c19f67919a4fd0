-- What Redis notes of the database that it works with, so that neither is used with another's.
CREATE TABLE rsky_pipeline.installation (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    made_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO rsky_pipeline.installation DEFAULT VALUES;
