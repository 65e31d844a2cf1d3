"use strict";
// One clip at large: its moving preview, all of its caption, every score and where it lies.

(() => {
  const { el, quote, count, value, word } = browse.tools;
  const { result } = browse.filters;
  const dialog = document.querySelector("#detail");
  let place = 0, turn = 0;

  const open = async (at) => {
    place = Math.max(0, Math.min(result.rows.length - 1, at));
    const row = result.rows[place], mine = ++turn;
    if (row === undefined) return;
    try {
      const preview = browse.preview[row], wanted = preview < 0 ? [] : [preview];
      await Promise.all([browse.loadText(browse.chunkOf(row)),
        ...browse.loadMedia("motions", wanted), ...browse.loadMedia("posters", wanted)]);
    } catch (error) { return browse.trouble(error); }
    if (mine !== turn) return;
    dialog.replaceChildren(head(), el("div", { class: "columns" },
      el("div", {}, picture(row), caption(row)), el("div", {}, verdict(row), scores(row), facts(row))));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    dialog.focus();   // what had the focus is gone, and the arrow keys have to arrive
  };

  const head = () => el("div", { class: "head" },
    el("button", { type: "button", "aria-label": "Clip before (left arrow)", disabled: place === 0,
      onclick: () => open(place - 1) }, "‹"),
    el("span", { role: "status" }, `${count(place + 1)} of ${count(result.rows.length)}`),
    el("button", { type: "button", "aria-label": "Next clip (right arrow)",
      disabled: place === result.rows.length - 1, onclick: () => open(place + 1) }, "›"),
    el("button", { type: "button", class: "close", "aria-label": "Close (Esc)", onclick: () => dialog.close() }, "×"));

  const picture = (row) => {
    const preview = browse.preview[row], made = el("div", { class: "large" });
    const motion = preview < 0 ? "" : browse.cached("motions", preview);
    const poster = preview < 0 ? "" : browse.cached("posters", preview);
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (browse.number.width?.values[row] <= 96) made.classList.add("small");
    if (motion) {
      const video = el("video", { loop: true, playsinline: true, controls: true, autoplay: !still,
        poster: `data:image/webp;base64,${poster}` });
      video.muted = true;
      video.src = `data:video/mp4;base64,${motion}`;
      made.append(video);
    } else if (poster) {
      made.append(el("img", { alt: "", src: `data:image/webp;base64,${poster}` }));
    } else {
      const absent = browse.label.preview;
      made.append(el("span", { class: "absent" }, `no preview: ${word(absent, absent.codes[row])}`));
    }
    return made;
  };

  const caption = (row) => {
    const text = browse.textOf(row, "caption");
    return el("p", { class: text ? "full" : "full none" }, quote(text || "no caption"));
  };

  const verdict = (row) => {
    const { kept, text } = browse.grid.verdict(row), message = browse.textOf(row, "message");
    return el("p", { class: kept ? "verdict good" : "verdict bad" }, el("strong", {}, kept ? "Kept" : "Left out"),
      kept ? null : " by ", kept ? null : quote(text), message ? el("br") : null, message ? quote(message) : null);
  };

  // A row a number: the value, and the share of clips that lie below it.
  const scores = (row) => {
    const rows = [];
    for (const number of browse.manifest.numbers) {
      const x = number.values[row];
      if (x !== x) continue;
      let below = 0;
      for (let i = 0; i < browse.loaded; i++) if (number.values[i] < x) below++;
      const share = below / Math.max(1, number.known - 1);
      const mark = el("i"), track = el("div", { class: "track", title: `${Math.round(100 * share)} % of the clips lie below` }, mark);
      mark.style.left = `${100 * Math.min(1, share)}%`;
      rows.push(el("tr", {}, el("th", { scope: "row" }, quote(number.title)),
        el("td", { class: "number" }, value(number, x)), el("td", {}, track)));
    }
    return el("table", {}, el("caption", {}, "Value, and its place among all clips"), el("tbody", {}, ...rows));
  };

  const facts = (row) => {
    const list = el("dl", {});
    const add = (name, text) => { if (text) list.append(el("dt", {}, name), el("dd", {}, quote(text))); };
    for (const field of ["id", "file", "parent"]) add(field, browse.textOf(row, field));
    const times = browse.textOf(row, "times");
    if (times) add("seconds", `${times[0] ?? 0} to ${times[1] ?? "the end"}`);
    for (const label of browse.manifest.labels) {
      if (!["status", "rule", "preview"].includes(label.name)) add(label.title, label.words[label.codes[row]]);
    }
    add("duplicate of", browse.textOf(row, "duplicate_of"));
    add("sha256", browse.textOf(row, "sha256"));
    let given = {};
    try { given = JSON.parse(browse.textOf(row, "given") || "{}"); } catch { /* it was cut */ }
    for (const [name, x] of Object.entries(given ?? {})) add(`given ${name}`.slice(0, 80), String(x).slice(0, 500));
    return list;
  };

  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target.tagName === "VIDEO") return;
    event.preventDefault();
    open(place + step);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { dialog.replaceChildren(); browse.grid.goTo(place); });

  browse.detail = { open };
})();
