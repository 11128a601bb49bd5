-- Deletes a copy of an object that is kept elsewhere by now, unless it was written since it was read.
-- KEYS: its light curve, and what goes with that: the period search, the hash of its fine cell. ARGV: first bytes of
-- what was read, the object's name.
if redis.call('GETRANGE', KEYS[1], 0, STAMP_BYTES - 1) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if KEYS[2] then redis.call('DEL', KEYS[2]) end
if KEYS[3] then redis.call('HDEL', KEYS[3], ARGV[2]) end
return 1
