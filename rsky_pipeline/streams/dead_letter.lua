#!lua flags=allow-oom,allow-cross-slot-keys
-- Move one pending entry into a dead-letter stream, in one step.
-- KEYS 1: the stream, 2: its dead-letter stream
-- ARGV 1: the group, 2: the entry's id, then fields and values of the dead letter
-- Returns 1, or 0 if the entry was not pending any more (an earlier try moved it).
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  return 0
end
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3))
if #redis.call('XINFO', 'GROUPS', KEYS[1]) == 1 then
  redis.call('XDEL', KEYS[1], ARGV[2])
end
return 1
