#!lua flags=allow-oom
-- Find pending entries whose body is gone, which nobody can process any more.
--
-- KEYS  1: the stream
-- ARGV  1: the group   2: the id to begin with, or '-'   3: how many pending entries to look at
--       4: 'acknowledge' to forget those found, or ''
-- Returns {where to go on or '' at the end, then the ids found}.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {''}
end
local rows = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], '+', ARGV[3])
local reply = {''}
for _, row in ipairs(rows) do
  if #redis.call('XRANGE', KEYS[1], row[1], row[1], 'COUNT', 1) == 0 then
    reply[#reply + 1] = row[1]
    if ARGV[4] == 'acknowledge' then
      redis.call('XACK', KEYS[1], ARGV[1], row[1])
    end
  end
end
if #rows == tonumber(ARGV[3]) then
  reply[1] = '(' .. rows[#rows][1]
end
return reply
