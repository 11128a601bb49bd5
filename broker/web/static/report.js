"use strict";
// The plots of a report, which is one file: what each shows is said by its element, the data stand beside it.
(() => {
  const kinds = {
    time: (data, node, of) => curves.lightCurve(data.lightCurve, { of }),
    phase: (data, node, of) => curves.lightCurve(data.lightCurve, { days: Number(node.dataset.days), of }),
    spectrum: (data, node, of) => curves.spectrum(data.spectrum, of),
  };
  const redraw = [];
  for (const node of document.querySelectorAll("[data-plot]")) {
    const data = JSON.parse(document.getElementById(node.dataset.from).textContent);
    const options = () => kinds[node.dataset.plot](data, node, ` of ${node.dataset.of}`);
    const drawn = plot(node, options());
    redraw.push(() => drawn.update(options()));
  }
  const all = () => redraw.forEach((one) => one());
  addEventListener("themechange", all);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
})();
