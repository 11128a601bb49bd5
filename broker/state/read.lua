-- Reads a batch in one round trip: the objects of its alerts, and the objects of other surveys and the spectra
-- that are near them on the sky.
-- KEYS: what the keys of each coarse cell begin with, "<prefix>:{<cell>}": all that the script touches begins so, and has
-- that hash tag. One cell in a cluster, where a script has one slot; any number on a single Redis. There "<prefix>" may
-- be one of them, for keys of before state was kept by cell.
-- ARGV: the prefix of keys without a cell, '' in a cluster; the two search radii, and how far what is stored may have moved, in radians; greatest number of years to
-- follow proper motion; the constants BIN (in radians), CROWD, NEAREST, CELL and BUDGET of places.py; '1' to delete
-- entries of what has expired, '0' to write nothing; then for each
-- position: number of its key, survey, object id, and packed ra, dec (degrees), mjd as 8-byte floats and the fine cells
-- as 4-byte integers: fewer arguments are quicker.
-- Gives {objects, spectra, number of positions done, crowded}: each object {name, place or '', light curve, spectrum,
-- period search, number of its key}, each spectrum {id, place, spectrum, number
-- of its key}; each once for a key. A survey of '' is a place without an object of its
-- own. Positions that are left, since enough was looked at, are for another call: meanwhile Redis serves others.
-- "crowded" counts the positions where not all that is there was looked at.
local prefix, margin, max_years = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
local radii = {objects = tonumber(ARGV[2]), spectra = tonumber(ARGV[3])}
local step, crowd, nearest, most, budget =
  tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local tidies = ARGV[11] == '1'
local reach = math.max(radii.objects, radii.spectra) + margin
local objects, spectra, seen, looked, compared, crowded = {}, {}, {}, 0, 0, 0

local function vector(ra, dec)
  ra, dec = math.rad(ra), math.rad(dec)
  return math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)
end

-- As Place.distance of places.py computes it, squared and in radians.
local function distance2(entry, x, y, z, mjd)
  local px, py, pz = entry.x, entry.y, entry.z
  if (entry.pmra ~= 0 or entry.pmdec ~= 0) and mjd == mjd and entry.epoch == entry.epoch then
    local years = math.max(-max_years, math.min(max_years, (mjd - entry.epoch) / 365.25))
    local cosine = math.max(math.cos(math.rad(entry.dec)), 1e-9)
    px, py, pz = vector(entry.ra + entry.pmra / 3.6e6 / cosine * years,
      math.max(-90, math.min(90, entry.dec + entry.pmdec / 3.6e6 * years)))
  end
  return (px - x) ^ 2 + (py - y) ^ 2 + (pz - z) ^ 2
end

-- Bins of space, as those of SkyIndex in places.py: what is near is in the same one or the next.
local function bin(x, y, z)
  return (x * 65536 + y) * 65536 + z
end

local function read(kind, cell, index, home)
  local key = KEYS[home] .. ':sky:' .. kind .. ':' .. cell
  local function take(entries)
    for e = 1, #entries, 2 do
      local name, place = entries[e], entries[e + 1]
      local ra, dec, epoch, pmra, pmdec = struct.unpack('<ddddd', place)
      local x, y, z = vector(ra, dec)
      local at = bin(math.floor(x / step), math.floor(y / step), math.floor(z / step))
      local survey = kind == 'objects' and string.match(name, '^[^:]*') or ''
      local here = index[at]
      if not here then
        here = {}
        index[at] = here
      end
      local list = here[survey]
      if not list then
        list = {}
        here[survey] = list
      end
      if #list < crowd then
        list[#list + 1] = {name = name, place = place, key = key, home = home, cell = cell, x = x, y = y, z = z, ra = ra, dec = dec,
          epoch = epoch, pmra = pmra, pmdec = pmdec}
      else
        list.crowded = true
      end
    end
    looked = looked + #entries / 2
  end
  if redis.call('HLEN', key) <= most then
    take(redis.call('HGETALL', key))
    return false
  end
  local cursor, before = '0', looked
  repeat
    local page = redis.call('HSCAN', key, cursor, 'COUNT', 1000)
    cursor = page[1]
    take(page[2])
  until cursor == '0' or looked - before >= most
  return cursor ~= '0'
end

