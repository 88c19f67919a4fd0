#!lua flags=allow-cross-slot-keys
-- Move waiting entries to another stream, merged or not, unless that is at its mark.
--
-- KEYS  1: the stream where they wait   2: the stream that they go to
-- ARGV  1: the high-water mark of the second (0 for none)   2: the name of the field
--       3: number of ids   4..: the ids of the entries that are over, then the payloads to append
-- Returns how many payloads were appended; -1 at the mark. Where one of the ids is gone another
-- process moved it, and nothing is done.
local count = tonumber(ARGV[3])
local mark = tonumber(ARGV[1])
if mark > 0 and redis.call('XLEN', KEYS[2]) >= mark then
  return -1
end
for position = 4, 3 + count do
  if #redis.call('XRANGE', KEYS[1], ARGV[position], ARGV[position]) == 0 then
    return 0
  end
end
for position = 4, 3 + count do
  redis.call('XDEL', KEYS[1], ARGV[position])
end
for position = 4 + count, #ARGV do
  redis.call('XADD', KEYS[2], '*', ARGV[2], ARGV[position])
end
return #ARGV - 3 - count
