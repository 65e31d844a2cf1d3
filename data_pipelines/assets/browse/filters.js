"use strict";
// Which clips are shown, in which order, and the counts beside every filter.

(() => {
  // q: words; labels: name -> Set of codes; ranges: name -> [low, high]; sort: name of a number or ""
  const state = { q: "", labels: {}, ranges: {}, sort: "", descending: false, view: "clips" };
  const result = { rows: new Uint32Array(0), labels: {}, numbers: {} };
  let hits = null, found = 0, searched = 0, turn = 0;   // of the search: a byte a row
  let order = null, orderOf = "";
  const listeners = [];

  const bin = (number, value) => {
    const { low, high, scale } = number, bins = browse.manifest.bins;
    if (high === low) return 0;
    const share = scale === "log"
      ? (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low))
      : (value - low) / (high - low);
    return Math.max(0, Math.min(bins - 1, Math.floor(share * bins)));
  };

  // The bin of every row; what was loaded since the last call is added.
  const NONE = 255;
  const binned = (number, loaded) => {
    const { values } = number, bins = (number.places ??= new Uint8Array(values.length).fill(NONE));
    for (let row = number.binned ?? 0; row < loaded; row++) {
      if (values[row] === values[row]) bins[row] = bin(number, values[row]);
    }
    number.binned = loaded;
    return bins;
  };

  // Every filter marks the rows that it refuses. A row that one filter alone refuses still counts
  // in that filter's own histogram or list: so it can be opened again.
  const apply = () => {
    const { count, numbers, labels } = browse.manifest, loaded = browse.loaded;
    const refused = new Uint8Array(count), by = new Uint8Array(count), filters = [null];
    const refuse = (name, bad) => {
      const place = filters.push(name) - 1;
      for (let row = 0; row < loaded; row++) if (bad(row)) { refused[row]++; by[row] = place; }
    };
    for (const [name, codes] of Object.entries(state.labels)) {
      const column = browse.label[name].codes;
      refuse(name, (row) => !codes.has(column[row]));
    }
    for (const [name, [low, high]] of Object.entries(state.ranges)) {
      const { values } = browse.number[name];
      refuse(name, (row) => !(values[row] >= low && values[row] <= high));
    }
    if (hits) refuse("q", (row) => !hits[row]);

    const rows = new Uint32Array(loaded), byOrder = sorted();
    let shown = 0;
    for (let place = 0; place < byOrder.length; place++) {
      const row = byOrder[place];
      if (row < loaded && !refused[row]) rows[shown++] = row;
    }
    result.rows = rows.subarray(0, shown);
    const tally = (name, size, places) => {   // places: a small number a row, NONE: not counted
      const counts = new Uint32Array(size), own = Math.max(filters.indexOf(name), 0);
      for (let row = 0; row < loaded; row++) {
        const place = places[row];
        if (place < size && (!refused[row] || (refused[row] === 1 && own && by[row] === own))) counts[place]++;
      }
      return counts;
    };
    for (const { name, words, codes } of labels) result.labels[name] = tally(name, words.length, codes);
    for (const number of numbers) {
      result.numbers[number.name] = tally(number.name, browse.manifest.bins, binned(number, loaded));
    }
    for (const listener of listeners) listener();
  };

  // All rows in the order that is asked for; clips without the value come last.
  const sorted = () => {
    const key = `${state.sort} ${state.descending} ${state.sort ? browse.loaded : ""}`;
    if (order && key === orderOf) return order;
    const rows = Uint32Array.from({ length: browse.manifest.count }, (_, row) => row);
    if (state.sort) {
      const { values } = browse.number[state.sort], sign = state.descending ? -1 : 1;
      rows.sort((a, b) => {
        const x = values[a], y = values[b];
        if (x === y || (x !== x && y !== y)) return a - b;
        return x !== x ? 1 : y !== y ? -1 : sign * (x - y);
      });
    } else if (state.descending) rows.reverse();
    [order, orderOf] = [rows, key];
    return order;
  };

  let planned = false;
  const changed = () => {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => { planned = false; apply(); });
  };

  // Search: all words (or "quoted phrases") in the caption or the id. Each chunk of texts is one
  // lower-case string, so that a search is one indexOf over it; the page stays free in between.
  const haystack = (chunk) => {
    const texts = browse.texts[chunk];
    if (!texts.hay) {
      const lines = texts.id.map((id, i) => `${id}\n${texts.caption[i]}`.toLowerCase());
      texts.starts = new Uint32Array(lines.length + 1);
      lines.forEach((line, i) => { texts.starts[i + 1] = texts.starts[i] + line.length + 1; });
      texts.hay = lines.join("\0");
    }
    return texts;
  };
  const searchChunk = (chunk, words, base) => {
    const { hay, starts } = haystack(chunk);
    let row = 0;
    for (let at = hay.indexOf(words[0]); at >= 0; at = hay.indexOf(words[0], starts[row])) {
      while (starts[row + 1] <= at) row++;
      const line = words.length > 1 ? hay.slice(starts[row], starts[row + 1]) : "";
      if (words.every((word, i) => !i || line.includes(word))) { hits[base + row] = 1; found++; }
      if (++row >= starts.length - 1) break;
    }
  };
  const search = async (query) => {
    state.q = query;
    const mine = ++turn;
    const words = [...query.toLowerCase().matchAll(/"([^"]+)"?|[^\s"]+/g)].map((m) => m[1] ?? m[0]);
    words.sort((a, b) => b.length - a.length);   // the rarest first, most likely
    if (!words.length) {
      [hits, searched] = [null, 1];
      return changed();
    }
    const { count, text_rows: size } = browse.manifest, chunks = Math.ceil(count / size);
    hits = new Uint8Array(count);
    [found, searched] = [0, 0];
    let since = performance.now(), told = since;
    for (let chunk = 0; chunk < chunks; chunk++) {
      const missing = browse.loadText(chunk);
      if (missing) {
        for (let next = 1; next < 8 && chunk + next < chunks; next++) browse.loadText(chunk + next)?.catch(() => {});
        try { await missing; } catch (error) { return browse.trouble(error); }
        if (mine !== turn) return;
      }
      searchChunk(chunk, words, chunk * size);
      searched = (chunk + 1) / chunks;
      const now = performance.now();
      if (now - since > 12) {                    // let the page draw and take keys
        if (now - told > 250) { told = now; changed(); }
        await new Promise((resolve) => setTimeout(resolve));
        if (mine !== turn) return;
        since = performance.now();
      }
    }
    changed();
  };

  // Reads all texts ahead: who puts the cursor into the search will search.
  let warmed = false;
  const warm = async () => {
    if (warmed) return;
    warmed = true;
    const chunks = Math.ceil(browse.manifest.count / browse.manifest.text_rows);
    try {
      for (let chunk = 0; chunk < chunks; chunk++) await browse.loadText(chunk);
    } catch (error) { browse.trouble(error); }
  };

  const toggleLabel = (name, code, only = false) => {
    const codes = only ? new Set() : new Set(state.labels[name]);
    if (!codes.delete(code)) codes.add(code);
    if (codes.size) state.labels[name] = codes; else delete state.labels[name];
    changed();
  };
  const setRange = (name, range) => {
    if (range) state.ranges[name] = range; else delete state.ranges[name];
    changed();
  };
  const setSort = (name, descending) => {
    Object.assign(state, { sort: name, descending });
    changed();
  };
  const clear = () => {
    Object.assign(state, { labels: {}, ranges: {} });
    search("");
  };

  // The address holds the filters, so that a view can be kept and passed on.
  const toHash = () => {
    const parts = new URLSearchParams();
    if (state.q) parts.set("q", state.q);
    for (const [name, codes] of Object.entries(state.labels)) {
      for (const code of codes) parts.append(`is.${name}`, browse.label[name].words[code]);
    }
    for (const [name, range] of Object.entries(state.ranges)) parts.set(`in.${name}`, range.join("~"));
    if (state.sort) parts.set("sort", state.sort);
    if (state.descending) parts.set("descending", "1");
    if (state.view !== "clips") parts.set("view", state.view);
    return parts.toString();
  };
  const fromHash = (hash) => {
    const parts = new URLSearchParams(hash);
    Object.assign(state, { labels: {}, ranges: {}, sort: "", descending: parts.has("descending") });
    for (const [key, value] of parts) {
      const name = key.slice(3);
      if (key.startsWith("is.") && Object.hasOwn(browse.label, name)) {
        const code = browse.label[name].words.indexOf(value);
        if (code >= 0) (state.labels[name] ??= new Set()).add(code);
      } else if (key.startsWith("in.") && Object.hasOwn(browse.number, name)) {
        const range = value.split("~").map(Number);
        if (range.length === 2 && range.every((x) => x === x)) state.ranges[name] = range;
      } else if (key === "sort" && Object.hasOwn(browse.number, value)) state.sort = value;
    }
    state.view = parts.get("view") === "buckets" && browse.manifest.buckets ? "buckets" : "clips";
    search(parts.get("q") ?? "");
  };

  browse.filters = {
    state, result, apply, changed, search, warm, toggleLabel, setRange, setSort, clear, toHash, fromHash,
    progress: () => searched, listen: (f) => listeners.push(f),
  };
})();
