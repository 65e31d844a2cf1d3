"use strict";
// What the page knows. Data come as scripts that call browse.manifest, .columns, .text, .places and
// .pack: a page that was opened as a file may load nothing else.

const browse = { manifest: null, loaded: 0 };

(() => {
  const folders = document.documentElement.dataset;
  const texts = [];            // chunk number -> {id: [...], caption: [...], ...}
  const waiting = new Map();   // url -> promise
  const MAX_CLIPS = 4000, MAX_PACKS = { posters: 40, motions: 6 };
  const clips = { posters: new Map(), motions: new Map() };   // preview number -> base64
  const packs = { posters: new Map(), motions: new Map() };   // pack number -> [base64]
  let places = null;

  const load = (url) => {
    if (!waiting.has(url)) {
      waiting.set(url, new Promise((resolve, reject) => {
        const tag = document.createElement("script");
        tag.src = url;
        tag.onload = () => { tag.remove(); resolve(); };
        tag.onerror = () => { tag.remove(); waiting.delete(url); reject(new Error(`${url} cannot be loaded`)); };
        document.head.append(tag);
      }));
    }
    return waiting.get(url);
  };
  const name = (kind, number) => `${kind}-${String(number).padStart(5, "0")}.js`;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;

  const registered = {
    manifest(found) {
      browse.manifest = found;
      const count = found.count;
      for (const number of found.numbers) number.values = new Float32Array(count).fill(NaN);
      for (const label of found.labels) label.codes = new Uint16Array(count);
      browse.number = Object.fromEntries(found.numbers.map((x) => [x.name, x]));
      browse.label = Object.fromEntries(found.labels.map((x) => [x.name, x]));
      browse.preview = new Int32Array(count).fill(-1);
    },
    columns(chunk, found) {
      const start = chunk * browse.manifest.column_rows;
      const put = (target, Kind, text) => {
        const part = new Kind(bytes(text));
        target.set(part, start);
        return part.length;
      };
      browse.manifest.numbers.forEach((x, i) => put(x.values, Float32Array, found.numbers[i]));
      browse.manifest.labels.forEach((x, i) => put(x.codes, Uint16Array, found.labels[i]));
      browse.loaded += put(browse.preview, Int32Array, found.preview);
    },
    text(chunk, found) { texts[chunk] = found; },
    places(found) {
      places = found;
      for (const kind of Object.values(places)) {
        kind.sizes = new Uint32Array(bytes(kind.sizes));
        kind.starts = new Uint32Array(kind.sizes.length);
        let at = 0;
        for (let i = 0; i < kind.sizes.length; i++) {
          if (i % browse.manifest.pack === 0) at = kind.heads[i / browse.manifest.pack];
          kind.starts[i] = at + 1;           // a line is "BASE64",\n
          at += kind.sizes[i] + 4;
        }
      }
    },
    pack(kind, number, head, lines) { keep(packs[kind], number, lines, MAX_PACKS[kind]); },
  };

  const keep = (cache, key, value, most) => {
    cache.delete(key);
    cache.set(key, value);
    while (cache.size > most) cache.delete(cache.keys().next().value);
  };

  // Whole tables: the manifest first, then all columns, the first of them at once.
  const start = async () => {
    await load(`${folders.tables}/manifest.js`);
    await load(`${folders.tables}/${name("columns", 0)}`);
  };
  const loadColumns = async (progress) => {
    const chunks = Math.ceil(browse.manifest.count / browse.manifest.column_rows);
    for (let chunk = 1; chunk < chunks; chunk++) {
      await load(`${folders.tables}/${name("columns", chunk)}`);
      progress();
    }
  };

  // Texts, a chunk of rows at a time.
  const chunkOf = (row) => Math.floor(row / browse.manifest.text_rows);
  const loadText = (chunk) => (texts[chunk] ? null : load(`${folders.tables}/${name("text", chunk)}`));
  const textOf = (row, field) => {
    const found = texts[chunkOf(row)];
    return found ? found[field][row % browse.manifest.text_rows] : null;
  };

  // Previews: by script, or from a server only the bytes of one clip.
  const cached = (kind, preview) => {
    const pack = packs[kind].get(Math.floor(preview / browse.manifest.pack));
    return pack ? pack[preview % browse.manifest.pack] : clips[kind].get(preview);
  };
  const loadPack = async (kind, pack) => {
    const url = `${folders.previews}/${name(kind, pack)}`;
    await load(url);
    waiting.delete(url);  // it may have to come again, once it is forgotten
  };
  const loadOne = async (kind, preview) => {
    const pack = Math.floor(preview / browse.manifest.pack);
    if (!places) await load(`${folders.previews}/places.js`);
    const first = places[kind].starts[preview], size = places[kind].sizes[preview];
    if (!size) return keep(clips[kind], preview, "", MAX_CLIPS);
    const answer = await fetch(`${folders.previews}/${name(kind, pack)}`,
      { headers: { Range: `bytes=${first}-${first + size - 1}` } });
    if (answer.status !== 206) return loadPack(kind, pack);  // a server without ranges
    keep(clips[kind], preview, await answer.text(), MAX_CLIPS);
  };
  // Loads previews, those of one pack together where they are many or there is no server.
  const loadMedia = (kind, previews) => {
    const byPack = new Map();
    for (const preview of previews) {
      if (cached(kind, preview) !== undefined) continue;
      const pack = Math.floor(preview / browse.manifest.pack);
      byPack.set(pack, [...(byPack.get(pack) ?? []), preview]);
    }
    const served = location.protocol.startsWith("http");
    return [...byPack].flatMap(([pack, wanted]) =>
      served && wanted.length < 5 ? wanted.map((p) => loadOne(kind, p)) : [loadPack(kind, pack)]);
  };

  Object.assign(browse, registered, { start, loadColumns, chunkOf, loadText, textOf, texts, cached, loadMedia });
})();
