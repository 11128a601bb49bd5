"use strict";
// Names and a place in the order of keys for what Material for MkDocs makes without them, some of it after loading.
(() => {
  const mend = () => {
    document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
    document.querySelectorAll(".md-code__nav:not([aria-label])").forEach((nav) => {
      nav.setAttribute("aria-label", `Code of ${nav.closest("pre")?.id || nav.parentElement.id}`);
    });
    document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])").forEach((wrap) => { wrap.tabIndex = 0; });
  };
  document.addEventListener("DOMContentLoaded", () => {
    mend();
    new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
  });
})();
