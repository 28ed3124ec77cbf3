-- Moves delayed messages that are due to their lists, in the order of their times.
--
-- KEYS  sorted sets of delayed messages: list, "\0", a unique id, "\0", message -> due (epoch seconds)
-- ARGV  1 the most messages to move
-- Returns how many were moved.
--
-- It runs in Redis 6, too, whose workers use the stock transport. A full Redis runs it: it writes first with ZREM.
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local most, moved = tonumber(ARGV[1]), 0
local LATER = 60 -- s until one that cannot be moved is tried again
for _, delayed in ipairs(KEYS) do
    local members = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, most - moved)
    for _, member in ipairs(members) do
        local list_ends = string.find(member, '\0', 1, true)
        local id_ends = list_ends and string.find(member, '\0', list_ends + 1, true)
        redis.call('ZREM', delayed, member)
        local list = id_ends and string.sub(member, 1, list_ends - 1)
        local pushed = id_ends and redis.pcall('LPUSH', list, string.sub(member, id_ends + 1))
        if not pushed or type(pushed) == 'table' then -- an error
            redis.call('ZADD', delayed, tonumber(time[1]) + LATER, member)
        end
    end
    moved = moved + #members
    if moved >= most then
        break
    end
end
return moved
