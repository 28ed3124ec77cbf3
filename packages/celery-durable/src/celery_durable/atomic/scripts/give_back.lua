#!lua flags=allow-oom
-- Returns a message that a worker held to its queues, unless another one has already done so.
--
-- KEYS  1 unacked   2 unacked_index   3… the queues' lists
-- ARGV  1 delivery tag   2 message   3 'RPUSH': it is the next to be taken; 'LPUSH': the last
--       4… each list's expiry (ms, x-expires of its queue; 0: none): Redis removes a list, and its expiry, when it is empty
-- Returns 1; 0 if the tag is not held. On an error the message stays in the books.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
    redis.call('ZREM', KEYS[2], ARGV[1])
    return 0
end
for list = 3, #KEYS do
    redis.call(ARGV[3], KEYS[list], ARGV[2])
    if tonumber(ARGV[list + 1]) > 0 then
        redis.call('PEXPIRE', KEYS[list], ARGV[list + 1])
    end
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
