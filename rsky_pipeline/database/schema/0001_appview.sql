-- The tables of the official AppView data plane, as the 58 migrations of its
-- release 0.0.275 leave them; those of later releases are in the folder `official`.
-- Every name, column order and type is part of the contract with the AppView that reads them.
-- Names are unqualified: the schema is chosen by search_path. Text that holds an instant is
-- always YYYY-MM-DDTHH:MM:SS.mmmZ and is compared as text.

-- Records as received ------------------------------------------------------------------------

CREATE TABLE record (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    did varchar NOT NULL,
    json text NOT NULL,
    "indexedAt" varchar NOT NULL,
    "takedownRef" varchar,
    tags jsonb
);
CREATE INDEX record_did_idx ON record (did);

CREATE TABLE duplicate_record (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    "duplicateOf" varchar NOT NULL,
    "indexedAt" varchar NOT NULL
);
CREATE INDEX duplicate_record_duplicate_of_idx ON duplicate_record ("duplicateOf");

-- Accounts -----------------------------------------------------------------------------------

CREATE TABLE actor (
    did varchar PRIMARY KEY,
    handle varchar CONSTRAINT actor_handle_key UNIQUE,
    "indexedAt" varchar NOT NULL,
    "takedownRef" varchar,
    "upstreamStatus" varchar,
    "trustedVerifier" boolean NOT NULL DEFAULT false,
    "ageAssuranceStatus" text,
    "ageAssuranceLastInitiatedAt" varchar,
    "ageAssuranceAccess" text,
    "ageAssuranceCountryCode" text,
    "ageAssuranceRegionCode" text
);
CREATE INDEX actor_handle_tgrm_idx ON actor USING gist (handle gist_trgm_ops);

CREATE TABLE actor_sync (
    did varchar PRIMARY KEY,
    "commitCid" varchar NOT NULL,
    "repoRev" varchar
);

CREATE TABLE actor_state (
    did varchar PRIMARY KEY,
    "lastSeenNotifs" varchar NOT NULL,
    "priorityNotifs" boolean NOT NULL DEFAULT false,
    "lastSeenPriorityNotifs" varchar
);

CREATE TABLE profile (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "displayName" varchar,
    description varchar,
    "avatarCid" varchar,
    "bannerCid" varchar,
    "indexedAt" varchar NOT NULL,
    "joinedViaStarterPackUri" varchar,
    "createdAt" varchar NOT NULL,
    "pinnedPost" varchar,
    "pinnedPostCid" varchar
);
CREATE INDEX profile_creator_idx ON profile (creator);
CREATE INDEX profile_display_name_tgrm_idx ON profile USING gist ("displayName" gist_trgm_ops);
CREATE INDEX profile_starter_pack_joined_idx ON profile ("joinedViaStarterPackUri", "createdAt");

CREATE TABLE profile_agg (
    did varchar PRIMARY KEY,
    "followersCount" bigint NOT NULL DEFAULT 0,
    "followsCount" bigint NOT NULL DEFAULT 0,
    "postsCount" bigint NOT NULL DEFAULT 0
);

CREATE TABLE verification (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    rkey varchar NOT NULL,
    creator varchar NOT NULL,
    subject varchar NOT NULL,
    handle varchar NOT NULL,
    "displayName" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortedAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED,
    CONSTRAINT verification_unique_subject_creator UNIQUE (subject, creator)
);

-- Posts --------------------------------------------------------------------------------------

CREATE TABLE post (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    text varchar NOT NULL,
    "replyRoot" varchar,
    "replyRootCid" varchar,
    "replyParent" varchar,
    "replyParentCid" varchar,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED,
    langs jsonb,
    "invalidReplyRoot" boolean,
    "violatesThreadGate" boolean,
    tags jsonb,
    "violatesEmbeddingRules" boolean,
    "hasThreadGate" boolean,
    "hasPostGate" boolean
);
CREATE INDEX post_creator_cursor_idx ON post (creator, "sortAt", cid);
CREATE INDEX post_order_by_idx ON post ("sortAt", cid);
CREATE INDEX post_replyparent_idx ON post ("replyParent") INCLUDE (uri);

CREATE TABLE post_agg (
    uri varchar PRIMARY KEY,
    "likeCount" bigint NOT NULL DEFAULT 0,
    "replyCount" bigint NOT NULL DEFAULT 0,
    "repostCount" bigint NOT NULL DEFAULT 0,
    "quoteCount" bigint NOT NULL DEFAULT 0,
    "bookmarkCount" bigint NOT NULL DEFAULT 0
);

