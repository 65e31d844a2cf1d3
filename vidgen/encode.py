"""Turns shards of videos into shards of latents and text features, which training reads faster.

    python -m vidgen.encode --config=configs/quickstart.py --source=outputs/shards
    --out=outputs/latents

Uses the VAE, the text encoder and the buckets of the config. Each clip goes to one bucket, by the
rule of the loader's first epoch. Stopped at any moment and started again, it makes only what is
missing, and gives the same bytes.
"""

import collections
import functools
import hashlib
import json

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from data_pipelines import buckets, builder, loader, records, transforms
from vidgen import command_line, encoders, runtime

SHARD_CLIPS = 512
BATCH_CLIPS = 16  # encoded at once
_FORMAT = 1  # raise it when equal inputs give other latents
FRAMES_PURPOSE = 20  # of random numbers: which frames


def encode(config, source: str, out: str) -> dict:
    """Makes the latent shards `out` of the video shards `source`, and returns their meta.json.

    Raises:
        ValueError: If the source holds no videos, no clip fits a bucket, or `out` holds something
            else.
    """
    models = encoders.Encoders(config)
    reader = records.Reader(source)
    if reader.kind != "video":
        raise ValueError(f"{source} holds {reader.kind} shards already: give shards of videos.")
    table = buckets.Table(encoders.bucket_table(config), None, config.data.frame_interval)
    assigned = _assign(reader, table, config.seed)
    if not assigned:
        raise ValueError(
            f"none of the {len(reader)} clips of {source} fits a bucket of the config: a clip "
            "has to be longer than the bucket and have 80% of its resolution's pixels."
        )
    frozen = models.load()
    encode_batch = _make_encode_batch(models, frozen)
    make_shard = functools.partial(
        _make_shard, reader, assigned, encode_batch, models.tokenize, config
    )
    return builder.write_shards(
        out,
        "latent",
        -(-len(assigned) // SHARD_CLIPS),
        make_shard,
        key=_key(config, reader, frozen),
        extra={"source": reader.meta["fingerprint"], "left_out": len(reader) - len(assigned)},
    )


def _assign(reader, table, seed):
    """[(row, bucket)] of the clips that have one."""
    facts = (reader.index[name].tolist() for name in ("num_frames", "height", "width"))
    both = (
        (row, table.assign(*fact, row=row, epoch=0, seed=seed))
        for row, fact in enumerate(zip(*facts, strict=True))
    )
    return [(row, bucket) for row, bucket in both if bucket is not None]


def _key(config, reader, frozen) -> str:
    """Names everything that the latents depend on."""
    facts = {
        "format": _FORMAT,
        "source": reader.meta["fingerprint"],
        "config": {name: config[name].to_dict() for name in ("vae", "text")},
        "data": {name: config.data[name] for name in ("frame_interval",)},
        "buckets": config.data.buckets.to_dict(),
        "seed": config.seed,
        "weights": [hashlib.sha256(np.asarray(x)).hexdigest() for x in jax.tree.leaves(frozen)],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _make_encode_batch(models, frozen):
    """Returns (video_BTHWC, ids_BL, mask_BL) -> NumPy (mean, std, text features)."""

    @jax.jit
    def run(frozen, video_BTHWC, ids_BL, mask_BL):
        mean_Bthwc, std_Bthwc = models.encode_video(frozen, video_BTHWC, None)
        return mean_Bthwc, std_Bthwc, models.encode_text(frozen, ids_BL, mask_BL)

    return lambda *arrays: jax.device_get(run(frozen, *arrays))


def _make_shard(reader, assigned, encode_batch, tokenize, config, number: int):
    """Yields the records of a shard, in the order of their rows."""
    part = assigned[number * SHARD_CLIPS : (number + 1) * SHARD_CLIPS]
    by_bucket = collections.defaultdict(list)
    for row, bucket in part:
        by_bucket[bucket].append(row)
    made = {}
    for bucket, rows in by_bucket.items():
        for start in range(0, len(rows), BATCH_CLIPS):
            some = rows[start : start + BATCH_CLIPS]
            made |= _encode_rows(reader, bucket, some, encode_batch, tokenize, config)
    for row, _ in part:
        yield made[row]


def _encode_rows(reader, bucket, rows, encode_batch, tokenize, config) -> dict[int, dict]:
    clips = [reader[row] for row in rows]
    rng = lambda row: np.random.default_rng((config.seed, row, FRAMES_PURPOSE))
    interval = config.data.frame_interval
    videos = [
        loader.read_video(clip, bucket, interval, rng(row))
        for clip, row in zip(clips, rows, strict=True)
    ]
    padding = BATCH_CLIPS - len(rows)  # one shape, one program
    video_BTHWC = np.stack(videos + videos[-1:] * padding)
    ids_BL, mask_BL = tokenize([clip["text"] for clip in clips + clips[-1:] * padding])
    mean_Bthwc, std_Bthwc, text_BLE = encode_batch(video_BTHWC, ids_BL, mask_BL)
    return {
        row: {
            "id": clip["id"],
            "text": clip["text"],
            "fps": transforms.clip_fps(clip["fps"], bucket.num_frames, interval),
            "num_frames": bucket.num_frames,
            "height": bucket.height,
            "width": bucket.width,
            "resolution": bucket.resolution,
            "aspect": bucket.aspect,
            "latent": mean_Bthwc[i].astype(np.float16),
            "latent_std": std_Bthwc[i].astype(np.float16),
            "text_emb": text_BLE[i, : mask_BL[i].sum()].astype(np.float16),
        }
        for i, (row, clip) in enumerate(zip(rows, clips, strict=True))
    }


def define_flags() -> None:
    """Defines the command's flags; called once, so that others can import this module."""
    config_flags.DEFINE_config_file("config", None, "File of the experiment.")
    flags.DEFINE_string("source", None, "Folder of video shards.")
    flags.DEFINE_string("out", None, "Folder of latent shards to make.")
    flags.mark_flags_as_required(["config", "source", "out"])


def main(argv) -> None:
    del argv
    runtime.end_on_error()
    out = flags.FLAGS.out
    with runtime.refusing():
        meta = encode(flags.FLAGS.config, flags.FLAGS.source, out)
    shards, left_out = len(meta["shards"]), meta["left_out"]
    print(f"{out}: {meta['num_records']} clips in {shards} shards; left out: {left_out}")


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
