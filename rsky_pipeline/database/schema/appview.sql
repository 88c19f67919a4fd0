-- The tables of the official Bluesky AppView data plane, as its 59 migrations leave them.
-- Created in the schema that search_path names first.

-- Written by the indexer.

CREATE TABLE record (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    did varchar NOT NULL,
    json text NOT NULL,
    "indexedAt" varchar NOT NULL,
    "takedownRef" varchar,
    tags jsonb,
    CONSTRAINT record_pkey PRIMARY KEY (uri)
);

CREATE TABLE duplicate_record (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    "duplicateOf" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    CONSTRAINT duplicate_record_pkey PRIMARY KEY (uri)
);

CREATE TABLE actor (
    did varchar NOT NULL,
    handle varchar,
    "indexedAt" varchar NOT NULL,
    "takedownRef" varchar,
    "upstreamStatus" varchar,
    "trustedVerifier" boolean DEFAULT false NOT NULL,
    "ageAssuranceStatus" text,
    "ageAssuranceLastInitiatedAt" varchar,
    "ageAssuranceAccess" text,
    "ageAssuranceCountryCode" text,
    "ageAssuranceRegionCode" text,
    CONSTRAINT actor_pkey PRIMARY KEY (did),
    CONSTRAINT actor_handle_key UNIQUE (handle)
);

CREATE TABLE actor_sync (
    did varchar NOT NULL,
    "commitCid" varchar NOT NULL,
    "repoRev" varchar,
    CONSTRAINT actor_sync_pkey PRIMARY KEY (did)
);

CREATE TABLE profile (
    uri varchar NOT NULL,
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
    "pinnedPostCid" varchar,
    CONSTRAINT profile_pkey PRIMARY KEY (uri)
);

CREATE TABLE profile_agg (
    did varchar NOT NULL,
    "followersCount" bigint DEFAULT 0 NOT NULL,
    "followsCount" bigint DEFAULT 0 NOT NULL,
    "postsCount" bigint DEFAULT 0 NOT NULL,
    CONSTRAINT profile_agg_pkey PRIMARY KEY (did)
);

CREATE TABLE post (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    text varchar NOT NULL,
    "replyRoot" varchar,
    "replyRootCid" varchar,
    "replyParent" varchar,
    "replyParentCid" varchar,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    langs jsonb,
    "invalidReplyRoot" boolean,
    "violatesThreadGate" boolean,
    tags jsonb,
    "violatesEmbeddingRules" boolean,
    "hasThreadGate" boolean,
    "hasPostGate" boolean,
    CONSTRAINT post_pkey PRIMARY KEY (uri)
);

CREATE TABLE post_agg (
    uri varchar NOT NULL,
    "likeCount" bigint DEFAULT 0 NOT NULL,
    "replyCount" bigint DEFAULT 0 NOT NULL,
    "repostCount" bigint DEFAULT 0 NOT NULL,
    "quoteCount" bigint DEFAULT 0 NOT NULL,
    "bookmarkCount" bigint DEFAULT 0 NOT NULL,
    CONSTRAINT post_agg_pkey PRIMARY KEY (uri)
);

CREATE TABLE post_embed_image (
    "postUri" varchar NOT NULL,
    position varchar NOT NULL,
    "imageCid" varchar NOT NULL,
    alt varchar NOT NULL,
    CONSTRAINT post_embed_image_pkey PRIMARY KEY ("postUri", position)
);

CREATE TABLE post_embed_gallery_image (
    "postUri" varchar NOT NULL,
    position varchar NOT NULL,
    "imageCid" varchar NOT NULL,
    alt varchar NOT NULL,
    CONSTRAINT post_embed_gallery_image_pkey PRIMARY KEY ("postUri", position)
);

CREATE TABLE post_embed_external (
    "postUri" varchar NOT NULL,
    uri varchar NOT NULL,
    title varchar NOT NULL,
    description varchar NOT NULL,
    "thumbCid" varchar,
    CONSTRAINT post_embed_external_pkey PRIMARY KEY ("postUri")
);

