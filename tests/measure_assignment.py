"""Measures how long a loader's stream takes to start and to resume on an index of many clips.

    python -m tests.measure_assignment --out=docs/benchmarks/assignment.json

The index is made up: ids of 29 letters, three clips in ten are images, sizes of cameras, of phones
and of crops. The buckets are table K1 of Open-Sora 1.2 for 96 GPUs, where one of a rare aspect
fills a batch from many epochs. Each part is a process of its own, with the CPU seconds and the
memory of all of it: `start` gives the first steps, `pass` counts the epochs before a later one,
`resume` gives the first steps of that one with the file of counts, and `whole` all its steps.
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from configs import recipes
from data_pipelines.loading import loader
from data_pipelines.shards import records

CLIPS, EPOCH, STEPS, GPUS = 10_000_000, 20, 20, 96
PARTS = ("start", "pass", "resume", "whole")
_CAMERAS = ((720, 1280), (1080, 1920), (360, 640), (480, 854), (2160, 3840), (480, 640))


def write_index(folder: pathlib.Path, clips: int):
    """Writes what a loader reads at its start, without any video."""
    rng = np.random.default_rng(0)
    sizes_N2 = np.array(_CAMERAS)[rng.choice(6, clips, p=[0.35, 0.25, 0.15, 0.1, 0.1, 0.05])]
    is_phone_N, is_crop_N = rng.random(clips) < 0.1, rng.random(clips) < 0.1
    sizes_N2[is_phone_N] = sizes_N2[is_phone_N, ::-1]
    sizes_N2[is_crop_N] = rng.integers(120, 2200, (is_crop_N.sum(), 2))
    lengths_N = np.exp(rng.normal(5.0, 0.8, clips)).astype(np.int32) + 2  # median 150 frames
    numbers = ("digest", *records.MARKS)
    index = {
        "id": np.char.add("videos/part-0042/clip", np.arange(clips).astype("U8")).astype("U29"),
        "fps": np.full(clips, 24, np.float32),
        "num_frames": np.where(rng.random(clips) < 0.3, 1, lengths_N).astype(np.int32),
        "height": sizes_N2[:, 0].astype(np.int32),
        "width": sizes_N2[:, 1].astype(np.int32),
        **{name: rng.integers(2**63, size=clips).astype(np.uint64) for name in numbers},
        "size": np.full(clips, 1_000_000, np.int64),
        "place": np.arange(clips, dtype=np.int64),
    }
    np.savez(folder / "index.npz", **index)
    shard = {"name": "clips-0", "num_records": clips, "bytes": 0}
    (folder / shard["name"]).touch()
    facts = {"format": records.FORMAT, "kind": "video", "num_records": clips, "shards": [shard]}
    facts["run"] = 1
    (folder / "meta.json").write_text(json.dumps(facts | {"fingerprint": f"made up {clips}"}))


def run(folder: pathlib.Path, part: str, epoch: int) -> dict:
    """Returns seconds and peak of this process so far, and what it gave."""
    begin = time.process_time()
    settings = {"buckets": recipes.buckets(1, GPUS), "seed": 42, "text_tokens": 300}
    made = loader.Loader(folder, **settings, counts_file=folder / "epoch_counts.txt")
    made._counts.write()  # as `iterate` does, which would read clips
    loader_seconds = time.process_time() - begin
    first = sum(made.steps_in_epoch(e) for e in range(0 if part == "start" else epoch))
    count = made.steps_in_epoch(epoch) if part == "whole" else 0 if part == "pass" else STEPS
    digest = hashlib.sha256()
    for step in range(first, first + count):
        digest.update(made.rows(step).astype("<i8").tobytes())
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    return {
        "cpu_seconds": round(time.process_time() - begin, 1),
        "of_them_loader": round(loader_seconds, 1),
        "peak_bytes": peak,
        "first_step": first,
        "steps": count,
        "rows_sha256": digest.hexdigest(),
    }


def measure(folder: pathlib.Path, part: str, epoch: int) -> dict:
    """`run` in a process of its own."""
    command = [sys.executable, "-m", "tests.measure_assignment", f"--part={part}"]
    command += [f"--folder={folder}", f"--epoch={epoch}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--epoch", type=int, default=EPOCH)
    parser.add_argument("--folder", type=pathlib.Path, help="of the index, for --part")
    parser.add_argument("--part", choices=PARTS, help="measure only this, in this process")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    if args.part:  # without JAX, which takes memory
        print(json.dumps(run(args.folder, args.part, args.epoch)))
        return
    from vidgen.process import machine

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_index(folder, args.clips)
        result = {"clips": args.clips, "epoch": args.epoch, "machine": machine.describe()}
        for part in PARTS:
            result[part] = measure(folder, part, args.epoch)
            print(f"{part}: {result[part]}")
        result["counts_file_bytes"] = (folder / "epoch_counts.txt").stat().st_size
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
