#!lua flags=allow-cross-slot-keys
-- Set or remove a cursor, with what is noted with it and the gap that this makes.
--
-- KEYS  1: the cursor   2: the hash of positions   3: the stream of gaps
-- ARGV  1: what is expected to be stored ('' for nothing)   2: the new cursor ('' removes it)
--       3: what to note with it   4: the name of the gap's field   5: the gap ('' for none)
-- Returns 1, or 0 if something else was stored; nothing was changed then.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return 0
end
redis.call('HLEN', KEYS[2])
redis.call('XLEN', KEYS[3])
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2])
end
redis.call('HSET', KEYS[2], name_of(KEYS[1]), ARGV[3])
if ARGV[5] ~= '' then
  redis.call('XADD', KEYS[3], '*', ARGV[4], ARGV[5])
end
return 1
