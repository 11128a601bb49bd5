-- Writes a batch in one round trip, each object whole or not at all.
-- KEYS: what the keys of each coarse cell begin with, as for read.lua.
-- ARGV: seconds until what is not seen again expires; then for each object: number of its key, name, value or '' where
-- it is as it was, first bytes of what was read or '' where there was nothing, place or '' where it has none, its fine
-- cell, the one where it was before or ''.
-- Gives the names of objects that another worker has written since they were read: these are left as they are.
local expiry = ARGV[1]
local changed = {}
for at = 2, #ARGV, 7 do
  local home, name, value, stamp, place, cell, before = unpack(ARGV, at, at + 6)
  local base = KEYS[tonumber(home)]
  local key = base .. ':' .. name .. ':lc'
  if value == '' then
    redis.call('EXPIRE', key, expiry)
  elseif redis.call('GETRANGE', key, 0, STAMP_BYTES - 1) ~= stamp then
    changed[#changed + 1] = name
  else
    redis.call('SET', key, value, 'EX', expiry)
    if before ~= '' then redis.call('HDEL', base .. ':sky:objects:' .. before, name) end
    if place ~= '' then
      local sky = base .. ':sky:objects:' .. cell
      redis.call('HSET', sky, name, place)
      redis.call('EXPIRE', sky, expiry)
    end
  end
end
return changed
