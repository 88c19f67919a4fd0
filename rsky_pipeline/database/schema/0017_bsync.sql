-- Operations that were read from bsync (`bsync_url`). Their `place` orders those of a log: the
-- number of the reading (`cursor reset` begins another one) times 2^48, and the operation's id.
CREATE TABLE rsky_pipeline.bsync_log (
    log text PRIMARY KEY,  -- mute, notif or operation
    place bigint NOT NULL,  -- the highest that was applied
    digest text NOT NULL,  -- of that operation
    history boolean NOT NULL,  -- whether it came of the first reading to the end
    applied_at timestamptz NOT NULL DEFAULT now()
);
-- Older operations than these have no effect: so replays and late ones change nothing.
CREATE TABLE rsky_pipeline.bsync_applied (
    actor text,
    log text,
    namespace text,  -- of mutes and priorities the table's name; '' for "unmute all"
    key text,  -- of mutes the subject
    place bigint NOT NULL,  -- of the last operation
    updated bigint NOT NULL DEFAULT 0,  -- of the last UPDATE
    deleted bigint NOT NULL DEFAULT 0,  -- of the last DELETE
    PRIMARY KEY (actor, log, namespace, key)
);
-- Every CREATE of a bookmark, draft or subscription. One whose key or subject another one held then
-- has no row (`holds`).
CREATE TABLE rsky_pipeline.bsync_created (
    actor text,
    namespace text,
    key text,
    created bigint,
    deleted bigint NOT NULL,  -- of the first DELETE since; 0 if there was none
    subject text NOT NULL,  -- '' of drafts
    holds boolean NOT NULL,
    PRIMARY KEY (actor, namespace, key, created)
);
CREATE INDEX bsync_created_subject_idx ON rsky_pipeline.bsync_created (actor, namespace, subject)
    WHERE subject <> '';
-- The columns of `actor` about the age, each with the place of the operation that set it.
CREATE TABLE rsky_pipeline.bsync_age_assurance (
    did text PRIMARY KEY,
    status text,
    status_place bigint NOT NULL,
    initiated text,
    initiated_place bigint NOT NULL,
    access text,
    access_place bigint NOT NULL,
    country text,
    country_place bigint NOT NULL,
    region text,
    region_place bigint NOT NULL,
    written boolean NOT NULL  -- false while there is no row of the account
);
CREATE INDEX bsync_age_assurance_waiting_idx ON rsky_pipeline.bsync_age_assurance (did)
    WHERE NOT written;
