-- 0.0.276
-- Read by the AppView to name the known likers of a post.
CREATE INDEX like_subject_sort_at_creator_idx ON "like" (subject, "sortAt" DESC) INCLUDE (creator);
