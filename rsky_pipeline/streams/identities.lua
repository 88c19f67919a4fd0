#!lua flags=allow-cross-slot-keys
-- Write and read documents of accounts that the roles share; see identities.py.
--
-- KEYS  two hashes, the present one and the one before: DID -> "TIME DOCUMENT"; '' -> its beginning
-- ARGV  1: the greatest age of a document in ms, and how long a hash outlives its last write
--       2: how many accounts a hash takes
--       3: how many are written; for each: DID, time ('' for now), document ('' for none)
--       then for each that is read: DID
-- Returns the time in ms; for each that is read the time of its document ('' for none) and itself.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local text_of_now = string.format('%d', now)
local age, most, writes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function held(did)
  local value = redis.call('HGET', KEYS[1], did) or redis.call('HGET', KEYS[2], did) or ''
  local time, document = string.match(value, '^(%d+) (.*)$')
  return tonumber(time) or 0, document or ''
end

local function beginning(key)
  local time = tonumber(redis.call('HGET', key, '') or '')
  return time and time <= now and time or nil -- one in the future is of another server's clock
end

local began = beginning(KEYS[1])
if not began then
  redis.call('HSET', KEYS[1], '', text_of_now)
  redis.call('PEXPIRE', KEYS[1], age)
  began = now
end
began = beginning(KEYS[2]) or began

local place = 4
for _ = 1, writes do
  local did, time = ARGV[place], tonumber(ARGV[place + 1]) or now
  local newest = held(did)
  -- No answer from before its account was forgotten comes back: neither while that is noted, nor
  -- when the note is gone with the hash that it was in.
  if time >= began and (time >= newest or newest > now) then
    redis.call('HSET', KEYS[1], did, string.format('%d ', time) .. ARGV[place + 2])
    if redis.call('HLEN', KEYS[1]) > most then
      redis.call('UNLINK', KEYS[2])
      redis.call('RENAME', KEYS[1], KEYS[2])
      began = beginning(KEYS[2]) or now
      redis.call('HSET', KEYS[1], '', text_of_now)
    end
  end
  place = place + 3
end
if writes > 0 then
  redis.call('PEXPIRE', KEYS[1], age)
end

local found = {text_of_now}
for index = place, #ARGV do
  local time, document = held(ARGV[index])
  local is_good = document ~= '' and time <= now and now - time <= age
  found[#found + 1] = is_good and string.format('%d', time) or ''
  found[#found + 1] = is_good and document or ''
end
return found
