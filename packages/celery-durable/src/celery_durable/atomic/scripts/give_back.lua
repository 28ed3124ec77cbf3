#!lua flags=allow-oom
-- Returns a message that a worker held to a queue, unless another one has already done so.
--
-- KEYS  1 unacked   2 unacked_index   3 the queue's list
-- ARGV  1 delivery tag   2 message   3 'RPUSH': it is the next to be taken; 'LPUSH': the last
-- Returns 1; 0 if the tag is not held.
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then
    return 0
end
redis.call(ARGV[3], KEYS[3], ARGV[2])
return 1
