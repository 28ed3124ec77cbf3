#!lua flags=allow-oom
-- Moves delayed messages that are due to their lists, in the order of their times.
--
-- KEYS  sorted sets of delayed messages: list, "\0", message -> due (epoch seconds)
-- ARGV  1 the most messages to move
-- Returns how many were moved.
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local most, moved = tonumber(ARGV[1]), 0
for _, delayed in ipairs(KEYS) do
    local members = redis.call('ZRANGE', delayed, '-inf', now, 'BYSCORE', 'LIMIT', 0, most - moved)
    for _, member in ipairs(members) do
        local ends = string.find(member, '\0', 1, true)
        redis.call('LPUSH', string.sub(member, 1, ends - 1), string.sub(member, ends + 1))
    end
    if #members > 0 then
        redis.call('ZREM', delayed, unpack(members))
    end
    moved = moved + #members
    if moved >= most then
        break
    end
end
return moved
