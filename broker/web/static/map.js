"use strict";
// From a point of the map to its object's page, and from a row of the table to the point.
(() => {
  const plane = document.querySelector("svg.plane");
  if (!plane) return;
  const points = new Map([...plane.querySelectorAll("[data-href]")].map((one) => [one.dataset.href, one]));
  plane.addEventListener("click", (event) => {
    const one = event.target.closest("[data-href]");
    if (one) location.href = one.dataset.href;
  });
  const mark = (event, on) => {
    const link = event.target.closest("tr")?.querySelector("a");
    const point = link && points.get(link.getAttribute("href"));
    if (point) point.classList.toggle("on", on);
  };
  const table = document.querySelector("table.objects");
  for (const [name, on] of [["focusin", true], ["mouseover", true], ["focusout", false], ["mouseout", false]]) {
    table?.addEventListener(name, (event) => mark(event, on));
  }
})();
