-- Stores spectra, each whole or not at all, and takes away where one of the same id was before.
-- ARGV: prefix; then for each spectrum: id, value, cell or '' where it is stored by an object's name, place, name.
-- <prefix>:where:<id> says where a spectrum is: 'at:<cell>' or 'of:<name>'; <prefix>:spectrum-of:<name> which one an
-- object's is.
local prefix = ARGV[1]
for at = 2, #ARGV, 5 do
  local id, value, cell, place, name = unpack(ARGV, at, at + 4)
  local where = name ~= '' and 'of:' .. name or 'at:' .. cell
  local before = redis.call('GET', prefix .. ':where:' .. id)
  if before and before ~= where then
    local kind, rest = string.sub(before, 1, 3), string.sub(before, 4)
    if kind == 'at:' then
      redis.call('HDEL', prefix .. ':sky:spectra:' .. rest, id)
    elseif redis.call('GET', prefix .. ':spectrum-of:' .. rest) == id then
      redis.call('DEL', prefix .. ':' .. rest .. ':sp', prefix .. ':spectrum-of:' .. rest)
    end
  end
  if name ~= '' then
    redis.call('DEL', prefix .. ':spectrum:' .. id)
    redis.call('SET', prefix .. ':' .. name .. ':sp', value)
    redis.call('SET', prefix .. ':spectrum-of:' .. name, id)
  else
    redis.call('SET', prefix .. ':spectrum:' .. id, value)
    redis.call('HSET', prefix .. ':sky:spectra:' .. cell, id, place)
  end
  redis.call('SET', prefix .. ':where:' .. id, where)
end
