"use strict";
// How many clips land in each bucket of a config, and why the others do not.

(() => {
  const { el, quote, count, plural } = browse.tools;
  const WHY = {
    "too few pixels": "less than 80 % of the pixels of the smallest resolution: a bucket never enlarges more",
    "no bucket of its kind": "an image where the resolutions it fits have no bucket of 1 frame, or a video where they have only those",
    "too short": "not longer than the shortest bucket, in frames times the frame interval",
    "keep is 0": "the bucket takes no clip and passes them on, and none of a smaller resolution took it",
    "length not drawn": "the chance to look at its length went against it, and no shorter one took it",
    "not kept by the draw": "the chance to keep it went against it at every resolution",
    "left out before": "the ledger left it out, so no run sees it",
  };

  const make = () => {
    const about = browse.manifest.buckets, label = browse.label.bucket;
    const place = document.querySelector("#buckets");
    if (!about) return;
    const code = Object.fromEntries(label.words.map((word, i) => [word, i]));
    const of = (word) => (Object.hasOwn(code, word) ? label.counts[code[word]] : 0);
    const show = (word) => {
      browse.filters.clear();
      browse.filters.toggleLabel("bucket", code[word], true);
      browse.show("clips");
    };
    const inside = about.buckets.reduce((sum, bucket) => sum + of(bucket.name), 0);
    const names = new Set(about.buckets.map((bucket) => bucket.name));
    const kept = browse.manifest.count - of("left out before");
    const most = Math.max(1, ...about.buckets.map((bucket) => of(bucket.name)));
    const bar = (n, of_all, kind) => {
      const fill = el("i", { class: kind });
      fill.style.width = `${(100 * n) / of_all}%`;
      return el("div", { class: "track bar" }, fill);
    };
    const link = (word, n, inner) => (n
      ? el("button", { type: "button", class: "link", title: "Show these clips", onclick: () => show(word) }, inner)
      : inner);

    const groups = new Map();
    for (const bucket of about.buckets) {
      const key = `${bucket.resolution} · ${bucket.num_frames === 1 ? "images" : plural(bucket.num_frames, "frame")}`;
      groups.set(key, [...(groups.get(key) ?? []), bucket]);
    }
    const rows = [];
    for (const [key, members] of groups) {
      const sum = members.reduce((all, bucket) => all + of(bucket.name), 0);
      rows.push(el("tr", { class: "group" }, el("th", { scope: "rowgroup" }, key), el("td", { class: "size" }),
        el("td", { class: "number" }, count(sum)), el("td", { colspan: "3" })));
      const empty = members.filter((bucket) => !of(bucket.name)).map((bucket) => bucket.aspect);
      for (const bucket of members.filter((b) => of(b.name))) {
        const n = of(bucket.name);
        rows.push(el("tr", {},
          el("th", { scope: "row" }, link(bucket.name, n, bucket.aspect)),
          el("td", { class: "size" }, `${bucket.height}×${bucket.width}`),
          el("td", { class: "number" }, count(n)), el("td", { class: "wide" }, bar(n, most, "")),
          el("td", { class: "number" }, count(bucket.batch_size)),
          el("td", { class: "number" }, count(Math.floor(n / bucket.batch_size)))));
      }
      if (empty.length) {
        rows.push(el("tr", {}, el("td", { colspan: "6", class: "note" }, `no clip: ${empty.join(", ")}`)));
      }
    }
    const head = ["height / width", "pixels", "clips", "", "a batch", "batches"];
    const reasons = label.words.map((word, i) => [word, label.counts[i]]).filter(([word]) => !names.has(word));
    place.replaceChildren(
      el("h2", {}, `${count(inside)} of ${plural(kept, "kept clip")} land in a bucket`),
      el("p", { class: "note" }, "Buckets of ", quote(about.name),
        `, seed ${about.seed}, frame interval ${about.frame_interval}`,
        about.random ? ". First epoch; draws differ from epoch to epoch." : "; the same in every epoch.",
        " Batches are whole ones of one epoch; what remains waits for the next."),
      el("table", {}, el("thead", {}, el("tr", {}, ...head.map((name, i) =>
        el("th", { scope: "col", class: i === 1 ? "size" : [2, 4, 5].includes(i) ? "number" : null }, name)))), el("tbody", {}, ...rows)),
      el("h2", {}, "Why the others do not"),
      reasons.length ? el("table", { class: "reasons" }, el("tbody", {}, ...reasons.map(([word, n]) =>
        el("tr", {}, el("th", { scope: "row" }, link(word, n, word)), el("td", { class: "number" }, count(n)),
          el("td", { class: "wide" }, bar(n, browse.manifest.count, "bad")),
          el("td", { class: "note" }, WHY[word] ?? "")))))
        : el("p", {}, "None is left out."));
  };

  browse.bucketView = { make };
})();