CREATE TABLE post_embed_record (
    "postUri" varchar NOT NULL,
    "embedUri" varchar NOT NULL,
    "embedCid" varchar NOT NULL,
    CONSTRAINT post_embed_record_pkey PRIMARY KEY ("postUri", "embedUri")
);

CREATE TABLE post_embed_video (
    "postUri" varchar NOT NULL,
    "videoCid" varchar NOT NULL,
    alt varchar,
    CONSTRAINT post_embed_video_pkey PRIMARY KEY ("postUri")
);

CREATE TABLE quote (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    subject varchar NOT NULL,
    "subjectCid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    CONSTRAINT quote_pkey PRIMARY KEY (uri)
);

CREATE TABLE op_thread_reply (
    "rootUri" varchar NOT NULL,
    "parentUri" varchar NOT NULL,
    uri varchar NOT NULL,
    "deletedAt" varchar,
    CONSTRAINT op_thread_reply_pkey PRIMARY KEY ("rootUri", uri)
);

CREATE TABLE thread_gate (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "postUri" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    CONSTRAINT thread_gate_pkey PRIMARY KEY (uri),
    CONSTRAINT "thread_gate_postUri_key" UNIQUE ("postUri")
);

CREATE TABLE post_gate (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "postUri" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    CONSTRAINT post_gate_pkey PRIMARY KEY (uri),
    CONSTRAINT "post_gate_postUri_key" UNIQUE ("postUri")
);

CREATE TABLE feed_item (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    type varchar NOT NULL,
    "postUri" varchar NOT NULL,
    "originatorDid" varchar NOT NULL,
    "sortAt" varchar NOT NULL,
    CONSTRAINT feed_item_pkey PRIMARY KEY (uri)
);

CREATE TABLE "like" (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    subject varchar NOT NULL,
    "subjectCid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    via varchar,
    "viaCid" varchar,
    CONSTRAINT like_pkey PRIMARY KEY (uri),
    CONSTRAINT like_unique_subject UNIQUE (subject, creator)
);

CREATE TABLE repost (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    subject varchar NOT NULL,
    "subjectCid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    via varchar,
    "viaCid" varchar,
    CONSTRAINT repost_pkey PRIMARY KEY (uri),
    CONSTRAINT repost_unique_subject UNIQUE (creator, subject)
);

CREATE TABLE follow (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "subjectDid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    CONSTRAINT follow_pkey PRIMARY KEY (uri),
    CONSTRAINT follow_unique_subject UNIQUE (creator, "subjectDid")
);

CREATE TABLE actor_block (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "subjectDid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    CONSTRAINT actor_block_pkey PRIMARY KEY (uri),
    CONSTRAINT actor_block_unique_subject UNIQUE (creator, "subjectDid")
);

CREATE TABLE list (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    name varchar NOT NULL,
    purpose varchar NOT NULL,
    description varchar,
    "descriptionFacets" varchar,
    "avatarCid" varchar,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    CONSTRAINT list_pkey PRIMARY KEY (uri)
);

CREATE TABLE list_item (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "subjectDid" varchar NOT NULL,
    "listUri" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    CONSTRAINT list_item_pkey PRIMARY KEY (uri),
    CONSTRAINT list_item_unique_subject_in_list UNIQUE ("listUri", "subjectDid")
);

CREATE TABLE list_block (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "subjectUri" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    CONSTRAINT list_block_pkey PRIMARY KEY (uri),
    CONSTRAINT list_block_unique_subject UNIQUE (creator, "subjectUri")
);

CREATE TABLE feed_generator (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "feedDid" varchar NOT NULL,
    "displayName" varchar,
    description varchar,
    "descriptionFacets" varchar,
    "avatarCid" varchar,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    CONSTRAINT feed_generator_pkey PRIMARY KEY (uri)
);

