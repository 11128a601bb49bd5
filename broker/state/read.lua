-- Reads a batch in one round trip: the objects of its alerts, and the objects of other surveys and the spectra
-- that are near them on the sky.
-- ARGV: prefix; squares of the two search radii, in radians; greatest number of years to follow proper motion;
-- then for each position: survey, object id, ra, dec (degrees), mjd, number of cells, cells.
-- Gives {objects, spectra}: each object {name, place or '', light curve, spectrum, catalogue values}, each
-- spectrum {id, place, spectrum}; each once. A survey of '' is a place without an object of its own.
local prefix, objects2, spectra2, max_years = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local objects, spectra, seen = {}, {}, {}

local function vector(ra, dec)
  ra, dec = math.rad(ra), math.rad(dec)
  return math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)
end

-- As Place.distance of places.py computes it, squared and in radians.
local function distance2(place, x, y, z, mjd)
  local ra, dec, epoch, pmra, pmdec = struct.unpack('<ddddd', place)
  local years = 0
  if (pmra ~= 0 or pmdec ~= 0) and mjd == mjd and epoch == epoch then
    years = math.max(-max_years, math.min(max_years, (mjd - epoch) / 365.25))
  end
  local cosine = math.max(math.cos(math.rad(dec)), 1e-9)
  local px, py, pz = vector(
    ra + pmra / 3.6e6 / cosine * years, math.max(-90, math.min(90, dec + pmdec / 3.6e6 * years)))
  return (px - x) ^ 2 + (py - y) ^ 2 + (pz - z) ^ 2
end

local function fetch(name, place)
  local row = seen[name]
  if row then
    -- Of two entries the older is left from when the object's value could not be read.
    local known = objects[row][2]
    if place ~= '' and (known == '' or struct.unpack('<d', place, 17) > struct.unpack('<d', known, 17)) then
      objects[row][2] = place
    end
    return true
  end
  local key = prefix .. ':' .. name
  local values = redis.call('MGET', key .. ':lc', key .. ':sp', key .. ':md')
  if place ~= '' and not values[1] then return false end
  seen[name] = #objects + 1
  objects[#objects + 1] = {name, place, values[1], values[2], values[3]}
  return true
end

local at = 5
while at <= #ARGV do
  local survey, ra, dec, mjd = ARGV[at], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if survey ~= '' then fetch(survey .. ':' .. ARGV[at + 1], '') end
  local x, y, z = vector(ra, dec)
  local cells = tonumber(ARGV[at + 5])
  for c = at + 6, at + 5 + cells do
    local key = prefix .. ':sky:objects:' .. ARGV[c]
    local entries = redis.call('HGETALL', key)
    for e = 1, #entries, 2 do
      local name, place = entries[e], entries[e + 1]
      if string.sub(name, 1, #survey + 1) ~= survey .. ':' and distance2(place, x, y, z, mjd) <= objects2 then
        -- An object that expired is forgotten here as well.
        if not fetch(name, place) then redis.call('HDEL', key, name) end
      end
    end
    entries = redis.call('HGETALL', prefix .. ':sky:spectra:' .. ARGV[c])
    for e = 1, #entries, 2 do
      local id, place = entries[e], entries[e + 1]
      if not seen['spectrum:' .. id] and distance2(place, x, y, z, mjd) <= spectra2 then
        local where = redis.call('GET', prefix .. ':where:' .. id)
        if where and where ~= 'at:' .. ARGV[c] then
          -- Stored by a release that did not say where, and sent again since with another position.
          redis.call('HDEL', prefix .. ':sky:spectra:' .. ARGV[c], id)
        else
          seen['spectrum:' .. id] = 0
          spectra[#spectra + 1] = {id, place, redis.call('GET', prefix .. ':spectrum:' .. id)}
        end
      end
    end
  end
  at = at + 6 + cells
end
return {objects, spectra}
