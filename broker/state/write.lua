-- Writes a batch in one round trip, all of it or nothing.
-- ARGV: prefix; seconds until what is not seen again expires; then for each object: name, value or '' where it is
-- as it was, place or '' where it has none, its cell, the cell where it was before or ''.
local prefix, expiry = ARGV[1], ARGV[2]
for at = 3, #ARGV, 5 do
  local name, value, place, cell, before = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local key = prefix .. ':' .. name .. ':lc'
  if value == '' then
    redis.call('EXPIRE', key, expiry)
  else
    redis.call('SET', key, value, 'EX', expiry)
  end
  if before ~= '' then redis.call('HDEL', prefix .. ':sky:objects:' .. before, name) end
  if place ~= '' then
    local sky = prefix .. ':sky:objects:' .. cell
    redis.call('HSET', sky, name, place)
    redis.call('EXPIRE', sky, expiry)
  end
end
