"use strict";
// The filters beside the clips: a list for each label, a histogram with a brush for each number.

(() => {
  const { el, quote, count, short, value, word } = browse.tools;
  const { state, result } = browse.filters;
  const HEIGHT = 46, SHOWN = 8, NAMES = ["status", "rule", "source", "kind", "camera", "bucket"];
  const draws = [];

  const facet = (label) => {
    const list = el("ul", { class: "facet" });
    let all = false;
    const more = el("button", { type: "button", class: "quiet", onclick: () => { all = !all; draw(); } });
    const buttons = label.words.map((_, code) => {
      const tally = el("span", { class: "tally" });
      const bar = el("i");
      const button = el("button", {
        type: "button", "aria-pressed": "false",
        onclick: () => browse.filters.toggleLabel(label.name, code),
      }, bar, quote(word(label, code)), tally);
      return { button, tally, bar, item: el("li", {}, button) };
    });
    const draw = () => {
      const counts = result.labels[label.name], chosen = state.labels[label.name];
      const most = Math.max(1, ...label.counts);
      const codes = label.words.map((_, code) => code).filter((code) =>
        all || code < SHOWN || chosen?.has(code));
      list.replaceChildren(...codes.map((code) => buttons[code].item));
      for (const code of codes) {
        const { button, tally, bar } = buttons[code];
        tally.textContent = count(counts[code]);
        bar.style.width = `${(100 * counts[code]) / most}%`;
        button.setAttribute("aria-pressed", Boolean(chosen?.has(code)));
        button.classList.toggle("none", !counts[code]);
      }
      more.hidden = label.words.length <= SHOWN;
      more.textContent = all ? "fewer" : `all ${count(label.words.length)}`;
    };
    draws.push(draw);
    return el("section", {}, el("h2", {}, label.title), list, more);
  };

  const histogram = (number) => {
    const canvas = el("canvas", { "aria-hidden": "true",
      title: "Strong: the clips shown. Faint: all clips. Each to its own height. Drag for a range." });
    const input = (place, name) => el("input", {
      type: "text", inputmode: "decimal", "aria-label": `${number.title}: ${name}`,
      onchange: () => fromInputs(), onkeydown: (event) => { if (event.key === "Enter") fromInputs(); },
      placeholder: value(number, place ? number.high : number.low),
    });
    const inputs = [input(0, "at least"), input(1, "at most")];
    const reset = el("button", {
      type: "button", class: "quiet", "aria-label": `Clear the range of ${number.title}`,
      onclick: () => browse.filters.setRange(number.name, null),
    }, "clear");
    const missing = browse.manifest.count - number.known;
    const note = missing ? el("span", { class: "note" }, `${count(missing)} without`) : null;

    const fromInputs = () => {
      const [low, high] = inputs.map((x) => (x.value.trim() === "" ? NaN : Number(x.value)));
      const bad = inputs.some((x) => x.value.trim() !== "" && Number.isNaN(Number(x.value)));
      inputs.forEach((x) => x.toggleAttribute("aria-invalid", bad));
      if (bad) return;
      const none = low !== low && high !== high;
      browse.filters.setRange(number.name, none ? null
        : [low === low ? low : -Infinity, high === high ? high : Infinity]);
    };
    const log = number.scale === "log", [low, high] = log
      ? [Math.log(number.low), Math.log(number.high)] : [number.low, number.high];
    const at = (share) => (log ? Math.exp(low + share * (high - low)) : low + share * (high - low));
    const place = (x) => {
      if (high === low) return 0.5;
      return Math.max(0, Math.min(1, ((log ? Math.log(Math.max(x, number.low)) : x) - low) / (high - low)));
    };

    // Brush: the ends snap to the edges of bins, so that what is marked is what is counted.
    let from = null;
    const share = (event) => {
      const box = canvas.getBoundingClientRect();
      return Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    };
    const brush = (event) => {
      const bins = browse.manifest.bins, [a, b] = [from, share(event)].sort((x, y) => x - y);
      const first = Math.floor(a * bins), last = Math.max(first + 1, Math.ceil(b * bins));
      browse.filters.setRange(number.name, [
        first === 0 ? number.low : Math.fround(at(first / bins)),
        last >= bins ? number.high : Math.fround(at(last / bins)),
      ]);
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      from = share(event);
    });
    canvas.addEventListener("pointermove", (event) => { if (from !== null) brush(event); });
    canvas.addEventListener("pointerup", (event) => {
      if (from !== null && Math.abs(share(event) - from) * canvas.clientWidth < 3) {
        if (state.ranges[number.name]) browse.filters.setRange(number.name, null);
        else brush(event);
      }
      from = null;
    });
    canvas.addEventListener("pointercancel", () => { from = null; });

    const draw = () => {
      const range = state.ranges[number.name];
      const width = canvas.clientWidth;
      reset.hidden = !range;
      inputs.forEach((x, i) => {
        if (document.activeElement !== x) {
          x.value = range && Number.isFinite(range[i]) ? String(Number(range[i].toPrecision(4))) : "";
        }
      });
      if (!width) return;
      const scale = devicePixelRatio || 1;
      canvas.width = width * scale;
      canvas.height = HEIGHT * scale;
      const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
      pen.scale(scale, scale);
      const bins = browse.manifest.bins;
      const bars = (counts, colour) => {   // each to its own height: a few clips are seen among many
        const most = Math.max(1, ...counts);
        pen.fillStyle = style.getPropertyValue(colour);
        counts.forEach((n, i) => {
          if (!n) return;
          const tall = Math.max(1.5, (n / most) * (HEIGHT - 4));
          pen.fillRect((i * width) / bins, HEIGHT - tall, width / bins - 0.6, tall);
        });
      };
      if (range) {
        pen.fillStyle = style.getPropertyValue("--brush");
        pen.fillRect(place(range[0]) * width, 0, Math.max(2, (place(range[1]) - place(range[0])) * width), HEIGHT);
      }
      bars(number.counts, "--track-bar");
      bars(result.numbers[number.name] ?? [], "--accent");
    };
    draws.push(draw);
    return el("section", { class: "number" },
      el("div", { class: "line" }, el("h2", {}, quote(number.title)), note, reset), canvas,
      el("div", { class: "ends" }, inputs[0], el("span", { class: "note" }, log ? "log scale" : ""), inputs[1]));
  };

  const draw = () => { for (const one of draws) one(); };
  const make = () => {
    const { labels, numbers } = browse.manifest;
    const facets = NAMES.map((name) => labels.find((label) => label.name === name))
      .filter((label) => label && label.words.length > 1);
    document.querySelector("#panel").replaceChildren(...facets.map(facet), ...numbers.map(histogram));
    browse.filters.listen(draw);
    addEventListener("resize", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  };

  // What is active, as buttons that take it away again.
  const chips = () => {
    const made = [];
    const chip = (text, remove) => made.push(el("button", {
      type: "button", class: "chip", title: "Take this filter away", onclick: remove,
    }, quote(text), el("span", { "aria-hidden": "true" }, "×")));
    if (state.q) chip(`“${state.q.slice(0, 60)}”`, () => {
      document.querySelector("#search").value = "";
      browse.filters.search("");
    });
    for (const [name, codes] of Object.entries(state.labels)) {
      for (const code of codes) {
        const label = browse.label[name];
        chip(`${label.title}: ${word(label, code)}`, () => browse.filters.toggleLabel(name, code));
      }
    }
    for (const [name, [low, high]] of Object.entries(state.ranges)) {
      const number = browse.number[name];
      const text = low === -Infinity ? `at most ${value(number, high)}`
        : high === Infinity ? `at least ${value(number, low)}`
        : `${short(low)} to ${value(number, high)}`;
      chip(`${number.title}: ${text}`, () => browse.filters.setRange(name, null));
    }
    if (made.length > 1) {
      made.push(el("button", { type: "button", class: "quiet", onclick: browse.clearAll }, "clear all"));
    }
    const place = document.querySelector("#chips");
    place.replaceChildren(...made);
    place.hidden = !made.length;
  };

  browse.panel = { make, draw, chips };
})();
