#!lua flags=no-writes
-- Look at a stream and its groups in one step, so that the figures belong together.
--
-- KEYS  1: the stream
-- ARGV  1: how many entries to count at most where the server does not know a group's lag
-- Returns {} if it is missing, else {time in ms, length, entries ever added or -1, first id or '',
--   last id, then for each group {name, pending, oldest pending id or '', last delivered id,
--   first id not delivered or '', consumers, entries not delivered or -1, how many were counted,
--   entries ever delivered or -1}}
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {}
end

local function facts(flat)
  local result = {}
  for index = 1, #flat, 2 do
    result[flat[index]] = flat[index + 1]
  end
  return result
end

local function count_after(id)
  local counted, most = 0, tonumber(ARGV[1])
  while counted < most do
    local page = redis.call('XRANGE', KEYS[1], '(' .. id, '+', 'COUNT', 500)
    if #page == 0 then
      break
    end
    counted = counted + #page
    id = page[#page][1]
  end
  return counted
end

local time = redis.call('TIME')
local stream = facts(redis.call('XINFO', 'STREAM', KEYS[1]))
local first = stream['first-entry'] and stream['first-entry'][1] or ''
local reply = {
  time[1] * 1000 + math.floor(time[2] / 1000), stream['length'], stream['entries-added'] or -1,
  first, stream['last-generated-id'],
}
for _, row in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = facts(row)
  local oldest = ''
  if group['pending'] > 0 then
    oldest = redis.call('XPENDING', KEYS[1], group['name'])[2]
  end
  local last = group['last-delivered-id']
  local after = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)
  local lag, counted = group['lag'] or -1, 0
  if #after == 0 then
    lag = 0 -- some servers say more when entries were removed before they were delivered
  elseif lag < 0 then
    counted = count_after(last)
  end
  reply[#reply + 1] = {
    group['name'], group['pending'], oldest, last, #after > 0 and after[1][1] or '',
    group['consumers'], lag, counted, group['entries-read'] or -1,
  }
end
return reply
