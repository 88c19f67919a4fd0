#!lua flags=no-writes,allow-cross-slot-keys
-- Read one field of each of many hashes.
--
-- KEYS  the hashes, one may occur several times   ARGV  a field of each
-- Returns the values; what is not there is ''.
local values = {}
for index = 1, #KEYS do
  values[index] = redis.call('HGET', KEYS[index], ARGV[index]) or ''
end
return values
