#!lua flags=allow-oom,allow-cross-slot-keys
-- Move one pending entry out of its stream, in one step: to the dead letters, or to the entries that
-- wait. A full server must take it, since it frees about as much as it uses.
--
-- KEYS  1: the stream   2: the stream of dead letters, or the sorted set of waiting entries
-- ARGV  1: the group   2: the entry's id   3: when it is due, in milliseconds from now; '' for a dead
--       letter   then fields and values of the dead letter, or the one field that waits and its value
-- Returns 1, or 0 if the entry was not pending any more (an earlier try moved it).
if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then
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
local now = redis.call('TIME')
-- Before Redis 7 a script may exceed maxmemory only after its first write: this one changes nothing.
redis.call('XDEL', KEYS[1], '0-0')
-- Written first: a server that refuses it must not have forgotten the entry.
if ARGV[3] == '' then
  redis.call('XADD', KEYS[2], '*', unpack(ARGV, 4))
else
  local due = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[3]
  redis.call('ZADD', KEYS[2], due, name_of(KEYS[1]) .. ' ' .. ARGV[4] .. ' ' .. ARGV[5])
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
if #groups == 1 then
  redis.call('XDEL', KEYS[1], ARGV[2])
end
return 1
