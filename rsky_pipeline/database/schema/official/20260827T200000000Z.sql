-- 0.0.278
CREATE TABLE reference_list_opt_out (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "subjectUri" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED,
    CONSTRAINT reference_list_opt_out_unique_subject UNIQUE (creator, "subjectUri")
);
