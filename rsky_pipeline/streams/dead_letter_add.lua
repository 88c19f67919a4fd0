#!lua flags=allow-oom,allow-cross-slot-keys
-- Move an entry of a stream without groups to its dead-letter stream, with notes, in one step.
--
-- KEYS  1: the stream   2: its dead-letter stream
-- ARGV  1: the id of the entry, then the fields of the letter
-- Returns whether the entry was still there.
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then
  return 0
end
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
return redis.call('XDEL', KEYS[1], ARGV[1])