CREATE TABLE post_embed_image (
    "postUri" varchar NOT NULL,
    "position" varchar NOT NULL,
    "imageCid" varchar NOT NULL,
    alt varchar NOT NULL,
    PRIMARY KEY ("postUri", "position")
);

CREATE TABLE post_embed_gallery_image (
    "postUri" varchar NOT NULL,
    "position" varchar NOT NULL,
    "imageCid" varchar NOT NULL,
    alt varchar NOT NULL,
    PRIMARY KEY ("postUri", "position")
);

CREATE TABLE post_embed_external (
    "postUri" varchar PRIMARY KEY,
    uri varchar NOT NULL,
    title varchar NOT NULL,
    description varchar NOT NULL,
    "thumbCid" varchar
);

CREATE TABLE post_embed_record (
    "postUri" varchar NOT NULL,
    "embedUri" varchar NOT NULL,
    "embedCid" varchar NOT NULL,
    PRIMARY KEY ("postUri", "embedUri")
);

CREATE TABLE post_embed_video (
    "postUri" varchar PRIMARY KEY,
    "videoCid" varchar NOT NULL,
    alt varchar
);

CREATE TABLE quote (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    subject varchar NOT NULL,
    "subjectCid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED
);
CREATE INDEX quote_subject_cursor_idx ON quote (subject, "sortAt", cid);

CREATE TABLE op_thread_reply (
    "rootUri" varchar NOT NULL,
    "parentUri" varchar NOT NULL,
    uri varchar NOT NULL,
    "deletedAt" varchar,
    PRIMARY KEY ("rootUri", uri)
);

CREATE TABLE thread_gate (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "postUri" varchar NOT NULL CONSTRAINT "thread_gate_postUri_key" UNIQUE,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL
);

CREATE TABLE post_gate (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "postUri" varchar NOT NULL CONSTRAINT "post_gate_postUri_key" UNIQUE,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL
);

CREATE TABLE feed_item (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    type varchar NOT NULL,
    "postUri" varchar NOT NULL,
    "originatorDid" varchar NOT NULL,
    "sortAt" varchar NOT NULL
);
CREATE INDEX feed_item_originator_cursor_idx ON feed_item ("originatorDid", "sortAt", cid);
CREATE INDEX feed_item_cursor_idx ON feed_item ("sortAt", cid);
CREATE INDEX feed_item_post_uri_idx ON feed_item ("postUri");

-- Relations between accounts and posts -------------------------------------------------------

CREATE TABLE "like" (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    subject varchar NOT NULL,
    "subjectCid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED,
    via varchar,
    "viaCid" varchar,
    CONSTRAINT like_unique_subject UNIQUE (subject, creator)
);
CREATE INDEX like_creator_cursor_idx ON "like" (creator, "sortAt", cid);

CREATE TABLE repost (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    subject varchar NOT NULL,
    "subjectCid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED,
    via varchar,
    "viaCid" varchar,
    CONSTRAINT repost_unique_subject UNIQUE (creator, subject)
);
CREATE INDEX repost_subject_idx ON repost (subject);
CREATE INDEX repost_order_by_idx ON repost ("sortAt", cid);

CREATE TABLE follow (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "subjectDid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED,
    CONSTRAINT follow_unique_subject UNIQUE (creator, "subjectDid")
);
CREATE INDEX follow_creator_cursor_idx ON follow (creator, "sortAt", cid);
CREATE INDEX follow_subject_cursor_idx ON follow ("subjectDid", "sortAt", cid);

CREATE TABLE actor_block (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "subjectDid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED,
    CONSTRAINT actor_block_unique_subject UNIQUE (creator, "subjectDid")
);
CREATE INDEX actor_block_subjectdid_idx ON actor_block ("subjectDid");

CREATE TABLE list (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    name varchar NOT NULL,
    purpose varchar NOT NULL,
    description varchar,
    "descriptionFacets" varchar,
    "avatarCid" varchar,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED
);
CREATE INDEX list_creator_idx ON list (creator);

CREATE TABLE list_item (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "subjectDid" varchar NOT NULL,
    "listUri" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED,
    CONSTRAINT list_item_unique_subject_in_list UNIQUE ("listUri", "subjectDid")
);
CREATE INDEX list_item_creator_idx ON list_item (creator);
CREATE INDEX list_item_subject_idx ON list_item ("subjectDid");

