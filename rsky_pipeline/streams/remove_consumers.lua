#!lua flags=allow-oom
-- Forget consumers that hold nothing and did nothing for long.
--
-- KEYS  1: the stream
-- ARGV  1: the group   2: the consumer that asks and stays   3: the least idle time in ms
-- Returns the names of those removed.
local removed = {}
if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then
  return removed
end
local known = false
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  known = known or group[2] == ARGV[1]
end
for _, row in ipairs(known and redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1]) or {}) do
  local facts = {}
  for index = 1, #row, 2 do
    facts[row[index]] = row[index + 1]
  end
  if facts['pending'] == 0 and facts['idle'] >= tonumber(ARGV[3]) and facts['name'] ~= ARGV[2] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], facts['name'])
    removed[#removed + 1] = facts['name']
  end
end
return removed
