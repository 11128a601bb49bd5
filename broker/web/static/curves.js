"use strict";
// What light curves and spectra look like, on the page of an object and in reports: options of plot().
const curves = (() => {
  // Rubin's colours of bands (RTN-045), for light and dark backgrounds; other surveys' bands take the nearest.
  const COLOURS = {
    light: { u: "#0c71ff", g: "#2f8f46", r: "#c61c00", i: "#b98500", z: "#d3269f", y: "#5d0000", other: "#444b54" },
    dark: { u: "#5cb3ff", g: "#49be61", r: "#ff7e5c", i: "#ffc200", z: "#f67fc8", y: "#e0a296", other: "#b8c0ca" },
  };
  const NEAREST = { V: "g", G: "g", BP: "g", RP: "r", B: "u", U: "u", R: "r", I: "i", c: "g", o: "r", T: "i", Kp: "r", Hp: "g" };
  const SHAPES = ["circle", "square", "triangle", "diamond"];
  const CLASS_COLOURS = { light: ["#3a6ea5", "#b8531f", "#2d7d5f", "#8a4b9e"], dark: ["#7fb2e8", "#f0955f", "#6cc7a1", "#cf93e3"] };
  const LINES = [["Ca K", 3934.8], ["Hδ", 4102.9], ["Hγ", 4341.7], ["Hβ", 4862.7], ["Mg b", 5176.6], ["Na D", 5894.6], ["Hα", 6564.6]];
  const theme = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  const number = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−"));

  function bandColour(band) {
    const letter = band.split(":")[1];
    const palette = COLOURS[theme()];
    return palette[letter] ?? palette[NEAREST[letter]] ?? palette.other;
  }

  // The points of objects.points against time, or folded at a period of so many days; `of` names the star to those who
  // cannot see the plot.
  function lightCurve(points, { days = 0, flux = false, of = "" } = {}) {
    const folded = days > 0;
    const total = points.total.some(Boolean);
    const start = Math.floor(points.mjd[0]);
    const bands = new Map();
    let left = 0;
    points.mjd.forEach((mjd, n) => {
      const limit = points.kind[n] === "limit";
      const y = flux ? (limit || points.flux[n] === null ? null : points.flux[n] / 1000) : points.magnitude[n];
      // The brightness of a difference is not the star's: it is not drawn beside those that are.
      if (y === null || (total && !limit && !points.total[n])) { left += 1; return; }
      const name = points.band[n] + (limit ? " limits" : points.kind[n] === "forced" ? " forced" : "");
      if (!bands.has(name)) bands.set(name, { name, band: points.band[n], limit, open: points.kind[n] === "forced", points: [] });
      const error = limit ? null : flux ? points.fluxError[n] / 1000 : points.magnitudeError[n];
      const text = { mjd, y, error };
      const own = bands.get(name).points;
      if (folded) {
        const phase = ((((points.mjdBarycentric[n] ?? mjd) - start) / days) % 1 + 1) % 1; // as the period was found
        own.push([phase, y, error, text], [phase + 1, y, error, text]);
      } else own.push([mjd, y, error, text]);
    });
    const order = [...new Set([...bands.values()].map((s) => s.band))].sort();
    const series = [...bands.values()].sort((a, b) => a.name.localeCompare(b.name));
    for (const s of series) {
      s.colour = bandColour(s.band);
      s.marker = s.limit ? "down" : SHAPES[order.indexOf(s.band) % SHAPES.length];
      s.most = 1; // an error of more than a magnitude does not stretch the axis
      s.quiet = s.limit && series.some((other) => !other.limit); // limits may be far from the star
    }
    const what = total ? "" : ", of the difference";
    return {
      label: `Light curve${of} against ${folded ? "phase" : "time"}, ${order.join(", ")}`,
      series,
      legend: true,
      x: folded ? { label: `Phase, P = ${days} d, from barycentric MJD ${start}`, range: [0, 2] } : { label: "MJD (UTC)" },
      y: flux ? { label: `Flux, µJy${what}` } : { label: `Magnitude (AB${what})`, invert: true },
      read: (s, [x, , , t]) => `${s.name}: ${folded ? `phase ${number(x % 1, 3)}, ` : ""}MJD ${number(t.mjd, 5)}, ${s.limit ? "> " : ""}${number(t.y, 3)}${t.error ? ` ± ${number(t.error, 3)}` : ""}${flux ? " µJy" : " mag"}`,
      left,
    };
  }

  function spectrum(s, of = "") {
    return {
      label: `Spectrum${of}`,
      series: [{ name: "flux", colour: CLASS_COLOURS[theme()][0], line: true, points: s.wavelength.map((w, n) => [w, s.fluxError[n] === null ? null : s.flux[n], s.fluxError[n]]) }],
      marks: LINES.map(([name, x]) => ({ name, x })),
      x: { label: "Vacuum wavelength, Å" },
      y: { label: "Flux, as observed" },
      read: (_, [x, y, e]) => `${number(x, 1)} Å: ${number(y, 4)}${e ? ` ± ${number(e, 4)}` : ""}`,
    };
  }

  return { CLASS_COLOURS, SHAPES, lightCurve, number, spectrum, theme };
})();