CREATE TABLE list_block (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "subjectUri" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED,
    CONSTRAINT list_block_unique_subject UNIQUE (creator, "subjectUri")
);

-- Feeds, packs, labelers ---------------------------------------------------------------------

CREATE TABLE feed_generator (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "feedDid" varchar NOT NULL,
    "displayName" varchar,
    description varchar,
    "descriptionFacets" varchar,
    "avatarCid" varchar,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED
);
CREATE INDEX feed_generator_creator_index ON feed_generator (creator);

CREATE TABLE starter_pack (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED,
    name varchar
);
CREATE INDEX starter_pack_creator_order_by_idx ON starter_pack (creator, "sortAt", cid);
CREATE INDEX starter_pack_name_tgrm_idx ON starter_pack USING gist (name gist_trgm_ops);

CREATE TABLE labeler (
    uri varchar PRIMARY KEY,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar NOT NULL GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED
);
CREATE INDEX labeler_order_by_idx ON labeler ("sortAt", cid);

CREATE TABLE label (
    src varchar NOT NULL,
    uri varchar NOT NULL,
    cid varchar NOT NULL, -- '' for a label on all versions
    val varchar NOT NULL,
    neg boolean NOT NULL,
    cts varchar NOT NULL,
    exp varchar,
    PRIMARY KEY (src, uri, cid, val)
);
CREATE INDEX label_uri_index ON label (uri);
CREATE INDEX label_cts_idx ON label (cts);

CREATE TABLE notification (
    id bigserial PRIMARY KEY,
    did varchar NOT NULL,
    "recordUri" varchar NOT NULL,
    "recordCid" varchar NOT NULL,
    author varchar NOT NULL,
    reason varchar NOT NULL,
    "reasonSubject" varchar,
    "sortAt" varchar NOT NULL
);
CREATE INDEX notification_did_sortat_idx ON notification (did, "sortAt");
CREATE INDEX notification_record_idx ON notification ("recordUri");
CREATE INDEX notification_author_idx ON notification (author);

-- Written by the AppView's other services, or by hand ----------------------------------------

CREATE TABLE mute (
    "subjectDid" varchar NOT NULL,
    "mutedByDid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "onlyReposts" boolean NOT NULL DEFAULT false,
    "onlyQuoteposts" boolean NOT NULL DEFAULT false,
    PRIMARY KEY ("mutedByDid", "subjectDid")
);

CREATE TABLE list_mute (
    "listUri" varchar NOT NULL,
    "mutedByDid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    PRIMARY KEY ("mutedByDid", "listUri")
);

CREATE TABLE thread_mute (
    "rootUri" varchar NOT NULL,
    "mutedByDid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    PRIMARY KEY ("rootUri", "mutedByDid")
);

CREATE TABLE private_data (
    "actorDid" varchar NOT NULL,
    namespace varchar NOT NULL,
    key varchar NOT NULL,
    payload text NOT NULL,
    "indexedAt" varchar NOT NULL,
    "updatedAt" varchar NOT NULL,
    PRIMARY KEY ("actorDid", namespace, key)
);

CREATE TABLE activity_subscription (
    creator varchar NOT NULL,
    "subjectDid" varchar NOT NULL,
    key varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    post boolean NOT NULL,
    reply boolean NOT NULL,
    PRIMARY KEY (creator, key),
    CONSTRAINT activity_subscription_unique_creator_subject_did UNIQUE (creator, "subjectDid")
);

CREATE TABLE bookmark (
    creator varchar NOT NULL,
    key varchar NOT NULL,
    "subjectUri" varchar NOT NULL,
    "subjectCid" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    PRIMARY KEY (creator, key),
    CONSTRAINT bookmark_unique_uri_creator UNIQUE ("subjectUri", creator)
);

CREATE TABLE draft (
    creator varchar NOT NULL,
    key varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "updatedAt" varchar NOT NULL,
    payload text NOT NULL,
    PRIMARY KEY (creator, key)
);
CREATE INDEX draft_creator_updated_at_key_idx ON draft (creator, "updatedAt", key);

CREATE TABLE blob_takedown (
    did varchar NOT NULL,
    cid varchar NOT NULL,
    "takedownRef" varchar NOT NULL,
    PRIMARY KEY (did, cid)
);

CREATE TABLE suggested_follow (
    did varchar PRIMARY KEY,
    "order" integer NOT NULL
);

CREATE TABLE suggested_feed (
    uri varchar PRIMARY KEY,
    "order" integer NOT NULL
);

