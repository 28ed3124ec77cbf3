-- Moves delayed messages that are due to their lists, in the order of their times.
--
-- KEYS  1 mover    string: the worker that calls again when the next message is due
--       2…         sorted sets of delayed messages: list, "\0", a unique id, "\0", message -> due (epoch seconds)
-- ARGV  1 the most messages to move   2 name of the caller   3 milliseconds after which each worker calls again
-- Returns {how many were moved, milliseconds until the next call of the caller}.
--
-- It runs in Redis 6, too, whose workers use the stock transport. A full Redis runs it: it writes first with ZREM, and
-- without a mover a message is only later.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local most, caller, again = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local LATER = 60 -- s until one that cannot be moved is tried again
local moved, wait = 0, again

local function move(delayed)
    local members = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, most - moved)
    for _, member in ipairs(members) do
        local list_ends = string.find(member, '\0', 1, true)
        local id_ends = list_ends and string.find(member, '\0', list_ends + 1, true)
        redis.call('ZREM', delayed, member)
        local list = id_ends and string.sub(member, 1, list_ends - 1)
        local pushed = id_ends and redis.pcall('LPUSH', list, string.sub(member, id_ends + 1))
        if not pushed or type(pushed) == 'table' then -- an error
            redis.call('ZADD', delayed, now + LATER, member)
        end
    end
    moved = moved + #members
end

local function seconds_to_next(delayed)
    local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
    return first[1] and tonumber(first[2]) - now
end

for key = 2, #KEYS do
    local seconds = seconds_to_next(KEYS[key])
    if seconds and seconds <= 0 and moved < most then
        move(KEYS[key])
        seconds = seconds_to_next(KEYS[key])
    end
    if seconds then
        wait = math.min(wait, math.max(0, math.ceil(seconds * 1000)))
    end
end
if wait < again and redis.call('GET', KEYS[1]) ~= caller then
    -- It is followed by another one if it is killed; until then, each worker calls.
    local chosen = redis.pcall('SET', KEYS[1], caller, 'NX', 'PX', 2 * again)
    if not chosen or chosen.err then
        wait = again
    end
end
return { moved, wait }
