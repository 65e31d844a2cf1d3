"""Measures what the pipeline's step `select` takes for a ledger of many clips.

    python -m tests.measure_select --out=docs/benchmarks/select.json

The ledger is made up as `measuring` hands it over for a new data set: files of four scenes each,
scores and captions of three dozen words, one clip in a hundred damaged, without text, or of a file
that comes twice, and of the hashes that `measure_dedup` searches. Among them are look-alikes: each
of their pictures is so near one and the same that any two are near duplicates. A case runs in a
process of its own, as `ingest` calls the step with configs/data.py: rules, captions and duplicates,
what a data set that grows would keep, and the file written. Counted are the CPU seconds of all
threads and the memory at its peak, with the rows themselves; `near` is `dedup.near` alone.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from configs import data
from data_pipelines.stages import dedup, growth, ingest, ledger, measured, phash, plan
from tests import measure_browse

CASES = ("1000000:100000", "10000000:0")  # rows, and how many of them look alike
_SCENES = 4  # of a file
_AT_ONCE = 1 << 18  # rows that are made at once
_SIZES = ((720, 1280), (1080, 1920), (480, 854), (1280, 720), (180, 320))
_SHARES = (0.35, 0.35, 0.15, 0.1, 0.05)  # of the sizes; the last is under `short_side >= 240`


def write_rows(path: pathlib.Path, rows: int, alike: int, plain: dict):
    """Writes what was measured of made-up clips, rows of `measured.SCHEMA`."""
    rng = np.random.default_rng(0)
    is_alike_N = np.zeros(rows, bool)
    is_alike_N[rng.choice(rows, alike, replace=False)] = True
    ones_64 = rng.uniform(0.2, 0.8, 64)  # how often each bit of a hash is set
    sentences = [" ".join(rng.choice(measure_browse._WORDS, 18)) for _ in range(10_000)]
    how = json.dumps(plan.measurement(plain) | {"text": ""})
    with pyarrow.parquet.ParquetWriter(path, measured.SCHEMA, compression="zstd") as writer:
        for start in range(0, rows, _AT_ONCE):
            number_N = np.arange(start, min(start + _AT_ONCE, rows))
            is_alike = is_alike_N[number_N]
            columns = _clips(rng, number_N, is_alike, sentences)
            columns["phash"] = _hashes(rng, is_alike, ones_64, plain["dedup"]["near"])
            # of another file of the same content: what was measured of it is the same
            is_again = np.repeat(rng.random(len(number_N) // _SCENES + 1) < 0.01, _SCENES)
            is_again = is_again[: len(number_N)] & ~is_alike & ~np.roll(is_alike, _SCENES)
            is_again[:_SCENES] = False
            of = pa.array(np.arange(len(number_N)) - _SCENES * is_again)
            for name in ("phash", "sha256", "num_frames", "height", "width"):
                columns[name] = pc.take(pa.array(columns[name]), of)
            columns["how"] = pa.repeat(how, len(number_N))
            nulls = {f.name: pa.nulls(len(number_N), f.type) for f in measured.SCHEMA}
            writer.write_table(pa.table(nulls | columns, schema=measured.SCHEMA))


def _clips(rng, number_N: np.ndarray, is_alike: np.ndarray, sentences: list[str]) -> dict:
    """Columns without hashes; look-alikes pass all rules and have a caption."""
    count, file_N, scene_N = len(number_N), number_N // _SCENES, number_N % _SCENES
    is_damaged, is_silent = ((rng.random(count) < 0.01) & ~is_alike for _ in range(2))
    sentence = lambda: pa.array(sentences).take(pa.array(rng.integers(len(sentences), size=count)))
    prefix = np.where(rng.random(count) < 0.2, "The video shows ", "")
    text = pc.binary_join_element_wise(prefix, sentence(), ". ", sentence(), "")
    size_N2 = np.array(_SIZES)[rng.choice(len(_SIZES), count, p=_SHARES)]
    size_N2[is_alike & (size_N2[:, 0] < 240)] = _SIZES[0]
    digests = rng.bytes(32 * (count // _SCENES + 1)).hex()  # of files
    scores = {name: rng.random(count) * 0.09 for name in ("black_share", "letterbox")}
    scores |= {"motion": np.where(is_alike, 3.0, rng.gamma(2.0, 1.5, count))}
    scores |= {"static_share": rng.random(count) * 0.5, "sharpness": rng.gamma(2.0, 90.0, count)}
    scores |= {"brightness": rng.normal(110.0, 30.0, count)}
    parents = [f"videos/part-{n // 20_000:04d}/clip_{n:08d}.mp4" for n in file_N.tolist()]
    return {
        "id": [f"{name}#{n:03d}" for name, n in zip(parents, scene_N.tolist(), strict=True)],
        "source": pa.repeat("made up", count),
        "file": [f"/data/{name}" for name in parents],
        "parent": parents,
        "start": 6.0 * scene_N,
        "end": 6.0 * scene_N + 6.0,
        "text": pc.if_else(pa.array(is_silent), "", text),
        "kind": pa.repeat("video", count),
        "format": pa.repeat("mov,mp4,m4a,3gp,3g2,mj2", count),
        "codec": pa.repeat("h264", count),
        "first_frame": (150 * scene_N).astype(np.int32),
        "num_frames": rng.integers(48, 151, count).astype(np.int32),
        "height": size_N2[:, 0].astype(np.int32),
        "width": size_N2[:, 1].astype(np.int32),
        "pixel_aspect": np.ones(count, np.float32),
        "fps": np.full(count, 25.0),
        "bytes": rng.integers(1 << 20, 1 << 24, count),
        "sha256": [digests[64 * i : 64 * (i + 1)] for i in (file_N - file_N[0]).tolist()],
        "status": pc.if_else(pa.array(is_damaged), ledger.LEFT_OUT, pa.scalar(None, pa.string())),
        "rule": pc.if_else(pa.array(is_damaged), "damaged", pa.scalar(None, pa.string())),
        "message": pc.if_else(pa.array(is_damaged), "frame 7.", pa.scalar(None, pa.string())),
        **{name: values.astype(np.float32) for name, values in scores.items()},
        "camera": np.array(["static", "pan_left", "zoom_in"])[rng.integers(3, size=count)],
        "place": [f"/data/{name}|7340032|1700000000000000000" for name in parents],
        "asked": pa.repeat("[null, null]", count),
    }


def _hashes(rng, is_alike: np.ndarray, ones_64: np.ndarray, distance: int) -> pa.Array:
    """Binary [clips]: the bits as unevenly spread as `measure_dedup.search_seconds` has them."""
    bits_N64 = rng.random((len(is_alike), 64), np.float32) < ones_64
    bits_N64[is_alike] = ones_64 > 0.5
    flips = max(0, distance) // 2  # in each of two, so that they differ in no more than `distance`
    words = []
    for _ in phash.SHARES:
        moved_N64 = bits_N64 ^ (rng.random(bits_N64.shape, np.float32) < 0.15)
        moved_N64[is_alike] = bits_N64[is_alike]
        for _ in range(flips):
            moved_N64[is_alike, rng.integers(64, size=is_alike.sum())] ^= True
        words.append(np.packbits(moved_N64, axis=1))
    return pa.array([row.tobytes() for row in np.concatenate(words, axis=1)], pa.binary())


def run(folder: pathlib.Path, plain: dict) -> dict:
    """Returns what the step takes, and its verdicts."""
    with pyarrow.parquet.ParquetFile(folder / "rows.parquet") as file:
        groups = [file.read_row_group(i, ledger.SCHEMA.names) for i in range(file.num_row_groups)]
    rows, near = pa.concat_tables(groups), {}
    del groups
    found, dedup.near = dedup.near, functools.partial(_timed, dedup.near, near)
    begin, cpu_begin = time.monotonic(), time.process_time()
    ingest._select(folder, rows, plain, growth.Before(folder / "out"), [])
    result = {
        "seconds": round(time.monotonic() - begin, 1),
        "cpu_seconds": round(time.process_time() - cpu_begin, 1),
        "near": near,
    }
    dedup.near = found
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    selected = pyarrow.parquet.read_table(folder / "selected.parquet", columns=["status", "rule"])
    removed = ledger.counts(selected)
    return result | {
        "peak_bytes": peak,
        "rows_bytes": rows.nbytes,
        "mean_characters": round(pc.mean(pc.utf8_length(rows["text"])).as_py()),
        "kept": len(rows) - sum(removed.values()),
        "removed": removed,
    }


def _timed(search, near: dict, hashes, *args, **facts) -> dict[int, int]:
    begin = time.process_time()
    found = search(hashes, *args, **facts)
    near |= {"rows": len(hashes), "cpu_seconds": round(time.process_time() - begin, 1)}
    return found


def measure(rows: int, alike: int, plain: dict) -> dict:
    """`run` in a process of its own, on rows that are made in this one."""
    with tempfile.TemporaryDirectory() as name:
        write_rows(pathlib.Path(name, "rows.parquet"), rows, alike, plain)
        command = [sys.executable, "-m", "tests.measure_select", f"--folder={name}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"rows": rows, "look_alikes": alike} | json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=CASES, help="ROWS:LOOK_ALIKES")
    parser.add_argument("--folder", type=pathlib.Path, help="measure its rows, in this process")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    plain = plan.check(data.get_config())
    if args.folder:  # without JAX, which takes memory
        print(json.dumps(run(args.folder, plain)))
        return
    from vidgen.process import machine

    result = {"machine": machine.describe(), "dedup_near": plain["dedup"]["near"], "cases": []}
    print(
        f"{'rows':>11}{'alike':>9}{'seconds':>9}{'CPU s':>8}{'near':>8}{'peak GB':>9}{'kept':>11}"
    )
    for case in args.cases:
        now = measure(*map(int, case.split(":")), plain)
        print(
            f"{now['rows']:>11,}{now['look_alikes']:>9,}{now['seconds']:>9}{now['cpu_seconds']:>8}"
            f"{now['near']['cpu_seconds']:>8}{now['peak_bytes'] / 1e9:>9.1f}{now['kept']:>11,}"
        )
        print("  left out:", ", ".join(f"{rule}: {n:,}" for rule, n in now["removed"].items()))
        result["cases"].append(now)
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
