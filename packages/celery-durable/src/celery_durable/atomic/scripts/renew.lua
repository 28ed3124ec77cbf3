#!lua flags=allow-oom
-- Renews the messages that a worker holds, by the clock of Redis.
--
-- KEYS  1 unacked_index
-- ARGV  delivery tags
-- Returns those that are no longer held.
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local lost = {}
for _, tag in ipairs(ARGV) do
    if redis.call('ZSCORE', KEYS[1], tag) then
        redis.call('ZADD', KEYS[1], 'XX', now, tag)
    else
        lost[#lost + 1] = tag
    end
end
return lost