-- Entries within a radius, in their order, no more than 'nearest' of each survey.
local function near(kind, index, own, x, y, z, mjd, before)
  local radius, found, overfull = radii[kind], {}, false
  local function axis(value)
    return math.floor((value - reach) / step), math.floor((value + reach) / step)
  end
  local x0, x1 = axis(x)
  local y0, y1 = axis(y)
  local z0, z1 = axis(z)
  for bx = x0, x1 do
    for by = y0, y1 do
      for bz = z0, z1 do
        for survey, list in pairs(index[bin(bx, by, bz)] or {}) do
          if survey ~= own then
            overfull = overfull or list.crowded
            compared = compared + #list
            for _, entry in ipairs(list) do
              local d = distance2(entry, x, y, z, mjd)
              if d <= radius ^ 2 then
                local best = found[survey] or {}
                found[survey] = best
                local item = {entry = entry, distance = d}
                local slot = #best + 1
                while slot > 1 and before(item, best[slot - 1]) do slot = slot - 1 end
                if slot <= nearest then
                  table.insert(best, slot, item)
                  best[nearest + 1] = nil
                end
              end
            end
          end
        end
      end
    end
  end
  return found, overfull
end

local function nearer(first, second)
  if first.distance ~= second.distance then return first.distance < second.distance end
  return first.entry.name < second.entry.name
end

local function later(first, second)
  local a, b = first.entry.epoch, second.entry.epoch
  a, b = a == a and a or -math.huge, b == b and b or -math.huge
  if a ~= b then return a > b end
  return first.entry.name > second.entry.name
end

local function fetch(name, place, home)
  local full = KEYS[home] .. ':' .. name
  local row = seen[full]
  if row then
    -- Of two entries the older is left from when the object's value could not be read.
    local known = objects[row][2]
    if place ~= '' and (known == '' or struct.unpack('<d', place, 17) > struct.unpack('<d', known, 17)) then
      objects[row][2] = place
    end
    return true
  end
  local values = redis.call('MGET', full .. ':lc', full .. ':ps')
  if place ~= '' and not values[1] then return false end
  seen[full] = #objects + 1
  -- A spectrum that was stored by the object's name is wherever that is; the client asks a cluster for it.
  local spectrum = prefix ~= '' and redis.call('GET', prefix .. ':' .. name .. ':sp')
  objects[#objects + 1] = {name, place, values[1], spectrum, values[2], home}
  return true
end

local indices, cells_read, done = {objects = {}, spectra = {}}, {}, 0

-- Whether another position has to wait for another call: where it asks for more cells after enough was read of others.
local function enough(known, cells)
  if done == 0 or looked < budget and compared < 10 * budget then return false end
  for _, cell in ipairs(cells) do
    if known[cell] == nil then return true end
  end
  return compared >= 10 * budget
end

local at = 12
while at <= #ARGV do
  local home, survey, packed = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 3]
  local ra, dec, mjd = struct.unpack('<ddd', packed)
  local cells = {}
  for c = 25, #packed, 4 do cells[#cells + 1] = string.format('%d', (struct.unpack('<I4', packed, c))) end
  local known = cells_read[home] or {}
  cells_read[home] = known
  if enough(known, cells) then break end
  if survey ~= '' then fetch(survey .. ':' .. ARGV[at + 2], '', home) end
  if #cells > 0 then
    local overfull = false
    for _, cell in ipairs(cells) do
      if known[cell] == nil then
        local first, second = read('objects', cell, indices.objects, home), read('spectra', cell, indices.spectra, home)
        known[cell] = first or second
      end
      overfull = overfull or known[cell]
    end
    local x, y, z = vector(ra, dec)
    local found, more = near('objects', indices.objects, survey, x, y, z, mjd, nearer)
    for _, best in pairs(found) do
      for _, item in ipairs(best) do
        -- An object that expired is forgotten here as well.
        if not fetch(item.entry.name, item.entry.place, item.entry.home) and tidies then redis.call('HDEL', item.entry.key, item.entry.name) end
      end
    end
    local observed, even_more = near('spectra', indices.spectra, nil, x, y, z, mjd, later)
    for _, item in ipairs(observed[''] or {}) do
      local id, entry = item.entry.name, item.entry
      local full = KEYS[entry.home] .. ':spectrum:' .. id
      if not seen[full] then
        local where = KEYS[entry.home] == prefix and redis.call('GET', prefix .. ':where:' .. id)
        if where and where ~= 'at:' .. entry.cell then
          -- Stored by a release that did not say where, and sent again since with another position.
          if tidies then redis.call('HDEL', entry.key, id) end
        else
          seen[full] = 0
          spectra[#spectra + 1] = {id, entry.place, redis.call('GET', full), entry.home}
        end
      end
    end
    if overfull or more or even_more then crowded = crowded + 1 end
  end
  at = at + 4
  done = done + 1
end
return {objects, spectra, done, crowded}
