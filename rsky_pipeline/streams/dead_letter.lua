#!lua flags=allow-oom,allow-cross-slot-keys
-- Move one pending entry into a dead-letter stream, in one step. A full server must take it: it
-- frees what the entry used.
--
-- KEYS  1: the stream   2: its dead-letter stream
-- ARGV  1: the group   2: the entry's id   then fields and values of the dead letter
-- Returns 1, or 0 if the entry was not pending any more (an earlier try moved it).
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
local known = false
for _, group in ipairs(groups) do
  known = known or group[2] == ARGV[1]
end
if not known or #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1) == 0 then
  return 0
end
-- Before Redis 7 a script may exceed maxmemory only after its first write: this one changes nothing.
redis.call('XDEL', KEYS[1], '0-0')
-- Written first: a server that refuses it must not have forgotten the entry.
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
if #groups == 1 then
  redis.call('XDEL', KEYS[1], ARGV[2])
end
return 1
