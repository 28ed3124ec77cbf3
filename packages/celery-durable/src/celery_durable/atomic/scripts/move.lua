-- Moves one delayed message to a list now, for the command `delayed`.
--
-- KEYS  1 the queue's delayed messages   2 list
-- ARGV  1 member   2 message
-- Returns 1; 0 if it has been moved already. A full Redis runs it: it writes first with ZREM.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then
    return 0
end
redis.call('LPUSH', KEYS[2], ARGV[2])
return 1
