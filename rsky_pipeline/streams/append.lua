#!lua flags=allow-cross-slot-keys
-- Append a batch to one or more streams and move a cursor with it, all or nothing.
--
-- KEYS  the streams, then the cursor's key if there is one
-- ARGV  1: number of streams   2: '1' if there is a cursor
--       3: the cursor that is expected to be stored ('' for none)   4: the new cursor
--       5..: a high-water mark for each stream (0 for none)
--       then runs of entries that share stream and field: index of the stream, field, how many,
--       and their payloads
-- Returns {status, detail, length of each stream}; status is
--       appended      the entries are in the streams, now or since an earlier try
--       full          detail names the stream at its mark, or is '' if the server's memory is
--                     nearly used up; nothing was written
--       cursor_moved  detail is the stored cursor; nothing was written
--
-- A script that fails is not undone, so everything that can fail (a key of another type) is
-- touched before the first write. Without allow-oom a full server refuses it as a whole; but
-- acknowledging and trimming need memory too, so producers stop while there is some left.
local MEMORY_SHARE = 0.9

local function memory_is_short()
  local text = redis.pcall('INFO', 'memory')
  if type(text) ~= 'string' then
    return false -- not allowed to this user
  end
  local limit = tonumber(string.match(text, 'maxmemory:(%d+)') or 0)
  return limit > 0 and tonumber(string.match(text, 'used_memory:(%d+)')) >= MEMORY_SHARE * limit
end

local streams = tonumber(ARGV[1])
local reply = {'appended', ''}
for index = 1, streams do
  reply[2 + index] = redis.call('XLEN', KEYS[index])
end

if ARGV[2] == '1' then
  local stored = redis.call('GET', KEYS[streams + 1]) or ''
  if stored ~= ARGV[3] then
    if stored ~= ARGV[4] then
      reply[1], reply[2] = 'cursor_moved', stored
    end
    return reply
  end
end

for index = 1, streams do
  local mark = tonumber(ARGV[4 + index])
  if mark > 0 and reply[2 + index] >= mark then
    reply[1], reply[2] = 'full', KEYS[index]
    return reply
  end
end

if memory_is_short() then
  reply[1] = 'full'
  return reply
end

local position = 5 + streams
while position <= #ARGV do
  local index, field, count = tonumber(ARGV[position]), ARGV[position + 1], ARGV[position + 2]
  local last = position + 2 + count
  for payload = position + 3, last do
    redis.call('XADD', KEYS[index], '*', field, ARGV[payload])
  end
  reply[2 + index] = reply[2 + index] + count
  position = last + 1
end
if ARGV[2] == '1' then
  redis.call('SET', KEYS[streams + 1], ARGV[4])
end
return reply