CREATE TABLE starter_pack (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    name varchar,
    CONSTRAINT starter_pack_pkey PRIMARY KEY (uri)
);

CREATE TABLE labeler (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    creator varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    CONSTRAINT labeler_pkey PRIMARY KEY (uri)
);

CREATE TABLE verification (
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    rkey varchar NOT NULL,
    creator varchar NOT NULL,
    subject varchar NOT NULL,
    handle varchar NOT NULL,
    "displayName" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    "sortedAt" varchar GENERATED ALWAYS AS (LEAST("createdAt", "indexedAt")) STORED NOT NULL,
    CONSTRAINT verification_pkey PRIMARY KEY (uri),
    CONSTRAINT verification_unique_subject_creator UNIQUE (subject, creator)
);

CREATE TABLE notification (
    id bigserial,
    did varchar NOT NULL,
    "recordUri" varchar NOT NULL,
    "recordCid" varchar NOT NULL,
    author varchar NOT NULL,
    reason varchar NOT NULL,
    "reasonSubject" varchar,
    "sortAt" varchar NOT NULL,
    CONSTRAINT notification_pkey PRIMARY KEY (id)
);

CREATE TABLE label (
    src varchar NOT NULL,
    uri varchar NOT NULL,
    cid varchar NOT NULL,
    val varchar NOT NULL,
    neg boolean NOT NULL,
    cts varchar NOT NULL,
    exp varchar,
    CONSTRAINT label_pkey PRIMARY KEY (src, uri, cid, val)
);

-- Written by other services; created for them, never touched by the pipeline.

CREATE TABLE actor_state (
    did varchar NOT NULL,
    "lastSeenNotifs" varchar NOT NULL,
    "priorityNotifs" boolean DEFAULT false NOT NULL,
    "lastSeenPriorityNotifs" varchar,
    CONSTRAINT actor_state_pkey PRIMARY KEY (did)
);

CREATE TABLE mute (
    "subjectDid" varchar NOT NULL,
    "mutedByDid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "onlyReposts" boolean DEFAULT false NOT NULL,
    "onlyQuoteposts" boolean DEFAULT false NOT NULL,
    CONSTRAINT mute_pkey PRIMARY KEY ("mutedByDid", "subjectDid")
);

CREATE TABLE list_mute (
    "listUri" varchar NOT NULL,
    "mutedByDid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    CONSTRAINT list_mute_pkey PRIMARY KEY ("mutedByDid", "listUri")
);

CREATE TABLE thread_mute (
    "rootUri" varchar NOT NULL,
    "mutedByDid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    CONSTRAINT thread_mute_pkey PRIMARY KEY ("rootUri", "mutedByDid")
);

CREATE TABLE private_data (
    "actorDid" varchar NOT NULL,
    namespace varchar NOT NULL,
    key varchar NOT NULL,
    payload text NOT NULL,
    "indexedAt" varchar NOT NULL,
    "updatedAt" varchar NOT NULL,
    CONSTRAINT private_data_pkey PRIMARY KEY ("actorDid", namespace, key)
);

CREATE TABLE activity_subscription (
    creator varchar NOT NULL,
    "subjectDid" varchar NOT NULL,
    key varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    post boolean NOT NULL,
    reply boolean NOT NULL,
    CONSTRAINT activity_subscription_pkey PRIMARY KEY (creator, key),
    CONSTRAINT activity_subscription_unique_creator_subject_did UNIQUE (creator, "subjectDid")
);

CREATE TABLE bookmark (
    creator varchar NOT NULL,
    key varchar NOT NULL,
    "subjectUri" varchar NOT NULL,
    "subjectCid" varchar NOT NULL,
    "indexedAt" varchar NOT NULL,
    CONSTRAINT bookmark_pkey PRIMARY KEY (creator, key),
    CONSTRAINT bookmark_unique_uri_creator UNIQUE ("subjectUri", creator)
);

