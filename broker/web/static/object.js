"use strict";
// The plots of an object's page, from the data that came with it.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { CLASS_COLOURS, SHAPES, number, theme } = curves;
  const $ = (id) => document.getElementById(id);
  const redraw = [];

  function curve() {
    const points = data.lightCurve;
    if (!points || !points.mjd.length) { $("curve").textContent = "No points."; return; }
    const period = $("period");
    const state = { x: "time", y: "magnitude" };
    if (data.period) period.value = Number(data.period.toPrecision(8));
    const options = () => curves.lightCurve(points, { days: state.x === "phase" ? Number(period.value) : 0, flux: state.y === "flux" });
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
    const options = () => curves.spectrum(s);
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
        x: { label: "Offset east, ″", invert: true, range: [-125, 125] },
        y: { label: "Offset north, ″", range: [-125, 125] },
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
