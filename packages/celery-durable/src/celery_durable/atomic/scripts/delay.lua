#!lua flags=allow-oom
-- Parks a message that a worker holds until it is due, unless it has already returned to its queue, or is due.
--
-- KEYS  1 unacked   2 unacked_index   3 the queue's delayed messages
-- ARGV  1 delivery tag   2 due (epoch seconds)   3 list, "\0", delivery tag, "\0", message
-- Returns 1; 0 if the tag is not held; 2 if the message is due by the clock of Redis: the worker's may be behind. Then,
-- and on an error, it stays in the books.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
    redis.call('ZREM', KEYS[2], ARGV[1])
    return 0
end
local time = redis.call('TIME')
if tonumber(ARGV[2]) <= tonumber(time[1]) + tonumber(time[2]) / 1000000 then
    return 2
end
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[3])
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
