"use strict";
// Elements and numbers, as text: nothing of the data ever becomes markup.

(() => {
  // el("p", {class: "note", onclick: f}, "text", child, ...)
  const el = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child != null));
    return made;
  };

  // Text of others in a cell of its own: its direction marks end with it.
  const quote = (text, attributes = {}) => el("bdi", { dir: "auto", ...attributes }, text);

  const whole = new Intl.NumberFormat("en");
  const count = (n) => whole.format(n);
  const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
  const short = (x) => {
    if (Number.isInteger(x) && Math.abs(x) < 1e5) return whole.format(x);
    return String(Number(x.toPrecision(3)));
  };
  const value = (number, x) => {
    if (x !== x) return "–";
    if (number.unit === "B") {
      for (const unit of ["B", "kB", "MB", "GB"]) {
        if (x < 1000) return `${short(x)} ${unit}`;
        x /= 1000;
      }
      return `${short(x)} TB`;
    }
    if (number.unit === "s" && x >= 60) return `${Math.floor(x / 60)} min ${Math.round(x % 60)} s`;
    return number.unit ? `${short(x)} ${number.unit}` : short(x);
  };
  const word = (label, code) => label.words[code] || (label.name === "rule" ? "none" : "not known");

  browse.trouble = (error) => {
    const place = document.querySelector("#trouble");
    place.hidden = false;
    place.textContent = `${error.message}. Write the page again with python -m data_pipelines.browse.`;
  };
  browse.tools = { el, quote, count, plural, short, value, word };
})();
