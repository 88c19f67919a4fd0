-- A stand-in for the AppView's table of this name, until the AppView makes it (release 0.0.278): the
-- schema of the AppView comes first in our search_path. See `official.py`.
CREATE TABLE rsky_pipeline.reference_list_opt_out (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "subjectUri" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED,
    UNIQUE (creator, "subjectUri")
);
