#!lua flags=allow-oom
-- Remove entries, and tell which of them some group has not finished with.
--
-- KEYS  1: the stream
-- ARGV  1: 'look' removes nothing, 'finished' what every group has acknowledged, 'all' everything;
--          what is removed is acknowledged, so that no pending entry is left without its body
--       then ids of entries
-- Returns {how many were removed, then for each entry that a group has not finished with
--   {id, group, 'unread' or 'pending'}}. Nobody has read the entries of a stream without groups:
--   there the group is ''.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {0}
end

-- Ids as texts of equal length, since Lua's numbers cannot hold all of them.
local function sortable(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  return string.rep('0', 20 - #ms) .. ms .. string.rep('0', 20 - #seq) .. seq
end

local groups = {}
for _, row in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local facts = {}
  for index = 1, #row, 2 do
    facts[row[index]] = row[index + 1]
  end
  groups[#groups + 1] = {
    name = facts['name'], last = sortable(facts['last-delivered-id']), pending = facts['pending'],
  }
end

local function state(id, group)
  if sortable(id) > group.last then
    return 'unread'
  end
  local holds = group.pending > 0
  if holds and #redis.call('XPENDING', KEYS[1], group.name, id, id, 1) > 0 then
    return 'pending'
  end
  return nil
end

local reply, leaving = {0}, {}
for index = 2, #ARGV do
  local id, finished = ARGV[index], #groups > 0
  if #groups == 0 then
    reply[#reply + 1] = {id, '', 'unread'}
  end
  for _, group in ipairs(groups) do
    local found = state(id, group)
    if found then
      finished = false
      reply[#reply + 1] = {id, group.name, found}
    end
    if found == 'pending' and ARGV[1] == 'all' then
      redis.call('XACK', KEYS[1], group.name, id)
    end
  end
  if ARGV[1] == 'all' or (ARGV[1] == 'finished' and finished) then
    leaving[#leaving + 1] = id
  end
end
if #leaving > 0 then
  reply[1] = redis.call('XDEL', KEYS[1], unpack(leaving))
end
return reply
