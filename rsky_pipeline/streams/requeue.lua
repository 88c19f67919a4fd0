#!lua flags=allow-cross-slot-keys
-- Move entries to the end of a stream, as if nobody had been given them: all or nothing of each.
--
-- KEYS  1: the stream they are in   2: the stream they go to (may be the same)
-- ARGV  ids
-- Returns how many were appended. Entries whose body is gone are acknowledged, nothing is left of
-- them to move. One of more fields than a script can append stays as it is.
local MAX_UNPACKED = 7000 -- Lua's limit is about 8,000

local groups = {}
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('XLEN', KEYS[2]) -- fails here, before the first write, on a key of another type
for _, row in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  groups[#groups + 1] = row[2]
end
local moved = 0
for _, id in ipairs(ARGV) do
  local found = redis.call('XRANGE', KEYS[1], id, id)[1]
  if not found or #found[2] <= MAX_UNPACKED then
    if found then
      redis.call('XADD', KEYS[2], '*', unpack(found[2]))
      redis.call('XDEL', KEYS[1], id)
      moved = moved + 1
    end
    for _, group in ipairs(groups) do
      redis.call('XACK', KEYS[1], group, id)
    end
  end
end
return moved
