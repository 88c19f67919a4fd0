#!lua flags=allow-oom
-- Acknowledge entries, and delete them where no other group could still want them.
--
-- KEYS  1: the stream
-- ARGV  1: the group, then the ids
-- Returns how many were pending; 0 too where the stream or the group is gone.
if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then
  return 0
end
local ids = {unpack(ARGV, 2)}
local acknowledged = redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
-- The name matters: if our group was deleted, the one that is left may not have read them.
if #groups == 1 and groups[1][2] == ARGV[1] then
  redis.call('XDEL', KEYS[1], unpack(ids))
end
return acknowledged
