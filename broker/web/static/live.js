"use strict";
// Fetches the list anew while "Live" is on and the page is seen, and marks what is new.
(() => {
  const EVERY = 10000;
  const box = document.querySelector("#live input");
  const list = document.getElementById("objects");
  const news = document.getElementById("news");
  if (new URLSearchParams(location.search).has("cursor")) return; // a later page stays as it is
  document.getElementById("live").hidden = false;
  const keys = () => new Set([...list.querySelectorAll("tbody tr")].map((row) => row.textContent));
  async function refresh() {
    if (!box.checked || document.hidden || list.contains(document.activeElement)) return;
    let answer;
    try { answer = await fetch(location.href, { headers: { Fragment: "1" } }); } catch { answer = null; }
    document.getElementById("live").classList.toggle("lost", !answer || !answer.ok);
    if (!answer || !answer.ok) return;
    const before = keys();
    list.innerHTML = await answer.text(); // of this server, which escapes all values
    let count = 0;
    for (const row of list.querySelectorAll("tbody tr")) {
      if (before.size && !before.has(row.textContent)) { row.classList.add("new"); count += 1; }
    }
    if (count) news.textContent = `${count} new`;
  }
  setInterval(refresh, EVERY);
  document.addEventListener("visibilitychange", refresh);
  window.trifidRefresh = refresh;
})();
