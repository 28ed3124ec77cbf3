#!lua flags=allow-oom
-- Finds messages whose holder no longer renews them.
--
-- KEYS  1 unacked_index   2 leases   hash: "seen": last call of any worker, "hold": no lease lapses before (epoch seconds)
-- ARGV  1 lease: seconds without a renewal after which a message is redelivered
--       2 visibility timeout: the same for messages that workers of kombu's own transport hold
--       3 prefix of our delivery tags
--       4 gap: seconds without any call that mean that nobody could renew (Redis was frozen, down, or cut off)
--       5 seconds that holders then have to renew
--       6 the most tags to return
-- Returns delivery tags, of each worker that of its newest message first: each is returned to the front of its queue, so
-- that the oldest is the next. They stay in the books: give_back.lua or a dead letter removes them.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local lease, visibility, prefix = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local gap, grace, most = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

local state = redis.call('HMGET', KEYS[2], 'seen', 'hold')
local hold = math.min(tonumber(state[2] or 0), now + grace) -- a clock that was set back must not prolong it
if now - tonumber(state[1] or 0) > gap then
    hold = now + grace
end
redis.call('HSET', KEYS[2], 'seen', string.format('%.6f', now), 'hold', string.format('%.6f', hold))
if now < hold then
    return {}
end

local found, page, offset = {}, 1000, 0
repeat
    local tags = redis.call('ZRANGE', KEYS[1], now - lease, '-inf', 'BYSCORE', 'REV', 'LIMIT', offset, page, 'WITHSCORES')
    for i = 1, #tags, 2 do
        local ours = string.sub(tags[i], 1, #prefix) == prefix
        if #found < most and (ours or tonumber(tags[i + 1]) < now - visibility) then
            found[#found + 1] = tags[i]
        end
    end
    offset = offset + page
until #found >= most or #tags < 2 * page
return found