CREATE TABLE draft (
    creator varchar NOT NULL,
    key varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    "updatedAt" varchar NOT NULL,
    payload text NOT NULL,
    CONSTRAINT draft_pkey PRIMARY KEY (creator, key)
);

CREATE TABLE blob_takedown (
    did varchar NOT NULL,
    cid varchar NOT NULL,
    "takedownRef" varchar NOT NULL,
    CONSTRAINT blob_takedown_pkey PRIMARY KEY (did, cid)
);

CREATE TABLE suggested_follow (
    did varchar NOT NULL,
    "order" integer NOT NULL,
    CONSTRAINT suggested_follow_pkey PRIMARY KEY (did)
);

CREATE TABLE suggested_feed (
    uri varchar NOT NULL,
    "order" integer NOT NULL,
    CONSTRAINT suggested_feed_pkey PRIMARY KEY (uri)
);

CREATE TABLE tagged_suggestion (
    tag varchar NOT NULL,
    subject varchar NOT NULL,
    "subjectType" varchar NOT NULL,
    CONSTRAINT tagged_suggestion_pkey PRIMARY KEY (tag, subject)
);

CREATE TABLE view_param (
    name varchar NOT NULL,
    value varchar,
    CONSTRAINT view_param_pkey PRIMARY KEY (name)
);

CREATE TABLE notification_push_token (
    did varchar NOT NULL,
    platform varchar NOT NULL,
    token varchar NOT NULL,
    "appId" varchar NOT NULL,
    CONSTRAINT notification_push_token_pkey PRIMARY KEY (did, token)
);

CREATE TABLE subscription (
    service varchar NOT NULL,
    method varchar NOT NULL,
    state varchar NOT NULL,
    CONSTRAINT subscription_pkey PRIMARY KEY (service, method)
);

CREATE TABLE did_cache (
    did varchar NOT NULL,
    doc jsonb NOT NULL,
    "updatedAt" bigint NOT NULL,
    CONSTRAINT did_cache_pkey PRIMARY KEY (did)
);

-- Left over from early moderation; nothing reads or writes them.

CREATE TABLE moderation_action (
    id serial,
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
    "expiresAt" varchar,
    CONSTRAINT moderation_action_pkey PRIMARY KEY (id)
);

CREATE TABLE moderation_action_subject_blob (
    "actionId" integer NOT NULL,
    cid varchar NOT NULL,
    CONSTRAINT moderation_action_subject_blob_pkey PRIMARY KEY ("actionId", cid),
    CONSTRAINT "moderation_action_subject_blob_actionId_fkey" FOREIGN KEY ("actionId") REFERENCES moderation_action (id)
);

CREATE TABLE moderation_report (
    id serial,
    "subjectType" varchar NOT NULL,
    "subjectDid" varchar NOT NULL,
    "subjectUri" varchar,
    "subjectCid" varchar,
    "reasonType" varchar NOT NULL,
    reason text,
    "reportedByDid" varchar NOT NULL,
    "createdAt" varchar NOT NULL,
    CONSTRAINT moderation_report_pkey PRIMARY KEY (id)
);

CREATE TABLE moderation_report_resolution (
    "reportId" integer NOT NULL,
    "actionId" integer NOT NULL,
    "createdAt" varchar NOT NULL,
    "createdBy" varchar NOT NULL,
    CONSTRAINT moderation_report_resolution_pkey PRIMARY KEY ("reportId", "actionId"),
    CONSTRAINT "moderation_report_resolution_reportId_fkey" FOREIGN KEY ("reportId") REFERENCES moderation_report (id),
    CONSTRAINT "moderation_report_resolution_actionId_fkey" FOREIGN KEY ("actionId") REFERENCES moderation_action (id)
);

CREATE TABLE moderation_event (
    id serial,
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
    "legacyRefId" integer,
    CONSTRAINT moderation_event_pkey PRIMARY KEY (id)
);

