"""Measures how fast one core makes batches, beside how fast a GPU would take them.

    python -m vidgen.bench_data --out=docs/benchmarks/loader.json
    python -m vidgen.bench_data --config=configs/quickstart.py --data=outputs/latents

The first form makes data of the buckets of Open-Sora 1.2 in a temporary folder, one bucket after
the other, and takes STDiT3-XL/2 as the model: latents with text features of T5-XXL, and H.264
files. The second measures the loader of a config on a data set of yours.

Times are CPU seconds of one thread, the best of several batches (of a few seconds of them at most),
without the loader's cache of latents; the files are in the page cache. A GPU is one H100 that
trains at 40 % of its peak: it takes 0.4 x 989e12 / (3 x forward FLOPs of a clip) clips a second,
where the forward pass is `vidgen.models.flops`' count of the diffusion transformer alone.
"""

import json
import math
import pathlib
import shlex
import sys
import tempfile
import time

import numpy as np
from absl import flags
from ml_collections import config_flags

from data_pipelines.loading import buckets, loader, resolutions, transforms
from data_pipelines.media import encoding
from data_pipelines.shards import builder
from vidgen import tasks
from vidgen.diffusion import encoders
from vidgen.models import flops
from vidgen.process import command_line, endings, machine
from vidgen.weights import digests

PEAK_FLOPS, USE = 989e12, 0.4  # of an H100 SXM: dense bfloat16; the share that training reaches
# Batch sizes of Open-Sora 1.2 for one GPU, the largest of its three stages (spec section 7.4).
TABLE = {
    "144p": {1: 475, 51: 51, 102: 27, 204: 13, 408: 6},
    "256": {1: 297, 51: 20, 102: 10, 204: 5, 408: 2},
    "240p": {1: 297, 51: 20, 102: 10, 204: 5, 408: 2},
    "360p": {1: 141, 51: 8, 102: 4, 204: 2, 408: 1},
    "512": {1: 141, 51: 8, 102: 4, 204: 2, 408: 1},
    "480p": {1: 89, 51: 5, 102: 3, 204: 1},
    "720p": {1: 36, 51: 2, 102: 1},
    "1024": {1: 36, 51: 2, 102: 1},
    "1080p": {1: 5},
    "2048": {1: 5},
}
XL = {"width": 1152, "depth": 28, "text_width": 4096, "text_tokens": 300}  # STDiT3-XL/2
_SPATIAL_STRIDE, _PATCH, _CHANNELS = 8, 2, 4
_DATA_BYTES = 128 << 20  # of latents: more than a processor's caches hold
_ENOUGH_SECONDS = 4.0  # of measuring a bucket, after which its fastest batch so far counts
_VIDEO_CLIPS = 1  # a batch from videos; a clip costs the same in a larger one


def measure(made: loader.Loader, bucket: buckets.Bucket, repeats: int) -> dict[str, float]:
    """Times batches of a bucket.

    Returns:
        clips_per_second and batches_per_second of one core, bytes_per_second (of records) and
        record_bytes, the mean.
    """
    steps = [step for step in range(100 * repeats) if made.bucket(step) == bucket][:repeats]
    seconds: list[float] = []
    for step in steps:
        if sum(seconds) > _ENOUGH_SECONDS:
            break
        began = time.process_time()
        made.batch(step)
        seconds.append(time.process_time() - began)
    record_bytes = sum(shard["bytes"] for shard in made.reader.meta["shards"]) / made.num_rows
    clips_per_second = bucket.batch_size / min(seconds)
    return {
        "clips_per_second": clips_per_second,
        "batches_per_second": 1 / min(seconds),
        "bytes_per_second": clips_per_second * record_bytes,
        "record_bytes": record_bytes,
    }


def demand(forward_flops: float) -> float:
    """Clips a second that one H100 takes."""
    return USE * PEAK_FLOPS / (3 * forward_flops)


def spec_buckets() -> list[buckets.Bucket]:
    """Those of TABLE, as 9:16 or 1:1 pictures."""
    found = []
    for resolution, entries in TABLE.items():
        aspect = "0.56" if resolution.endswith("p") else "1.00"
        size = resolutions.sizes(resolution)[aspect]
        found += [buckets.Bucket(resolution, n, aspect, *size, b) for n, b in entries.items()]
    return found


