#!lua flags=allow-oom
-- Acknowledge entries, and delete them where no other group could still want them.
-- KEYS 1: the stream   ARGV 1: the group, then the ids   Returns how many were pending.
local ids = {unpack(ARGV, 2)}
local acknowledged = redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
if #redis.call('XINFO', 'GROUPS', KEYS[1]) == 1 then
  redis.call('XDEL', KEYS[1], unpack(ids))
end
return acknowledged
