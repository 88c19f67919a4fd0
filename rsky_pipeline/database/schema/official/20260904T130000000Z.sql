-- 0.0.278
-- AppViews of before 0.0.278 select this column: they fail without it.
ALTER TABLE actor_state DROP COLUMN "lastSeenPriorityNotifs";