CREATE TABLE tagged_suggestion (
    tag varchar NOT NULL,
    subject varchar NOT NULL,
    "subjectType" varchar NOT NULL,
    PRIMARY KEY (tag, subject)
);

-- Nothing reads or writes the rest any more; an identical schema has it ----------------------

CREATE TABLE view_param (
    name varchar PRIMARY KEY,
    value varchar
);
INSERT INTO view_param (name, value)
VALUES ('whats_hot_like_threshold', '2'), ('whats_hot_interval', '1day');

CREATE TABLE notification_push_token (
    did varchar NOT NULL,
    platform varchar NOT NULL,
    token varchar NOT NULL,
    "appId" varchar NOT NULL,
    PRIMARY KEY (did, token)
);

CREATE TABLE subscription (
    service varchar NOT NULL,
    method varchar NOT NULL,
    state varchar NOT NULL,
    PRIMARY KEY (service, method)
);

CREATE TABLE did_cache (
    did varchar PRIMARY KEY,
    doc jsonb NOT NULL,
    "updatedAt" bigint NOT NULL
);

CREATE TABLE moderation_action (
    id serial PRIMARY KEY,
    action varchar NOT NULL,
    "subjectType" varchar NOT NULL,
    "subjectDid" varchar NOT NULL,
    "subjectUri" varchar,
    "subjectCid" varchar,
    reason text NOT NULL,
    "createdAt" varchar NOT NULL,
    "createdBy" varchar NOT NULL,
    "reversedAt" varchar,
    "reversedBy" varchar,
    "reversedReason" text,
    "createLabelVals" varchar,
    "negateLabelVals" varchar,
    "durationInHours" integer,
    "expiresAt" varchar
);

CREATE TABLE moderation_action_subject_blob (
    "actionId" integer NOT NULL REFERENCES moderation_action (id),
    cid varchar NOT NULL,
    PRIMARY KEY ("actionId", cid)
);
CREATE INDEX moderation_action_subject_blob_cid_idx ON moderation_action_subject_blob (cid);

CREATE TABLE moderation_report (
    id serial PRIMARY KEY,
    "subjectType" varchar NOT NULL,
    "subjectDid" varchar NOT NULL,
    "subjectUri" varchar,
    "subjectCid" varchar,
    "reasonType" varchar NOT NULL,
    reason text,
    "reportedByDid" varchar NOT NULL,
    "createdAt" varchar NOT NULL
);

CREATE TABLE moderation_report_resolution (
    "reportId" integer NOT NULL REFERENCES moderation_report (id),
    "actionId" integer NOT NULL REFERENCES moderation_action (id),
    "createdBy" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    PRIMARY KEY ("reportId", "actionId")
);
CREATE INDEX moderation_report_resolution_action_id_idx ON moderation_report_resolution ("actionId");

CREATE TABLE moderation_event (
    id serial PRIMARY KEY,
    action varchar NOT NULL,
    "subjectType" varchar NOT NULL,
    "subjectDid" varchar NOT NULL,
    "subjectUri" varchar,
    "subjectCid" varchar,
    comment text,
    meta jsonb,
    "createdAt" varchar NOT NULL,
    "createdBy" varchar NOT NULL,
    "reversedAt" varchar,
    "reversedBy" varchar,
    "durationInHours" integer,
    "expiresAt" varchar,
    "reversedReason" text,
    "createLabelVals" varchar,
    "negateLabelVals" varchar,
    "legacyRefId" integer
);

CREATE TABLE moderation_subject_status (
    id serial PRIMARY KEY,
    did varchar NOT NULL,
    "recordPath" varchar NOT NULL DEFAULT '',
    "blobCids" jsonb,
    "recordCid" varchar,
    "reviewState" varchar NOT NULL,
    comment varchar,
    "muteUntil" varchar,
    "lastReviewedAt" varchar,
    "lastReviewedBy" varchar,
    "lastReportedAt" varchar,
    takendown boolean NOT NULL DEFAULT false,
    "suspendUntil" varchar,
    "createdAt" varchar NOT NULL,
    "updatedAt" varchar NOT NULL,
    CONSTRAINT moderation_status_unique_idx UNIQUE (did, "recordPath")
);
CREATE INDEX moderation_subject_status_blob_cids_idx
    ON moderation_subject_status USING gin ("blobCids");

-- Likes weighed against age: score = 10^6 * likes / (hours + 2)^1.8. Never refreshed by the AppView.
CREATE MATERIALIZED VIEW algo_whats_hot_view AS
SELECT
    post.uri,
    post.cid,
    round(
        1000000 * (
            post_agg."likeCount"::numeric
            / ((extract(epoch FROM age(now(), post."indexedAt"::timestamp)) / 3600 + 2) ^ 1.8)
        )
    ) AS score
