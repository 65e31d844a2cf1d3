"use strict";
// The clips in sight, and no others: cards are taken again as the page scrolls, their texts and
// posters come when scrolling is slow, and one video element plays the clip under the pointer.

(() => {
  const { el, quote, count, value, word } = browse.tools;
  const { state, result } = browse.filters;
  const view = document.querySelector("#clips"), sheet = document.querySelector("#sheet");
  const GAP = 10, TEXT = 84, OVERSCAN = 1;
  const MAX_HEIGHT = 15e6;   // pixels that every browser lays out; above that scrolling is scaled
  const cards = new Map();   // place in the result -> card
  const spare = [];
  let columns = 1, cardWidth = 200, rowHeight = 200, focused = 0;
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  const make = () => {
    const poster = el("img", { alt: "", draggable: "false", hidden: true });
    const note = el("span", { class: "absent" });
    const picture = el("div", { class: "picture" }, poster, note);
    const caption = el("p", { class: "caption" });
    const mark = el("span", { class: "mark" }), id = el("span", { class: "id" });
    const facts = el("span", { class: "facts" });
    const root = el("div", { class: "card", role: "option", tabindex: "-1" }, picture, caption,
      el("p", { class: "under" }, mark, facts), id);
    const card = { root, poster, note, picture, caption, mark, id, facts, row: -1, place: -1 };
    root.addEventListener("pointerenter", () => hover(card));
    root.addEventListener("pointerleave", () => stop(card));
    root.addEventListener("focus", () => { focused = card.place; hover(card); });
    root.addEventListener("blur", () => stop(card));
    root.addEventListener("click", () => { focused = card.place; browse.detail.open(card.place); });
    return card;
  };

  const caption = (row) => browse.textOf(row, "caption");
  const verdict = (row) => {
    const status = browse.label.status, rule = browse.label.rule;
    const text = status ? word(status, status.codes[row]) : "";
    const kept = text === "kept";
    const why = rule ? rule.words[rule.codes[row]] : "";
    return { kept, text: kept ? "kept" : why || text || "no verdict" };
  };
  const facts = (row) => {
    const parts = [];
    const add = (name) => {
      const number = browse.number[name];
      if (number && number.values[row] === number.values[row]) parts.push(value(number, number.values[row]));
    };
    add("seconds");
    const width = browse.number.width?.values[row], height = browse.number.height?.values[row];
    if (width === width && width) parts.push(`${width}×${height}`);
    if (state.sort && !["seconds", "width", "height"].includes(state.sort)) {
      const number = browse.number[state.sort];
      parts.splice(0, 1, `${number.title} ${value(number, number.values[row])}`);
    }
    return parts.join(" · ");
  };

  const fill = (card, row) => {
    if (card.row === row && card.sort === state.sort && card.hasText && card.hasPoster) return;
    if (card.row !== row) { stop(card); card.row = row; card.hasText = card.hasPoster = false; }
    card.sort = state.sort;
    const { kept, text } = verdict(row);
    card.mark.replaceChildren(quote(text));
    card.mark.className = kept ? "mark good" : "mark bad";
    card.facts.textContent = facts(row);
    if (!card.hasText) {
      const found = caption(row);
      card.hasText = found !== null;
      card.caption.classList.toggle("none", card.hasText && !found);
      card.caption.replaceChildren(quote(found === null ? "" : found.slice(0, 400) || "no caption"));
      const id = browse.textOf(row, "id") ?? "";
      card.id.replaceChildren(quote(id.slice(-200)));
      card.root.setAttribute("aria-label", `${found?.slice(0, 200) || "no caption"}, ${text}`);
    }
    if (!card.hasPoster) {
      const preview = browse.preview[row];
      const data = preview < 0 ? "" : browse.cached("posters", preview);
      card.hasPoster = data !== undefined;
      card.poster.hidden = !data;
      if (data) card.poster.src = `data:image/webp;base64,${data}`; else card.poster.removeAttribute("src");
      const absent = browse.label.preview;
      card.note.textContent = data === "" ? `no preview: ${word(absent, absent.codes[row])}` : "";
      const small = browse.number.width?.values[row] <= 96;
      card.picture.classList.toggle("small", Boolean(small));
    }
  };

  // Height of the sheet, and the scroll position in pixels of the whole list.
  const total = () => Math.ceil(result.rows.length / columns) * rowHeight + GAP;
  const ratio = () => {
    const all = total(), height = view.clientHeight;
    return all > MAX_HEIGHT ? (all - height) / (MAX_HEIGHT - height) : 1;
  };

  let looking = 0;
  const render = () => {
    const rows = result.rows, scroll = view.scrollTop * ratio(), height = view.clientHeight;
    const first = Math.max(0, (Math.floor(scroll / rowHeight) - OVERSCAN) * columns);
    const last = Math.min(rows.length, (Math.ceil((scroll + height) / rowHeight) + OVERSCAN) * columns);
    for (const [place, card] of cards) {
      if (place < first || place >= last) {
        if (card.root.contains(document.activeElement)) view.focus({ preventScroll: true });
        stop(card);
        card.root.hidden = true;
        cards.delete(place);
        spare.push(card);
      }
    }
    const shift = view.scrollTop - scroll;   // 0 unless scrolling is scaled
    for (let place = first; place < last; place++) {
      let card = cards.get(place);
      if (!card) {
        card = spare.pop() ?? make();
        if (!card.root.isConnected) sheet.append(card.root);
        card.root.hidden = false;
        cards.set(place, card);
      }
      card.place = place;
      const x = GAP + (place % columns) * (cardWidth + GAP);
      const y = GAP + Math.floor(place / columns) * rowHeight + shift;
      const at = `translate(${x}px,${y}px)`;
      if (card.at !== at) card.root.style.transform = card.at = at;
      if (card.named !== place || card.of !== rows.length) {
        [card.named, card.of] = [place, rows.length];
        card.root.setAttribute("aria-posinset", place + 1);
        card.root.setAttribute("aria-setsize", rows.length);
      }
      const tabIndex = place === focused ? 0 : -1;
      if (card.root.tabIndex !== tabIndex) card.root.tabIndex = tabIndex;
      fill(card, rows[place]);
    }
    if (!cards.has(focused)) {
      const card = cards.get(Math.min(first + columns, rows.length - 1));
      if (card) card.root.tabIndex = 0;
    }
    if (!looking) looking = setTimeout(look, 60);
  };

  // What flies past is not loaded: only what moves by less than a screen between two looks.
  let lastTop = 0;
  const look = () => {
    const moved = Math.abs(view.scrollTop - lastTop);
    [looking, lastTop] = [0, view.scrollTop];
    if (moved <= view.clientHeight) fetchSeen();
    else looking = setTimeout(look, 60);
  };

  // Texts and posters of what is in sight; each arrival fills its cards.
  const fetchSeen = () => {
    const again = () => schedule();
    const rows = [...cards.values()].map((card) => card.row);
    for (const chunk of new Set(rows.map(browse.chunkOf))) {
      browse.loadText(chunk)?.then(again, browse.trouble);
    }
    const previews = rows.map((row) => browse.preview[row]).filter((preview) => preview >= 0);
    for (const one of browse.loadMedia("posters", previews)) one.then(again, browse.trouble);
  };

  let planned = false;
  const schedule = () => {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => { planned = false; render(); });
  };

  const measure = () => {
    const width = view.clientWidth;
    const wanted = width < 560 ? 150 : 190;
    columns = Math.max(1, Math.floor((width - GAP) / (wanted + GAP)));
    cardWidth = Math.floor((width - GAP) / columns) - GAP;
    const picture = Math.round((cardWidth * 9) / 16);
    rowHeight = picture + TEXT + GAP;
    sheet.style.setProperty("--card-width", `${cardWidth}px`);
    sheet.style.setProperty("--picture", `${picture}px`);
    sheet.style.setProperty("--text", `${TEXT}px`);
    sheet.style.height = `${Math.min(total(), MAX_HEIGHT)}px`;
    render();
  };

  // One player for all cards: browsers have few decoders.
  const player = el("video", { loop: true, playsinline: true, tabindex: "-1", "aria-hidden": "true" });
  player.muted = true;
  let playing = null, timer = 0;
  const hover = (card) => {
    clearTimeout(timer);
    if (still.matches) return;
    timer = setTimeout(() => play(card), 90);
  };
  const play = async (card) => {
    const row = card.row, preview = browse.preview[row];
    if (preview < 0) return;
    const [arriving] = browse.loadMedia("motions", [preview]);
    try { await arriving; } catch (error) { return browse.trouble(error); }
    const data = browse.cached("motions", preview);
    const wanted = card.root.matches(":hover") || card.root === document.activeElement;
    if (!data || card.row !== row || !wanted) return;
    if (playing) stop(playing);
    playing = card;
    player.src = `data:video/mp4;base64,${data}`;
    player.onplaying = () => player.classList.add("on");
    card.picture.append(player);
    player.play().catch(() => {});
  };
  const stop = (card) => {
    if (playing !== card) return;
    playing = null;
    player.classList.remove("on");
    player.pause();
    player.removeAttribute("src");
    player.load();
    player.remove();
  };

  const goTo = (place, move = true) => {
    if (!result.rows.length) return;
    focused = Math.max(0, Math.min(result.rows.length - 1, place));
    const top = Math.floor(focused / columns) * rowHeight, scale = ratio();
    const scroll = view.scrollTop * scale;
    if (top < scroll) view.scrollTop = top / scale;
    if (top + rowHeight + GAP > scroll + view.clientHeight) {
      view.scrollTop = (top + rowHeight + GAP - view.clientHeight) / scale;
    }
    render();
    if (move) cards.get(focused)?.root.focus({ preventScroll: true });
  };
  view.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(view.clientHeight / rowHeight)) * columns;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) goTo(focused + steps[event.key]);
    else if (event.key === "Home") goTo(0);
    else if (event.key === "End") goTo(result.rows.length - 1);
    else if ((event.key === "Enter" || event.key === " ") && event.target.closest(".card")) browse.detail.open(focused);
    else return;
    event.preventDefault();
  });
  view.addEventListener("scroll", schedule, { passive: true });

  let before = "";
  const update = () => {
    const hash = browse.filters.toHash();
    if (hash !== before) { view.scrollTop = 0; focused = 0; before = hash; }
    document.querySelector("#empty").hidden = result.rows.length > 0 || browse.loaded < browse.manifest.count;
    sheet.style.height = `${Math.min(total(), MAX_HEIGHT)}px`;
    render();
  };
  const start = () => {
    before = browse.filters.toHash();
    browse.filters.listen(update);
    new ResizeObserver(measure).observe(view);
  };

  browse.grid = { start, goTo, verdict, focus: () => goTo(focused), count };
})();
