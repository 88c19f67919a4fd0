#!lua flags=allow-cross-slot-keys
-- Append dead letters to the stream they came from, without what was noted about them, and remove
-- them, in one step.
--
-- KEYS  1: the stream   2: its dead-letter stream
-- ARGV  1: how many names follow that are notes, not fields of the entry   then those names
--       then ids of dead letters
-- Returns how many were appended. One without fields of its own stays, there is nothing to retry;
-- so does one of more fields than a script can append.
local MAX_UNPACKED = 7000 -- Lua's limit is about 8,000

local notes = {}
local first = 2 + tonumber(ARGV[1])
for position = 2, first - 1 do
  notes[ARGV[position]] = true
end
redis.call('XLEN', KEYS[1]) -- fails here, before the first write, on a key of another type

local appended = 0
for position = first, #ARGV do
  local found = redis.call('XRANGE', KEYS[2], ARGV[position], ARGV[position])
  local fields = {}
  for index = 1, found[1] and #found[1][2] or 0, 2 do
    if not notes[found[1][2][index]] then
      fields[#fields + 1] = found[1][2][index]
      fields[#fields + 1] = found[1][2][index + 1]
    end
  end
  if #fields > 0 and #fields <= MAX_UNPACKED then
    redis.call('XADD', KEYS[1], '*', unpack(fields))
    redis.call('XDEL', KEYS[2], ARGV[position])
    appended = appended + 1
  end
end
return appended
