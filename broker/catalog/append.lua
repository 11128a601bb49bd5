-- Adds the rows of one chunk to their cells, together with the record of how far the loading got: a script is done
-- whole or not at all. APPEND would leave each value with up to as much again of spare room; SET leaves none.
--
-- KEYS: the record. ARGV: chunks so far (the chunk is refused where there are others: two are loading), field of the
-- file, its new value, usable rows, skipped rows, rows stored, start of the cells' keys, the cells, each 8 bytes, the
-- bytes of rows of each, 4 bytes, and the rows of all. Three arguments are much quicker than two for each cell. Last, what
-- is counted: field and number, one after another.
if (redis.call('HGET', KEYS[1], 'chunks') or '0') ~= ARGV[1] then
  return 0
end
redis.call('HINCRBY', KEYS[1], 'chunks', 1)
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('HINCRBY', KEYS[1], 'rows', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'skipped', ARGV[5])
redis.call('HINCRBY', KEYS[1], 'stored', ARGV[6])
for i = 11, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
end
local start, cells, sizes, rows = ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local first = 1
for i = 0, #cells / 8 - 1 do
  local cell = struct.unpack('<i8', cells, 8 * i + 1)
  local next = first + struct.unpack('<I4', sizes, 4 * i + 1)
  local key = start .. string.format('%.0f', cell)
  redis.call('SET', key, (redis.call('GET', key) or '') .. string.sub(rows, first, next - 1))
  first = next
end
return 1