def latent_size(bucket: buckets.Bucket) -> tuple[int, int, int]:
    """(t, h, w) of a clip's latent."""
    t = transforms.latent_frames(bucket.num_frames)
    return t, bucket.height // _SPATIAL_STRIDE, bucket.width // _SPATIAL_STRIDE


def xl_forward_flops(bucket: buckets.Bucket) -> float:
    """Of STDiT3-XL/2 for one clip."""
    t, h, w = latent_size(bucket)
    tokens = math.ceil(h / _PATCH) * math.ceil(w / _PATCH)
    return sum(flops.stdit_forward_flops(latent_frames=t, tokens=tokens, **XL).values())


def write_latents(folder: pathlib.Path, bucket: buckets.Bucket, mean_tokens: int) -> None:
    """Writes random latents of a bucket; texts have 0.5 to 1.5 times `mean_tokens` tokens."""
    shape = *latent_size(bucket), _CHANNELS
    record_bytes = 4 * math.prod(shape) + 2 * mean_tokens * XL["text_width"]
    rows = max(bucket.batch_size, _DATA_BYTES // record_bytes)
    longest = max(math.prod(shape), XL["text_tokens"] * XL["text_width"])
    noise = np.random.default_rng(0).standard_normal(2 * longest, np.float32).astype(np.float16)

    def make(row):
        rng = np.random.default_rng(row)

        def draw(*shape):
            start = rng.integers(longest)
            return noise[start : start + math.prod(shape)].reshape(shape)

        length = int(rng.integers(mean_tokens // 2, 3 * mean_tokens // 2 + 1))
        return _facts(bucket, row) | {
            "latent": draw(*shape),
            "latent_std": draw(*shape),
            "fps": 120.0 if bucket.num_frames == 1 else 24.0,
            "num_frames": bucket.num_frames,
            "resolution": bucket.resolution,
            "aspect": bucket.aspect,
            "text_emb": draw(length, XL["text_width"]),
        }

    builder.write_shards(folder, "latent", 1, lambda _: map(make, range(rows)), key="")


def write_videos(folder: pathlib.Path, bucket: buckets.Bucket) -> None:
    """Writes clips of the bucket's size, one frame longer than it: a blurred picture that moves."""
    frames = 1 if bucket.num_frames == 1 else bucket.num_frames + 1
    rng, shift = np.random.default_rng(0), 2  # pixels a frame
    height, width = bucket.height, bucket.width + shift * frames
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    picture = transforms.resize_crop_image(coarse, height, width)
    video_THWC = np.stack([picture[:, shift * i : shift * i + bucket.width] for i in range(frames)])
    noise = rng.integers(0, 8, (height, bucket.width, 3), np.uint8)
    video = encoding.encode_mp4(np.minimum(video_THWC, 247) + noise, 24, crf=23)
    make = lambda row: _facts(bucket, row) | {"fps": 24.0, "num_frames": frames, "video": video}
    builder.write_shards(folder, "video", 1, lambda _: map(make, range(_VIDEO_CLIPS)), key="")


def _facts(bucket, row):
    return {"id": f"{row}", "text": "", "height": bucket.height, "width": bucket.width}


def measure_spec(repeats: int, mean_tokens: int, only: str) -> list[dict]:
    """Rows of the report, one a bucket of Open-Sora 1.2 whose name begins with `only`."""
    rows = []
    for bucket in spec_buckets():
        if not bucket.name.startswith(only):
            continue
        row = {"bucket": f"{bucket.resolution} x {bucket.num_frames}"}
        row |= {"batch_size": bucket.batch_size, "h100_clips_per_second": 0.0}
        row["h100_clips_per_second"] = demand(xl_forward_flops(bucket))
        with tempfile.TemporaryDirectory() as folder:
            work = pathlib.Path(folder)
            write_latents(work / "latents", bucket, mean_tokens)
            write_videos(work / "videos", bucket)
            for kind, batch_size in (("latents", bucket.batch_size), ("videos", _VIDEO_CLIPS)):
                table = {bucket.resolution: {bucket.num_frames: (1.0, batch_size)}}
                settings = {"text_tokens": XL["text_tokens"], "seed": 0, "cache_bytes": 0}
                made = loader.Loader(work / kind, buckets=table, **settings)
                row[kind] = measure(made, made.bucket(0), repeats)
        rows.append(_compared(row))
        print(table_line(rows[-1]), flush=True)
    return rows


def measure_own(config, data: str, repeats: int) -> list[dict]:
    """Rows of the report, one a bucket of a data set with the buckets and the model of a config.

    Raises:
        ValueError: If the data do not fit the config.
    """
    task = tasks.make_task(config)
    made = loader.Loader(
        data,
        buckets=encoders.bucket_table(config),
        seed=config.seed,
        frame_interval=config.data.frame_interval,
        cache_bytes=0,
        **task.loader_settings,
    )
    rows, kind = [], f"{made.kind}s"
    for bucket in made.used_buckets():
        row = {"bucket": bucket.name, "batch_size": bucket.batch_size}
        row["h100_clips_per_second"] = demand(task.forward_flops(bucket))
        rows.append(_compared(row | {kind: measure(made, bucket, repeats)}))
        print(table_line(rows[-1]), flush=True)
    return rows


def _compared(row: dict) -> dict:
    for kind in ("latents", "videos"):
        if kind in row:
            row[kind]["h100s"] = row[kind]["clips_per_second"] / row["h100_clips_per_second"]
    return row


HEADER = (
    f"{'bucket':>14} {'batch':>6} {'H100 clips/s':>13} | {'latents: batches/s':>18} {'MB/s':>7} "
    f"{'H100s a core':>13} | {'videos: batches/s':>18} {'MB/s':>7} {'H100s a core':>13}"
)


def table_line(row: dict) -> str:
    """A row of the report as text."""
    line = f"{row['bucket']:>14} {row['batch_size']:>6} {row['h100_clips_per_second']:>13.2f}"
    for kind in ("latents", "videos"):
        found = row.get(kind)
        line += " | " + (
            f"{found['clips_per_second'] / row['batch_size']:>18.3f} "
            f"{found['bytes_per_second'] / 1e6:>7.1f} {found['h100s']:>13.2f}"
            if found
            else f"{'-':>18} {'-':>7} {'-':>13}"
        )
    return line


def define_flags() -> None:
    """Defines the command's flags."""
    config_flags.DEFINE_config_file("config", None, "File of the experiment, for --data.")
    flags.DEFINE_string("data", None, "Folder of shards; without it, data are made.")
    flags.DEFINE_integer("repeats", 5, "Batches of each bucket; the fastest counts.", lower_bound=1)
    limits = {"lower_bound": 2, "upper_bound": 200}
    flags.DEFINE_integer("mean_tokens", 120, "Of the texts that are made.", **limits)
    flags.DEFINE_string("only", "", "Buckets whose name begins so, as 144p/51.")
    flags.DEFINE_string("out", None, "JSON file for the measurements.")
    command_line.writes_file("out")


def main(argv) -> None:
    del argv
    endings.end_on_error()
    values = flags.FLAGS
    with endings.refusing():
        if (values.data is None) != (values.config is None):
            raise ValueError("--config and --data belong together: give both, or none.")
        for name in ("only", "mean_tokens"):
            if values.data and values[name].present:
                raise ValueError(f"--{name} is for data that are made: leave it or --data out.")
        print(HEADER)
        if values.data:
            rows = measure_own(values.config, values.data, values.repeats)
        else:
            rows = measure_spec(values.repeats, values.mean_tokens, values.only)
        if not rows:
            raise ValueError(f"--only={values.only}: no bucket has a name that begins so.")
    least = min((row.get("latents") or row["videos"])["h100s"] for row in rows)
    print(f"one core feeds {least:.1f} H100s or more in each bucket")
    if values.out:
        found = {"command": shlex.join(["python", "-m", "vidgen.bench_data", *sys.argv[1:]])}
        found |= {"machine": machine.describe(), "mean_tokens": values.mean_tokens, "rows": rows}
        digests.write_atomically(
            pathlib.Path(values.out), json.dumps(found, indent=1).encode() + b"\n"
        )


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
