#!lua flags=allow-cross-slot-keys
-- Append what waited for its time to the streams that it was taken from.
--
-- KEYS  1: the sorted set of what waits   then every stream that entries may go back to: the first
--       also gets, whole, what names none of them, so that its reader makes a dead letter of it
-- ARGV  1: how many at most   2: the field of what names no stream
-- Returns how many were appended.
local known = {}
for index = 2, #KEYS do
  redis.call('XLEN', KEYS[index]) -- fails here, before the first write, on a key of another type
  known[name_of(KEYS[index])] = KEYS[index]
end
local now = redis.call('TIME')
local instant = now[1] * 1000 + math.floor(now[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', instant, 'LIMIT', 0, ARGV[1])
local woken = 0
for _, member in ipairs(due) do
  local name, field, value = string.match(member, '^(%S+) (%S+) (.*)$')
  local stream = known[name]
  if not stream then
    stream, field, value = KEYS[2], ARGV[2], member
  end
  redis.call('XADD', stream, '*', field, value)
  redis.call('ZREM', KEYS[1], member)
  woken = woken + 1
end
return woken