FROM post
JOIN post_agg ON post_agg.uri = post.uri
WHERE
    post."indexedAt" > (
        SELECT to_char(now() - value::interval, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS val
        FROM view_param
        WHERE name = 'whats_hot_interval'
    )
    AND post."replyParent" IS NULL
    AND post_agg."likeCount" > (
        SELECT value::integer AS val FROM view_param WHERE name = 'whats_hot_like_threshold'
    );
CREATE UNIQUE INDEX algo_whats_hot_view_uri_idx ON algo_whats_hot_view (uri);
CREATE INDEX algo_whats_hot_view_cursor_idx ON algo_whats_hot_view (score, cid);

-- Autovacuum of the tables that grow with the network. By default it comes after a fifth of a table
-- has changed, which of a hundred million rows is never. An official migrator does not look at this.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'record', 'duplicate_record', 'actor', 'actor_sync', 'profile', 'profile_agg', 'post',
        'post_agg', 'post_embed_image', 'post_embed_external', 'post_embed_record', 'quote',
        'feed_item', 'like', 'repost', 'follow', 'actor_block', 'list_item', 'label', 'notification'
    ]
    LOOP
        EXECUTE format('ALTER TABLE %I SET (autovacuum_vacuum_scale_factor = 0.02, '
            'autovacuum_vacuum_insert_scale_factor = 0.05, '
            'autovacuum_analyze_scale_factor = 0.02)', name);
    END LOOP;
END $$;

-- Bookkeeping of the official migrator: it must find all of its migrations done. A name that it
-- does not know would make it refuse, so ours are kept in rsky_pipeline.schema_version.
CREATE TABLE kysely_migration (
    name varchar(255) PRIMARY KEY,
    "timestamp" varchar(255) NOT NULL
);
CREATE TABLE kysely_migration_lock (
    id varchar(255) PRIMARY KEY,
    is_locked integer NOT NULL DEFAULT 0
);
INSERT INTO kysely_migration_lock (id, is_locked) VALUES ('migration_lock', 0);
INSERT INTO kysely_migration (name, "timestamp")
SELECT name, to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
FROM (VALUES
    ('_20230309T045948368Z'), ('_20230408T152211201Z'), ('_20230417T210628672Z'),
    ('_20230420T211446071Z'), ('_20230427T194702079Z'), ('_20230605T144730094Z'),
    ('_20230607T211442112Z'), ('_20230608T155101190Z'), ('_20230608T201813132Z'),
    ('_20230608T205147239Z'), ('_20230609T153623961Z'), ('_20230609T232122649Z'),
    ('_20230610T203555962Z'), ('_20230611T215300060Z'), ('_20230620T161134972Z'),
    ('_20230627T212437895Z'), ('_20230629T220835893Z'), ('_20230703T045536691Z'),
    ('_20230720T164800037Z'), ('_20230807T035309811Z'), ('_20230808T172902639Z'),
    ('_20230810T203349843Z'), ('_20230817T195936007Z'), ('_20230830T205507322Z'),
    ('_20230904T211011773Z'), ('_20230906T222220386Z'), ('_20230920T213858047Z'),
    ('_20230929T192920807Z'), ('_20231003T202833377Z'), ('_20231220T225126090Z'),
    ('_20240124T023719200Z'), ('_20240226T225725627Z'), ('_20240530T170337073Z'),
    ('_20240606T171229898Z'), ('_20240606T222548219Z'), ('_20240719T203853939Z'),
    ('_20240723T220700077Z'), ('_20240723T220703655Z'), ('_20240801T193939827Z'),
    ('_20240808T224251220Z'), ('_20240829T211238293Z'), ('_20240831T134810923Z'),
    ('_20241114T153108102Z'), ('_20250116T222618297Z'), ('_20250207T174822012Z'),
    ('_20250404T163421487Z'), ('_20250526T023712742Z'), ('_20250528T221913281Z'),
    ('_20250602T190357447Z'), ('_20250611T140649895Z'), ('_20250627T025331240Z'),
    ('_20250812T183735692Z'), ('_20250813T174955711Z'), ('_20251120T004738098Z'),
    ('_20260112T133951271Z'), ('_20260604T224952774Z'), ('_20260618T200000000Z'),
    ('_20260729T223157563Z')
) AS official (name);
