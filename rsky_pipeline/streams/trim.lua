#!lua flags=allow-oom
-- Remove what every group of a stream has acknowledged, computed and done in one step, so that no
-- group can be created or moved in between.
--
-- KEYS  1: the stream
-- ARGV  1: about how many entries to remove at once   2: a group that must be there ('' for none)
-- Returns how many were removed: none of a stream that is missing, or lacks groups or that group.

-- Ids as texts of equal length, since Lua's numbers cannot hold all of them.
local function sortable(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  return string.rep('0', 20 - #ms) .. ms .. string.rep('0', 20 - #seq) .. seq
end

local function next_id(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  if tonumber(seq) >= 9007199254740991 then
    return id -- cannot be counted up exactly: keep one entry too many
  end
  return ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
end

if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then
  return 0
end
local floor, found = nil, ARGV[2] == ''
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local facts = {}
  for index = 1, #group, 2 do
    facts[group[index]] = group[index + 1]
  end
  local wanted = {next_id(facts['last-delivered-id'])}
  if facts['pending'] > 0 then
    wanted[2] = redis.call('XPENDING', KEYS[1], facts['name'])[2]
  end
  found = found or facts['name'] == ARGV[2]
  for _, id in ipairs(wanted) do
    if floor == nil or sortable(id) < sortable(floor) then
      floor = id
    end
  end
end
if floor == nil or not found then
  return 0
end
-- Whole nodes first, a bounded number of them: an exact trim of millions would stop the server.
local removed = redis.call('XTRIM', KEYS[1], 'MINID', '~', floor, 'LIMIT', ARGV[1])
if removed == 0 then
  removed = redis.call('XTRIM', KEYS[1], 'MINID', '=', floor)
end
return removed
