"""Times the page of a large data set in Chromium: first view, filters, search, scrolling.

    python -m tests.measure_browse --clips=100000 --folder=/tmp/large

Makes a ledger of made-up clips whose previews are all cut from a few real ones, writes its page,
serves it, and runs `_MEASURE` in it. Prints seconds and, beside them, processor time of the page's
main thread, which other work on the machine does not change.
"""

import argparse
import itertools
import json
import pathlib
import random
import re
import shutil
import subprocess
import threading
import time
import urllib.parse

import numpy as np

from data_pipelines.browse import page, previews, serve, thumbnail
from data_pipelines.media import encoding
from data_pipelines.stages import ledger

_MEASURE = """
const frame = () => new Promise(requestAnimationFrame);
const until = async (test) => { while (!test()) await frame(); };
const rest = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const tell = (name, ms) =>
  fetch(`/measured?${encodeURIComponent(JSON.stringify([name, ms]))}`).catch(() => {});
const timed = async (name, run) => {
  await tell("", 0);
  const start = performance.now();
  const frames = await run();
  await tell(name, (performance.now() - start) / (frames || 1));
  await rest(800);
};
const seen = () =>
  [...document.querySelectorAll(".card:not([hidden]) img")].filter((x) => x.naturalWidth).length;
const search = (q) => async () => {
  browse.filters.search(q);
  await until(() => browse.filters.state.q === q && browse.filters.progress() === 1);
  await frame(); await frame();
};
const scroll = (speed) => async () => {
  const view = document.querySelector("#clips"), start = performance.now();
  let frames = 0;
  for (let last = start; last < start + 4000; frames++) {
    const now = await frame();
    view.scrollTop += (speed * Math.max(0, now - last)) / 1000;
    last = Math.max(now, last + 0.1);
  }
  return frames;
};
(async () => {
  await until(() => seen() > 8);
  await tell("first clips with posters, from the request", performance.now());
  await until(() => browse.loaded === browse.manifest.count);
  await tell("all columns, from the request", performance.now());
  await rest(1000);
  await timed("a filter, with all counts and histograms", async () => {
    browse.filters.toggleLabel("status", 1); await frame(); await frame();
  });
  browse.filters.clear(); await rest(500);
  await timed("sorting by a score", async () => {
    browse.filters.setSort("aesthetic", true); await frame(); await frame();
  });
  browse.filters.setSort("", false); await rest(500);
  await timed("first search, with reading all texts", search("guitar sunset"));
  await timed("another search of two words", search("river night"));
  await timed("search for an id", search("clip_0000777"));
  browse.clearAll(); await rest(500);
  await timed("a frame of scrolling at 3,000 pixels a second", scroll(3000));
  await timed("a frame of scrolling at 400,000 pixels a second", scroll(400000));
  await tell("end", 0);
})();
"""
_WORDS = """
    a the person woman man dog cat tree camera slowly pans across street city mountain river
    walking running blue red green light shadow scene shows close up aerial view water sky cloud
    car train building window hand smiling talking cooking playing guitar ocean waves sunset
    sunrise forest snow rain night bright dark
""".split()  # noqa: SIM905


def make_ledger(path: pathlib.Path, count: int):
    rng = random.Random(0)
    rows = []
    for i in range(count):
        kept = rng.random() < 0.7
        height, width = rng.choice([(720, 1280), (1080, 1920), (480, 854), (1280, 720)])
        text = " ".join(rng.choices(_WORDS, k=rng.randint(20, 140)))
        row = {"id": f"part{i // 1000:04d}/clip_{i:07d}.mp4", "source": "made up", "file": __file__}
        row |= {"text": text, "kind": "video", "num_frames": rng.randint(48, 400), "fps": 24.0}
        row |= {"height": height, "width": width, "bytes": int(rng.lognormvariate(14, 1))}
        row |= {"status": "kept" if kept else "left out"}
        if not kept:
            row["rule"] = rng.choice(["damaged", "duplicate", "motion >= 0.1", "no caption"])
        rows.append(row | {name: rng.gauss(5, 1) for name in ledger.SCORES})
    ledger.write(path, rows)


class _Repeated:
    """Stands for the pool of children: a few previews over and over."""

    def __init__(self, *_, **__):
        video_THWC = np.random.default_rng(0).integers(100, 118, (30, 9, 16, 3), np.uint8)
        video_THWC = video_THWC.repeat(15, 1).repeat(15, 2)
        made = [
            thumbnail.make(thumbnail.Task(encoding.encode_mp4(np.roll(video_THWC, i, 0), 12.0)))
            for i in range(8)
        ]
        self.previews = itertools.cycle(made)

    def __call__(self, task, files=()):
        return next(self.previews)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def processor_ms() -> float:
    """Processor time so far of the busiest renderer's main thread, milliseconds."""
    used = [0.0]
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if b"type=renderer" in (path / "cmdline").read_bytes():
                used.append(int((path / "task" / path.name / "schedstat").read_text().split()[0]))
        except OSError:
            continue  # it ended meanwhile
    return max(used) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    table, out = args.folder / "made_up.parquet", args.folder / "page"
    if not table.exists():
        make_ledger(table, args.clips)
    previews.children.Pool = _Repeated
    start = time.perf_counter()
    done = page.write(table, out, clips=None, num_workers=1)
    print(f"written in {time.perf_counter() - start:.0f} s: {done}")
    index = (out / "index.html").read_text()
    (out / "measure.js").write_text(_MEASURE)
    script = '<script src="main.js" defer></script>'
    (out / "measure.html").write_text(
        index.replace(script, script + '<script src="measure.js" defer></script>')
    )
    server, ended, before = serve.make_server(out, port=0), threading.Event(), [0.0]
    answer = server.RequestHandlerClass.do_GET

    def do_GET(self):
        if not self.path.startswith("/measured?"):
            return answer(self)
        name, ms = json.loads(urllib.parse.unquote(self.path.partition("?")[2]))
        used = processor_ms()
        if name == "end":
            ended.set()
        elif name:
            frames = re.match("a frame", name) and max(1, round(4000 / ms))
            print(f"{name}: {ms:.0f} ms, processor {(used - before[0]) / (frames or 1):.1f} ms")
        before[0] = used
        self._refuse(204)

    server.RequestHandlerClass.do_GET = do_GET
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = subprocess.Popen(
        [shutil.which("chromium") or "chromium", "--headless", "--no-sandbox"]
        + [f"--user-data-dir={args.folder / 'profile'}", "--window-size=1400,900"]
        + ["--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/measure.html"],
        stderr=subprocess.DEVNULL,
    )
    try:
        if not ended.wait(300):
            raise SystemExit("Chromium gave no figures within 300 s.")
    finally:
        browser.kill()
        browser.wait()
        (out / "measure.html").unlink()
        (out / "measure.js").unlink()


if __name__ == "__main__":
    main()
