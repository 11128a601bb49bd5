"use strict";
// The plots of an object's page, from the data that came with it.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
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
  const $ = (id) => document.getElementById(id);
  const redraw = [];

  function bandColour(band) {
    const letter = band.split(":")[1];
    const palette = COLOURS[theme()];
    return palette[letter] ?? palette[NEAREST[letter]] ?? palette.other;
  }

  function curve() {
    const points = data.lightCurve;
    if (!points || !points.mjd.length) { $("curve").textContent = "No points."; return; }
    const period = $("period");
    const state = { x: "time", y: "magnitude" };
    if (data.period) period.value = Number(data.period.toPrecision(8));
    const total = points.total.some(Boolean);
    const start = Math.floor(points.mjd[0]);
    const options = () => {
      const days = Number(period.value);
      const folded = state.x === "phase" && days > 0;
      const bands = new Map();
      let left = 0;
      points.mjd.forEach((mjd, n) => {
        const limit = points.kind[n] === "limit";
        const y = state.y === "flux" ? (limit || points.flux[n] === null ? null : points.flux[n] / 1000) : points.magnitude[n];
        // The brightness of a difference is not the star's: it is not drawn beside those that are.
        if (y === null || (total && !limit && !points.total[n])) { left += 1; return; }
        const name = points.band[n] + (limit ? " limits" : points.kind[n] === "forced" ? " forced" : "");
        if (!bands.has(name)) bands.set(name, { name, band: points.band[n], limit, open: points.kind[n] === "forced", points: [] });
        const error = limit ? null : state.y === "flux" ? points.fluxError[n] / 1000 : points.magnitudeError[n];
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
        label: `Light curve against ${folded ? "phase" : "time"}, ${order.join(", ")}`,
        series,
        legend: true,
        x: folded ? { label: `Phase, P = ${days} d, from barycentric MJD ${start}`, range: [0, 2] } : { label: "MJD (UTC)" },
        y: state.y === "flux" ? { label: `Flux, µJy${what}` } : { label: `Magnitude (AB${what})`, invert: true },
        read: (s, [x, , , t]) => `${s.name}: ${folded ? `phase ${number(x % 1, 3)}, ` : ""}MJD ${number(t.mjd, 5)}, ${s.limit ? "> " : ""}${number(t.y, 3)}${t.error ? ` ± ${number(t.error, 3)}` : ""}${state.y === "flux" ? " µJy" : " mag"}`,
        left,
      };
    };
    const drawn = plot($("curve"), options());
    const update = () => drawn.update(options());
    for (const input of document.querySelectorAll("input[name=x], input[name=y]")) {
      input.addEventListener("change", () => { state[input.name] = input.value; update(); });
    }
    const fold = () => { document.querySelector("input[name=x][value=phase]").checked = true; state.x = "phase"; update(); };
    period.addEventListener("change", fold);
    for (const button of document.querySelectorAll("[data-times]")) {
      button.addEventListener("click", () => {
        if (!(Number(period.value) > 0)) return;
        period.value = Number((Number(period.value) * Number(button.dataset.times)).toPrecision(10));
        fold();
      });
    }
    redraw.push(update);
  }

  function overTime() {
    const rows = data.history;
    if (!rows.length) { $("over").textContent = "No annotations kept."; return; }
    const last = rows[rows.length - 1].probabilities;
    const mean = {};
    for (const row of rows) for (const [name, p] of Object.entries(row.probabilities)) mean[name] = (mean[name] ?? 0) + p;
    const names = Object.keys(mean).sort((a, b) => (last[b] ?? 0) - (last[a] ?? 0) || mean[b] - mean[a]).slice(0, 4);
    const options = () => ({
      label: `Probabilities of ${names.join(", ")} over time`,
      legend: true,
      series: names.map((name, n) => ({
        name, colour: CLASS_COLOURS[theme()][n], marker: SHAPES[n], size: 2.4, line: true,
        points: rows.map((row) => [row.mjd, row.probabilities[name] ?? null, null, row]),
      })),
      x: { label: "MJD of the alert (UTC)" },
      y: { label: "Probability", range: [-0.03, 1.03] },
      read: (s, [x, y, , row]) => `${s.name} ${number(y, 3)} at MJD ${number(x, 4)}, ${row.detections} points, ${row.modalities.join(", ").replace("_", " ")}`,
    });
    const drawn = plot($("over"), options());
    redraw.push(() => drawn.update(options()));
  }

  function spectrum() {
    const s = data.spectrum;
    if (!s) return;
    const options = () => ({
      label: "Spectrum",
      series: [{ name: "flux", colour: CLASS_COLOURS[theme()][0], line: true, points: s.wavelength.map((w, n) => [w, s.fluxError[n] === null ? null : s.flux[n], s.fluxError[n]]) }],
      marks: LINES.map(([name, x]) => ({ name, x })),
      x: { label: "Vacuum wavelength, Å" },
      y: { label: "Flux, as observed" },
      read: (_, [x, y, e]) => `${number(x, 1)} Å: ${number(y, 4)}${e ? ` ± ${number(e, 4)}` : ""}`,
    });
    const drawn = plot($("spectrum"), options());
    redraw.push(() => drawn.update(options()));
  }

  function around() {
    const options = () => {
      const palette = CLASS_COLOURS[theme()];
      return {
        label: `Objects within 2 arcmin: ${data.around.length}`,
        series: [
          { name: data.objectId, colour: palette[1], marker: "diamond", size: 5, points: [[0, 0, null, null]] },
          { name: "others", colour: palette[0], marker: "circle", size: 4, points: data.around.map((one) => [one.east, one.north, null, one]) },
        ],
        x: { label: "East of it, ″", invert: true, range: [-125, 125] },
        y: { label: "North of it, ″", range: [-125, 125] },
        read: (_, [x, y, , one]) => (one ? `${one.objectId}: ${one.class} ${number(one.probability, 2)}, ${number(Math.hypot(x, y), 1)}″` : data.objectId),
        open: (_, [, , , one]) => { if (one) location.href = `/object/${encodeURIComponent(one.survey)}/${encodeURIComponent(one.objectId)}`; },
      };
    };
    const drawn = plot($("around"), options());
    redraw.push(() => drawn.update(options()));
  }

  function modalities() {
    const button = $("ask-modalities"), out = $("modalities");
    button.addEventListener("click", async () => {
      button.disabled = true;
      out.textContent = "The model is asked …";
      try {
        const answer = await fetch(button.dataset.address);
        const found = await answer.json();
        if (!answer.ok) throw new Error(found.detail);
        const kinds = Object.keys(found).sort((a, b) => (a === "all") - (b === "all"));
        const of = (kind) => Object.fromEntries(found[kind].classifications.map((c) => [c.className, c.probability]));
        const values = Object.fromEntries(kinds.map((kind) => [kind, of(kind)]));
        const names = [...new Set(kinds.flatMap((kind) => Object.keys(values[kind])))]
          .filter((name) => kinds.some((kind) => (values[kind][name] ?? 0) >= 0.01))
          .sort((a, b) => (values.all[b] ?? 0) - (values.all[a] ?? 0));
        const table = document.createElement("table");
        const head = table.createTHead().insertRow();
        for (const title of ["Class", ...kinds]) {
          const cell = document.createElement("th");
          cell.scope = "col";
          cell.textContent = title.replace("_", " ");
          head.append(cell);
        }
        const body = table.createTBody();
        for (const name of names) {
          const row = body.insertRow();
          const title = document.createElement("th");
          title.scope = "row";
          title.textContent = name;
          row.append(title);
          for (const kind of kinds) {
            const cell = row.insertCell();
            const bar = document.createElement("meter");
            bar.max = 1;
            bar.value = values[kind][name] ?? 0;
            bar.setAttribute("aria-label", `${name} by ${kind.replace("_", " ")}`);
            cell.append(bar, ` ${number(values[kind][name] ?? 0, 2)}`);
          }
        }
        out.replaceChildren(table);
        button.hidden = true;
      } catch (error) {
        out.textContent = `Not now: ${error.message}`;
        button.disabled = false;
      }
    });
  }

  curve();
  overTime();
  spectrum();
  around();
  modalities();
  const all = () => redraw.forEach((one) => one());
  addEventListener("themechange", all);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
})();
