#!lua flags=allow-oom
-- Acknowledges messages, takes others, and registers who waits for more. All of it in one step: a message is in its list
-- or in the books (unacked), never in neither.
--
-- KEYS  1 unacked          hash: delivery tag -> [message, "", queue], as kombu writes it
--       2 unacked_index    sorted set: delivery tag -> time of the last renewal (epoch seconds)
--       3 watcher          string: the waiting worker that Redis tells of new messages
--       4 waiting          sorted set: the other waiting workers -> since when
--       5 wake key         of the caller: exists for a second when another worker wakes it
--       6…                 the queues' lists, the most urgent priority of each queue first
-- ARGV  1 most messages    0: only acknowledge
--       2 tag prefix       3 number of the first tag
--       4 number of queues
--       5 1: the queues take turns, 0: earlier ones first
--       6 name of the caller
--       7 prefix of all wake keys
--       8 1: if there are fewer messages, register the caller as waiting
--       9 number of tags to acknowledge
--       10…                the tags, then each queue's name as JSON
-- Returns {number of tags that the caller no longer held, role, queue (1…), message, queue, message, …}. The n-th message
-- has the tag <prefix><first + n - 1>, the number with 12 digits: so tags sort in the order in which they were given.
--
-- Role: 0: call again. 1: watch the lists. 2: watch the wake key. To watch is to read keys on a connection that has
-- CLIENT TRACKING on: Redis notifies it of their next change. Only one worker watches the lists, so a new message wakes
-- one; who takes messages hands the watch on. Every waiting worker calls again each second, in case the watcher was
-- killed. This script may not read a key with a command that Redis tracks: Redis 7.0 then tracks all of KEYS.

local most, prefix, number = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local queues, in_turn = tonumber(ARGV[4]), ARGV[5] == '1'
local caller, wake_prefix, may_wait = ARGV[6], ARGV[7], ARGV[8] == '1'
local acks = tonumber(ARGV[9])
local names = 9 + acks
local WATCH, WAIT, WAKE = 3000, 3, 1000 -- ms, s: three missed calls; ms
local BYTES = 4 * 1024 * 1024 -- no more are taken after so many
local TOGETHER = 10 -- messages in one RPOP: their size is known only then

local late = 0
if acks > 0 then
    late = acks - redis.call('HDEL', KEYS[1], unpack(ARGV, 10, names))
    redis.call('ZREM', KEYS[2], unpack(ARGV, 10, names))
end
local found = { late, 0 }
if most == 0 then
    return found
end

local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local index, held, bytes = {}, {}, 0

local function book(queue, message)
    local tag = prefix .. string.format('%012d', number)
    number, most, bytes = number + 1, most - 1, bytes + #message
    index[#index + 1], index[#index + 2] = now, tag
    held[#held + 1], held[#held + 2] = tag, '[' .. message .. ', "", ' .. ARGV[names + queue] .. ']'
    found[#found + 1], found[#found + 2] = queue, message
end

for first = 6, #KEYS, queues do -- a priority
    if most == 0 then
        break
    end
    if in_turn and queues > 1 then
        local left, empty = queues, {}
        while most > 0 and left > 0 do
            for queue = 1, queues do
                if most > 0 and not empty[queue] then
                    local message = redis.pcall('RPOP', KEYS[first + queue - 1])
                    if message and not message.err then -- another type of key counts as empty
                        book(queue, message)
                        most = bytes < BYTES and most or 0
                    else
                        empty[queue], left = true, left - 1
                    end
                end
            end
        end
    else
        for queue = 1, queues do
            local left = true
            while left and most > 0 do
                local wanted = math.min(most, TOGETHER)
                local messages = redis.pcall('RPOP', KEYS[first + queue - 1], wanted) or {}
                for _, message in ipairs(messages) do
                    book(queue, message)
                end
                left = #messages == wanted
                most = bytes < BYTES and most or 0
            end
        end
    end
end
if #index > 0 then
    redis.call('ZADD', KEYS[2], unpack(index))
    redis.call('HSET', KEYS[1], unpack(held))
end

local function more_messages()
    for list = 6, #KEYS do
        local none = redis.pcall('RPOP', KEYS[list], 0) -- takes nothing; nil if there is no list
        if none and not none.err then
            return true
        end
    end
    return false
end

local watcher = redis.call('GETEX', KEYS[3])
if most == 0 or not may_wait then -- there may be more, and the caller cannot take it
    redis.call('ZREM', KEYS[4], caller)
    local last = redis.call('ZPOPMAX', KEYS[4])
    if last[1] and (watcher == caller or more_messages()) then
        redis.call('SET', wake_prefix .. last[1], '', 'PX', WAKE)
    elseif last[1] then
        redis.call('ZADD', KEYS[4], last[2], last[1])
    end
    if watcher == caller then
        redis.call('DEL', KEYS[3])
    end
elseif not watcher or watcher == caller then
    redis.call('SET', KEYS[3], caller, 'PX', WATCH)
    redis.call('ZREM', KEYS[4], caller)
    found[2] = 1
else
    redis.call('DEL', KEYS[5])
    redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', tonumber(time[1]) - WAIT)
    redis.call('ZADD', KEYS[4], now, caller)
    found[2] = 2
end
return found
