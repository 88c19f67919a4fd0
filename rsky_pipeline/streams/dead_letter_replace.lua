#!lua flags=allow-cross-slot-keys
-- Put entries into other streams in the place of one dead letter, in one step.
--
-- KEYS  1: the dead-letter stream   2..: streams that are appended to
-- ARGV  1: the dead letter's id   then for each entry: index of its stream among the keys from 2 on,
--       field, payload
-- Returns 1, or 0 if the letter is gone (an earlier try replaced it); then nothing is appended.
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then
  return 0
end
for index = 2, #KEYS do
  redis.call('XLEN', KEYS[index]) -- fails here, before the first write, on a key of another type
end
for position = 2, #ARGV, 3 do
  redis.call('XADD', KEYS[1 + ARGV[position]], '*', ARGV[position + 1], ARGV[position + 2])
end
redis.call('XDEL', KEYS[1], ARGV[1])
return 1
