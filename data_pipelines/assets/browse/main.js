"use strict";
// Starts the page and joins its parts: the head, the keys, the address.

(() => {
  const { el, count, plural } = browse.tools;
  const { state, result } = browse.filters;
  const at = (name) => document.querySelector(name);
  const started = performance.now();

  browse.show = (view) => {
    state.view = view;
    for (const button of document.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-pressed", button.dataset.view === view);
    }
    at("#clips").hidden = view !== "clips";
    at("#buckets").hidden = view !== "buckets";
    remember();
  };
  browse.clearAll = () => { at("#search").value = ""; browse.filters.clear(); };

  const remember = () => {
    const hash = browse.filters.toHash();
    if (`#${hash}` !== location.hash) history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  };
  const tell = () => {
    const all = browse.manifest.count, shown = result.rows.length;
    const parts = [shown === all ? plural(all, "clip") : `${count(shown)} of ${plural(all, "clip")}`];
    if (browse.loaded < all) parts.push(`reading ${Math.round((100 * browse.loaded) / all)} %`);
    else if (state.q && browse.filters.progress() < 1) parts.push(`searching ${Math.round(100 * browse.filters.progress())} %`);
    at("#count").textContent = parts.join(", ");
  };
  const togglePanel = (open) => {
    document.body.classList.toggle("panel-open", open);
    at("#open-panel").setAttribute("aria-expanded", document.body.classList.contains("panel-open"));
    browse.panel.draw();
  };

  const connect = () => {
    const search = at("#search"), sort = at("#sort"), direction = at("#direction");
    search.addEventListener("focus", browse.filters.warm);
    search.addEventListener("input", () => browse.filters.search(search.value));
    search.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { search.value = ""; browse.filters.search(""); browse.grid.focus(); }
      else if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); browse.grid.focus(); }
    });
    sort.append(el("option", { value: "" }, "as in the ledger"),
      ...browse.manifest.numbers.map((x) => el("option", { value: x.name }, x.title)));
    sort.addEventListener("change", () => browse.filters.setSort(sort.value, state.descending));
    direction.addEventListener("click", () => browse.filters.setSort(state.sort, !state.descending));
    at("#clear").addEventListener("click", browse.clearAll);
    at("#open-panel").addEventListener("click", () => togglePanel());
    at("#views").hidden = !browse.manifest.buckets;
    for (const button of document.querySelectorAll("[data-view]")) {
      button.addEventListener("click", () => browse.show(button.dataset.view));
    }
    addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || at("#detail").open) return;
      const typing = event.target.matches("input, select");
      if (event.key === "/" && !typing) { event.preventDefault(); search.focus(); search.select(); }
      else if (event.key === "Escape" && document.body.classList.contains("panel-open")) togglePanel(false);
      else if (event.key === "Escape" && !typing) browse.clearAll();
      else if (event.key.startsWith("Arrow") && event.target === document.body && state.view === "clips") {
        event.preventDefault();
        browse.grid.focus();
      }
    });
    addEventListener("hashchange", fromAddress);
    browse.filters.listen(() => {
      sort.value = state.sort;
      direction.textContent = state.descending ? "↓" : "↑";
      direction.setAttribute("aria-label", `Order: ${state.descending ? "descending" : "ascending"}`);
      browse.panel.chips();
      tell();
      remember();
    });
  };
  const fromAddress = () => {
    if (location.hash.slice(1) === browse.filters.toHash()) return;
    browse.filters.fromHash(location.hash.slice(1));
    at("#search").value = state.q;
    browse.show(state.view);
  };

  const start = async () => {
    await browse.start();
    connect();
    browse.panel.make();
    browse.bucketView.make();
    browse.grid.start();
    browse.filters.fromHash(location.hash.slice(1));
    at("#search").value = state.q;
    browse.show(state.view);
    browse.filters.apply();
    browse.firstView = performance.now() - started;
    await browse.loadColumns(browse.filters.changed);
  };
  start().catch(browse.trouble);
})();