CREATE TABLE moderation_subject_status (
    id serial,
    did varchar NOT NULL,
    "recordPath" varchar DEFAULT '' NOT NULL,
    "blobCids" jsonb,
    "recordCid" varchar,
    "reviewState" varchar NOT NULL,
    comment varchar,
    "muteUntil" varchar,
    "lastReviewedAt" varchar,
    "lastReviewedBy" varchar,
    "lastReportedAt" varchar,
    takendown boolean DEFAULT false NOT NULL,
    "suspendUntil" varchar,
    "createdAt" varchar NOT NULL,
    "updatedAt" varchar NOT NULL,
    CONSTRAINT moderation_subject_status_pkey PRIMARY KEY (id),
    CONSTRAINT moderation_status_unique_idx UNIQUE (did, "recordPath")
);

-- Bookkeeping of the official migrator.

CREATE TABLE kysely_migration (
    name varchar(255) NOT NULL,
    timestamp varchar(255) NOT NULL,
    CONSTRAINT kysely_migration_pkey PRIMARY KEY (name)
);

CREATE TABLE kysely_migration_lock (
    id varchar(255) NOT NULL,
    is_locked integer DEFAULT 0 NOT NULL,
    CONSTRAINT kysely_migration_lock_pkey PRIMARY KEY (id)
);

-- Indexes beyond keys.

CREATE INDEX record_did_idx ON record (did);
CREATE INDEX duplicate_record_duplicate_of_idx ON duplicate_record ("duplicateOf");
CREATE INDEX actor_handle_tgrm_idx ON actor USING gist (handle public.gist_trgm_ops);
CREATE INDEX profile_creator_idx ON profile (creator);
CREATE INDEX profile_display_name_tgrm_idx ON profile USING gist ("displayName" public.gist_trgm_ops);
CREATE INDEX profile_starter_pack_joined_idx ON profile ("joinedViaStarterPackUri", "createdAt");
CREATE INDEX post_creator_cursor_idx ON post (creator, "sortAt", cid);
CREATE INDEX post_order_by_idx ON post ("sortAt", cid);
CREATE INDEX post_replyparent_idx ON post ("replyParent") INCLUDE (uri);
CREATE INDEX quote_subject_cursor_idx ON quote (subject, "sortAt", cid);
CREATE INDEX feed_item_originator_cursor_idx ON feed_item ("originatorDid", "sortAt", cid);
CREATE INDEX feed_item_cursor_idx ON feed_item ("sortAt", cid);
CREATE INDEX feed_item_post_uri_idx ON feed_item ("postUri");
CREATE INDEX like_creator_cursor_idx ON "like" (creator, "sortAt", cid);
CREATE INDEX repost_subject_idx ON repost (subject);
CREATE INDEX repost_order_by_idx ON repost ("sortAt", cid);
CREATE INDEX follow_creator_cursor_idx ON follow (creator, "sortAt", cid);
CREATE INDEX follow_subject_cursor_idx ON follow ("subjectDid", "sortAt", cid);
CREATE INDEX actor_block_subjectdid_idx ON actor_block ("subjectDid");
CREATE INDEX list_creator_idx ON list (creator);
CREATE INDEX list_item_creator_idx ON list_item (creator);
CREATE INDEX list_item_subject_idx ON list_item ("subjectDid");
CREATE INDEX feed_generator_creator_index ON feed_generator (creator);
CREATE INDEX starter_pack_creator_order_by_idx ON starter_pack (creator, "sortAt", cid);
CREATE INDEX starter_pack_name_tgrm_idx ON starter_pack USING gist (name public.gist_trgm_ops);
CREATE INDEX labeler_order_by_idx ON labeler ("sortAt", cid);
CREATE INDEX notification_did_sortat_idx ON notification (did, "sortAt");
CREATE INDEX notification_record_idx ON notification ("recordUri");
CREATE INDEX notification_author_idx ON notification (author);
CREATE INDEX label_uri_index ON label (uri);
CREATE INDEX label_cts_idx ON label (cts);
CREATE INDEX draft_creator_updated_at_key_idx ON draft (creator, "updatedAt", key);
CREATE INDEX like_subject_sort_at_creator_idx ON "like" (subject, "sortAt" DESC) INCLUDE (creator);
CREATE INDEX moderation_action_subject_blob_cid_idx ON moderation_action_subject_blob (cid);
CREATE INDEX moderation_report_resolution_action_id_idx ON moderation_report_resolution ("actionId");
CREATE INDEX moderation_subject_status_blob_cids_idx ON moderation_subject_status USING gin ("blobCids");

