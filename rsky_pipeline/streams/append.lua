#!lua flags=allow-cross-slot-keys
-- Append a batch to one or more streams and move a cursor with it, all or nothing.
--
-- KEYS  the streams, then the cursor's key if there is one
-- ARGV  1: number of streams   2: '1' if there is a cursor
--       3: the cursor that is expected to be stored ('' for none)   4: the new cursor
--       5..: a high-water mark for each stream (0 for none)
--       then for each entry: index of its stream, field, payload
-- Returns {status, detail, length of each stream}; status is
--       appended      the entries are in the streams, now or since an earlier try
--       full          detail names the stream at its mark; nothing was written
--       cursor_moved  detail is the stored cursor; nothing was written
local streams = tonumber(ARGV[1])
local function lengths(status, detail)
  local reply = {status, detail}
  for index = 1, streams do
    reply[2 + index] = redis.call('XLEN', KEYS[index])
  end
  return reply
end

if ARGV[2] == '1' then
  local stored = redis.call('GET', KEYS[streams + 1]) or ''
  if stored ~= ARGV[3] then
    if stored == ARGV[4] then
      return lengths('appended', '')
    end
    return lengths('cursor_moved', stored)
  end
end

local first = 5 + streams
local used = {}
for position = first, #ARGV, 3 do
  used[tonumber(ARGV[position])] = true
end
for index = 1, streams do
  local mark = tonumber(ARGV[4 + index])
  if used[index] and mark > 0 and redis.call('XLEN', KEYS[index]) >= mark then
    return lengths('full', KEYS[index])
  end
end

for position = first, #ARGV, 3 do
  redis.call('XADD', KEYS[tonumber(ARGV[position])], '*', ARGV[position + 1], ARGV[position + 2])
end
if ARGV[2] == '1' then
  redis.call('SET', KEYS[streams + 1], ARGV[4])
end
return lengths('appended', '')
