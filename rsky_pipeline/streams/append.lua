#!lua flags=allow-cross-slot-keys
-- Append a batch to one or more streams, and with it move cursors and set fields of hashes, all or
-- nothing.
--
-- KEYS  the streams, then the cursors' keys, then the hashes
-- ARGV  1: number of streams   2: number of cursors   3: number of hashes
--       4: 1 to look whether memory is short; callers do it now and then, for it takes longer than
--       a small batch
--       then for each cursor: what is expected to be stored ('' for none), and the new cursor; where
--       both are the same it is only made sure that it is stored
--       then a high-water mark for each stream (0 for none)
--       then for each hash: how many fields, and each field with its value ('' removes it)
--       then runs of entries that share stream and field: index of the stream, field, how many,
--       and their payloads
-- Returns {status, detail, index, length of each stream}; status is
--       appended      the entries are in the streams, now or since an earlier try
--       full          detail names the stream at its mark, or is '' if the server's memory is
--                     nearly used up; nothing was written
--       cursor_moved  detail is the stored cursor, index says which; nothing was written
-- Otherwise index is how many bytes are left to producers if that was looked at (-1: no limit).
--
-- A script that fails is not undone, so everything that can fail (a key of another type) is
-- touched before the first write. Without allow-oom a full server refuses it as a whole; but
-- acknowledging and trimming need memory too, so producers stop while there is some left.
local MEMORY_SHARE = 0.9

-- Returns how many bytes are left to producers; -1 for no limit, or if it cannot be asked for.
local function memory_left()
  local text = redis.pcall('INFO', 'memory')
  if type(text) ~= 'string' then
    return -1 -- not allowed to this user
  end
  local limit = tonumber(string.match(text, 'maxmemory:(%d+)') or 0)
  if limit == 0 then
    return -1
  end
  local used = tonumber(string.match(text, 'used_memory:(%d+)'))
  return math.max(0, math.floor(MEMORY_SHARE * limit - used))
end

local streams, cursors, hashes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local reply = {'appended', '', 0}
for index = 1, streams do
  reply[3 + index] = redis.call('XLEN', KEYS[index])
end

local position = 5
local moving, done, other = 0, 0, 0
for index = 1, cursors do
  local stored = redis.call('GET', KEYS[streams + index]) or ''
  local expected, new = ARGV[position], ARGV[position + 1]
  if expected ~= new then
    moving = moving + 1
  end
  if stored ~= expected then
    if stored == new then
      done = done + 1
    end
    if other == 0 then
      other, reply[2] = index, stored
    end
  end
  position = position + 2
end
if other > 0 then
  if moving > 0 and done == moving then
    reply[2] = ''  -- all are where this batch leads: it was written before
  else
    reply[1], reply[3] = 'cursor_moved', other
  end
  return reply
end

for index = 1, streams do
  local mark = tonumber(ARGV[position])
  if mark > 0 and reply[3 + index] >= mark then
    reply[1], reply[2] = 'full', name_of(KEYS[index])
    return reply
  end
  position = position + 1
end
for index = 1, hashes do
  redis.call('HLEN', KEYS[streams + cursors + index])
end

if ARGV[4] == '1' then
  reply[3] = memory_left()
  if reply[3] == 0 then
    reply[1] = 'full'
    return reply
  end
end

for index = 1, hashes do
  local key, count = KEYS[streams + cursors + index], tonumber(ARGV[position])
  for field = position + 1, position + 2 * count, 2 do
    if ARGV[field + 1] == '' then
      redis.call('HDEL', key, ARGV[field])
    else
      redis.call('HSET', key, ARGV[field], ARGV[field + 1])
    end
  end
  position = position + 2 * count + 1
end
while position <= #ARGV do
  local index, field, count = tonumber(ARGV[position]), ARGV[position + 1], ARGV[position + 2]
  local last = position + 2 + count
  for payload = position + 3, last do
    redis.call('XADD', KEYS[index], '*', field, ARGV[payload])
  end
  reply[3 + index] = reply[3 + index] + count
  position = last + 1
end
for index = 1, cursors do
  if ARGV[3 + 2 * index] ~= ARGV[4 + 2 * index] then
    redis.call('SET', KEYS[streams + index], ARGV[4 + 2 * index])
  end
end
return reply
