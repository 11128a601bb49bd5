-- Writes a batch in one round trip, each object whole or not at all.
-- ARGV: prefix; seconds until what is not seen again expires; then for each object: name, value or '' where it is
-- as it was, first bytes of what was read or '' where there was nothing, place or '' where it has none, its cell, the
-- cell where it was before or ''.
-- Gives the names of objects that another worker has written since they were read: these are left as they are.
local prefix, expiry = ARGV[1], ARGV[2]
local changed = {}
for at = 3, #ARGV, 6 do
  local name, value, stamp, place, cell, before = unpack(ARGV, at, at + 5)
  local key = prefix .. ':' .. name .. ':lc'
  if value == '' then
    redis.call('EXPIRE', key, expiry)
  elseif redis.call('GETRANGE', key, 0, STAMP_BYTES - 1) ~= stamp then
    changed[#changed + 1] = name
  else
    redis.call('SET', key, value, 'EX', expiry)
    if before ~= '' then redis.call('HDEL', prefix .. ':sky:objects:' .. before, name) end
    if place ~= '' then
      local sky = prefix .. ':sky:objects:' .. cell
      redis.call('HSET', sky, name, place)
      redis.call('EXPIRE', sky, expiry)
    end
  end
end
return changed