INSERT INTO view_param (name, value)
VALUES ('whats_hot_like_threshold', '2'), ('whats_hot_interval', '1day');

-- Popular recent posts that are not replies; likes count less with age.
CREATE MATERIALIZED VIEW algo_whats_hot_view AS
SELECT post.uri,
       post.cid,
       round(1000000 * (post_agg."likeCount"
             / (EXTRACT(epoch FROM age(now(), post."indexedAt"::timestamp::timestamptz)) / 3600 + 2)
               ^ 1.8)) AS score
  FROM post
  JOIN post_agg ON post_agg.uri = post.uri
 WHERE post."indexedAt" > (
           SELECT to_char(now() - value::interval, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS val
             FROM view_param WHERE name = 'whats_hot_interval')
   AND post."replyParent" IS NULL
   AND post_agg."likeCount" > (
           SELECT value::integer AS val
             FROM view_param WHERE name = 'whats_hot_like_threshold')
  WITH NO DATA;
CREATE UNIQUE INDEX algo_whats_hot_view_uri_idx ON algo_whats_hot_view (uri);
CREATE INDEX algo_whats_hot_view_cursor_idx ON algo_whats_hot_view (score, cid);

-- The official migrator must find its migrations done; a name that it does not know stops it.
INSERT INTO kysely_migration_lock (id, is_locked) VALUES ('migration_lock', 0);
INSERT INTO kysely_migration (name, "timestamp")
SELECT '_' || name, '2026-08-19T17:00:00.000Z'
  FROM unnest(ARRAY[
           '20230309T045948368Z', '20230408T152211201Z', '20230417T210628672Z', '20230420T211446071Z',
           '20230427T194702079Z', '20230605T144730094Z', '20230607T211442112Z', '20230608T155101190Z',
           '20230608T201813132Z', '20230608T205147239Z', '20230609T153623961Z', '20230609T232122649Z',
           '20230610T203555962Z', '20230611T215300060Z', '20230620T161134972Z', '20230627T212437895Z',
           '20230629T220835893Z', '20230703T045536691Z', '20230720T164800037Z', '20230807T035309811Z',
           '20230808T172902639Z', '20230810T203349843Z', '20230817T195936007Z', '20230830T205507322Z',
           '20230904T211011773Z', '20230906T222220386Z', '20230920T213858047Z', '20230929T192920807Z',
           '20231003T202833377Z', '20231220T225126090Z', '20240124T023719200Z', '20240226T225725627Z',
           '20240530T170337073Z', '20240606T171229898Z', '20240606T222548219Z', '20240719T203853939Z',
           '20240723T220700077Z', '20240723T220703655Z', '20240801T193939827Z', '20240808T224251220Z',
           '20240829T211238293Z', '20240831T134810923Z', '20241114T153108102Z', '20250116T222618297Z',
           '20250207T174822012Z', '20250404T163421487Z', '20250526T023712742Z', '20250528T221913281Z',
           '20250602T190357447Z', '20250611T140649895Z', '20250627T025331240Z', '20250812T183735692Z',
           '20250813T174955711Z', '20251120T004738098Z', '20260112T133951271Z', '20260604T224952774Z',
           '20260618T200000000Z', '20260729T223157563Z', '20260819T170000000Z'
       ]) AS name;
