#!lua flags=allow-oom
-- Remove what every group of a stream has acknowledged, computed and done in one step, so that
-- nothing can be delivered in between.
-- KEYS 1: the stream   Returns {how many were removed, the lowest id that was kept, who wants it}.
local function before(left, right)
  local left_ms, left_seq = string.match(left, '(%d+)-(%d+)')
  local right_ms, right_seq = string.match(right, '(%d+)-(%d+)')
  if left_ms ~= right_ms then
    return tonumber(left_ms) < tonumber(right_ms)
  end
  return tonumber(left_seq) < tonumber(right_seq)
end

if redis.call('EXISTS', KEYS[1]) == 0 then
  return {0, '', ''}
end
local floor, blocker = nil, ''
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local facts = {}
  for index = 1, #group, 2 do
    facts[group[index]] = group[index + 1]
  end
  local wanted
  if facts['pending'] > 0 then
    wanted = redis.call('XPENDING', KEYS[1], facts['name'])[2]
  else
    local ms, seq = string.match(facts['last-delivered-id'], '(%d+)-(%d+)')
    wanted = ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
  end
  if floor == nil or before(wanted, floor) then
    floor, blocker = wanted, facts['name']
  end
end
if floor == nil then
  return {0, '', ''}
end
return {redis.call('XTRIM', KEYS[1], 'MINID', '=', floor), floor, blocker}
