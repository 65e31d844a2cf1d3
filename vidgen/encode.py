"""Turns shards of videos into shards of latents and text features, which training reads faster.

    python -m vidgen.encode --config=configs/quickstart.py --source=outputs/shards
    --out=outputs/latents

Uses the VAE, the text encoder and the buckets of the config. Each clip goes to one bucket, by the
rule of the loader's first epoch, or with --buckets=all to each that it fits, from which the loader
then draws anew in each epoch. Where the shards have grown since, --out grows: only what is new is
encoded. Stopped at any moment and started again, it makes only what is
missing, and gives the same bytes. Clips of one bucket lie together, so that batches are full; all
devices of the machine share each of them. --config.vae.slice_pixels bounds the memory of the VAE.

Many processes share the work when each is told its number: --process_index and --process_count, or
VIDGEN_PROCESS and VIDGEN_PROCESSES as for training. They need a common folder, but do not talk:
each makes its own shards, the last one finishes, and where one dies the others go on.

--check=N decodes N samples back to mp4 files beside their originals, in OUT.check, and prints their
PSNR.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import io
import json
import os

import jax
import numpy as np
import tqdm
from absl import flags
from ml_collections import config_flags

from data_pipelines.loading import assignment, batches, buckets, reads
from data_pipelines.shards import builder, records
from vidgen.diffusion import encoders
from vidgen.process import command_line, endings, exit_codes, runtime
from vidgen.reporting import decode_check
from vidgen.training import data, sharding
from vidgen.weights import tree_files

SHARD_CLIPS = 512
BATCH_CLIPS = 16  # encoded at once on a device, at most: a power of two
BATCH_PIXELS = 64 << 20  # of their clips together, unless one has more
_SPARE = 0.05  # share of the clips of a bucket that may be computed for nothing, to fill a batch
_FORMAT = 2  # raise it when equal inputs give other latents
_NOISE_PURPOSE = 21  # of random numbers: samples of latents
_DECODERS = min(8, os.cpu_count() or 1)  # children, where the config does not say


def encode(
    config,
    source: str,
    out: str,
    *,
    every_bucket: bool = False,
    sampled: bool = False,
    shrink: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> dict | None:
    """Makes the latent shards `out` of the video shards `source`.

    Args:
        config: The experiment.
        source: Folder or URL of video shards.
        out: Folder to make.
        every_bucket: Each clip goes to every bucket that it fits, not to one.
        sampled: Latents are drawn from their posterior once, and not kept as mean and deviation.
        shrink: Latents that are there may lose more than half of their records.
        process_index: Which of the processes that share the work this one is.
        process_count: How many there are.

    Returns:
        The data set's meta.json, or None while other processes have shards to make.

    Raises:
        ValueError: If the source holds no videos, no clip fits a bucket, or `out` holds something
            else than latents of the same models.
        RuntimeError: If more clips turn out to be damaged than `config.data.bad_limit` allows.
        SystemExit: If the process was asked to stop.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index={process_index} is not in 0..{process_count - 1}: give another one, or "
            "a larger process_count."
        )
    models = encoders.Encoders(config)
    reader = records.Reader(source)
    if reader.kind != "video":
        raise ValueError(f"{source} holds {reader.kind} shards already: give shards of videos.")
    table = buckets.Table(encoders.bucket_table(config), None, config.data.frame_interval)
    known = table.all_buckets()
    rows_M, numbers_M = _in_batches(*_assign(reader, table, config.seed, every_bucket), known)
    if not len(rows_M):
        raise ValueError(
            f"none of the {len(reader)} clips of {source} fits a bucket of the config: a clip "
            "has to be longer than the bucket and have 80% of its resolution's pixels."
        )
    mesh = sharding.make_mesh({"data": -1})
    frozen = models.load(mesh)
    family = _family(config, models, frozen, every_bucket, sampled)
    key = hashlib.sha256(f"{family} {reader.meta['fingerprint']}".encode()).hexdigest()
    if meta := builder.finished(out, key, family):
        return meta
    left_out = len(reader) - len(np.unique(rows_M))
    pairs = zip(rows_M, numbers_M, strict=True)
    marks_M = np.array([_mark(reader, row, known[i]) for row, i in pairs], np.uint64)
    stays = _stays(out, marks_M, reader.index["id"][rows_M], reader.index["clip"][rows_M], shrink)
    if stays is not None:
        is_new_M = ~np.isin(marks_M, records.Reader(out).marks[stays])
        rows_M, numbers_M = rows_M[is_new_M], numbers_M[is_new_M]
    counts = dict(zip(known, np.bincount(numbers_M, minlength=len(known)), strict=True))
    num_shards = -(-len(rows_M) // SHARD_CLIPS)
    mine = range(process_index, num_shards, process_count)
    bad_list = f"{os.path.abspath(out)}.bad-{process_index}.jsonl"
    bad = reads.BadRecords(len(reader), config.data.bad_limit, source, bad_list)
    clips = _Clips(config, reader, models, frozen, mesh, bad, sampled)
    with builder.quicker(out, key), clips:
        work = builder.start(out, "latent", num_shards, key=key)
        todo = sorted(set(mine) & set(builder.missing(work, num_shards)))
        progress = {"total": len(mine), "initial": len(mine) - len(todo)}
        bar = tqdm.tqdm(todo, desc="latent shards", unit="shard", **progress)
        for number in bar:
            part = slice(number * SHARD_CLIPS, (number + 1) * SHARD_CLIPS)
            placed = [known[i] for i in numbers_M[part]]
            pairs = list(zip(rows_M[part].tolist(), placed, strict=True))
            builder.write_shard(work, "latent", number, num_shards, clips.encode(pairs, counts))
            cut = models.tokenize.cut
            bar.set_postfix(clips=clips.kept, computed=clips.computed, captions_cut=cut)
    extra, files = {"source": reader.meta["fingerprint"], "left_out": left_out}, {}
    extra["family"] = family
    if every_bucket:
        extra |= {"buckets": "all", "clips": f"{key[:8]}-{assignment.CLIPS}"}
        columns = io.BytesIO()
        np.savez(columns, **{k: reader.index[k] for k in ("id", "num_frames", "height", "width")})
        files[extra["clips"]] = columns.getvalue()
    how = {"key": key, "extra": extra, "files": files, "stays": stays}
    with contextlib.suppress(builder.Unfinished):
        return builder.finish(out, "latent", num_shards, **how)
    return None


def _mark(reader, row, bucket) -> int:
    """By which a latent of a clip is known among those of the same family."""
    return records.mark(int(reader.index["record"][row]), bucket.name)


def _stays(out: str, marks_M: np.ndarray, ids, clips, shrink: bool) -> np.ndarray | None:
    """Which records of the latents that are there are wanted still; None where there are none."""
    if not os.path.exists(os.path.join(out, "meta.json")):
        return None
    reader = records.Reader(out)
    builder.check_loss(out, records.lost(reader.index, ids, clips), len(reader), shrink)
    return records.known(reader.marks, marks_M)


def _assign(reader, table, seed, every_bucket):
    """(rows_M, numbers_M) of each clip's bucket in epoch 0, or of all that it could be given."""
    facts = [reader.index[name] for name in ("num_frames", "height", "width")]
    if every_bucket:
        return table.fitting(*facts)
    numbers_N = table.assign_all(*facts, reader.numbers, epoch=0, seed=seed)
    rows_M = np.flatnonzero(numbers_N >= 0)
    return rows_M, numbers_N[rows_M]


def _in_batches(rows_M, numbers_M, known):
    """Both in the order of the shards: clips of a bucket together, so that batches are full.

    Buckets that take most memory come first: too much of it shows at once.
    """
    ranked = sorted(range(len(known)), key=lambda i: (-_pixels(known[i]), known[i].name))
    rank = np.empty(len(known), np.int64)
    rank[ranked] = np.arange(len(known))
    order_M = np.lexsort((rows_M, rank[numbers_M]))
    return rows_M[order_M], numbers_M[order_M]


def _pixels(bucket: buckets.Bucket) -> int:
    return bucket.num_frames * bucket.height * bucket.width


def _family(config, models, frozen, every_bucket, sampled) -> str:
    """Names everything that the latents of a clip depend on, and nothing else."""
    shares = {
        resolution: {frames: entry[0] for frames, entry in entries.items()}
        for resolution, entries in config.data.buckets.to_dict().items()
    }
    facts = {
        "format": _FORMAT,
        "weights": {name: tree_files.fingerprint(tree) for name, tree in frozen.items()},
        "vae": config.vae.model.to_dict(),
        "text": {} if config.text.folder else config.text.model.to_dict(),
        "tokenizer": getattr(models.tokenize, "fingerprint", None),
        "max_tokens": config.text.max_tokens,
        "dtype": encoders.compute_dtype(config),
        "compat": config.get("compat", ""),
        "frame_interval": config.data.frame_interval,
        "buckets": shares,
        "seed": config.seed,
        "every_bucket": every_bucket,
        "sampled": sampled,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def batch_clips(bucket: buckets.Bucket, devices: int) -> int:
    """How many clips of a bucket are encoded at once."""
    fitting = max(1, min(BATCH_CLIPS, BATCH_PIXELS // _pixels(bucket)))
    return devices * (1 << fitting.bit_length() - 1)


def plan_batches(clips: int, most: int, in_bucket: int) -> list[tuple[int, int]]:
    """Cuts a bucket's clips of a shard into batches: [(clips, size of the batch that has them)].

    Sizes go down by fours, so that few programs are compiled. A last batch that is not full is
    filled up where that costs little, and is else cut into smaller ones: over the bucket, at most
    1.05 times its clips are computed.

    Args:
        clips: How many the shard has.
        most: The largest size.
        in_bucket: How many all shards have together.
    """
    # where full shards have full batches only, the two at the bucket's ends share what is to spare
    spare = _SPARE * (clips if SHARD_CLIPS % most else in_bucket / 2)
    batches_, left, size = [], clips, most
    while left:
        if left >= size:
            batches_.append((size, size))
            left -= size
        elif size - left <= spare:
            batches_.append((left, size))
            left = 0
        else:
            size = -(-size // 4)
    return batches_


def _make_encode_batch(models, frozen, mesh):
    """Returns (video_BTHWC, ids_BL, mask_BL) -> NumPy (mean, std, text features)."""

    @jax.jit
    def run(frozen, batch):
        mean_Bthwc, std_Bthwc = models.encode_video(frozen, batch["video"])
        return mean_Bthwc, std_Bthwc, models.encode_text(frozen, batch["ids"], batch["mask"])

    def encode_batch(video_BTHWC, ids_BL, mask_BL):
        batch = {"video": video_BTHWC, "ids": ids_BL, "mask": mask_BL}
        with jax.set_mesh(mesh):
            return jax.device_get(run(frozen, data.to_global(batch, mesh)))

    return encode_batch


class _Clips(contextlib.AbstractContextManager):
    """Encodes clips by their rows; children decode the next batch."""

    def __init__(self, config, reader, models, frozen, mesh, bad: reads.BadRecords, sampled: bool):
        self.config, self.reader, self.tokenize = config, reader, models.tokenize
        self.encode_batch = _make_encode_batch(models, frozen, mesh)
        self.bad, self.sampled, self.devices = bad, sampled, sharding.batch_devices(mesh)
        self.kept, self.computed = 0, 0  # clips; the second counts those that fill up a batch too
        self.reads = reads.Reads(reader, config.data.deadline_seconds, bad)
        num_decoders = config.data.workers or _DECODERS
        self.threads = concurrent.futures.ThreadPoolExecutor(num_decoders)
        self.decoders = batches.decoders(num_decoders, config.data.deadline_seconds)

    def __exit__(self, *_):
        self.decoders.close()
        self.threads.shutdown(cancel_futures=True)

    def encode(self, part, counts):
        """Yields the records of [(row, bucket)] in this order, damaged clips left out.

        `counts` has the clips of each bucket in all parts.
        """
        by_bucket = collections.defaultdict(list)
        for row, bucket in part:
            by_bucket[bucket].append(row)
        todo = []
        for bucket, rows in by_bucket.items():
            most = batch_clips(bucket, self.devices)
            for count, size in plan_batches(len(rows), most, counts[bucket]):
                todo.append((bucket, rows[:count], size))
                rows = rows[count:]
        made: dict = {}
        read = lambda bucket, rows: [self.threads.submit(self._read, row, bucket) for row in rows]
        ahead = read(*todo[0][:2])
        for i, (bucket, rows, size) in enumerate(todo):
            clips = [future.result() for future in ahead]
            ahead = read(*todo[i + 1][:2]) if i + 1 < len(todo) else []
            if runtime.should_stop():
                raise SystemExit(exit_codes.REQUEUE)
            found = [(row, clip) for row, clip in zip(rows, clips, strict=True) if clip]
            if found:
                made |= self._encode_batch(bucket, found, size)
        for pair in part:
            if pair in made:
                self.kept += 1
                yield made[pair]

    def _read(self, row, bucket):
        """The sample of a clip, or None where it is damaged."""
        choice = encoders.clip_choice(self.config, int(self.reader.numbers[row]), bucket)
        self.bad.count_read(1)
        try:
            return self.reads.in_child(self.decoders, row, choice)
        except ValueError as error:
            self.bad.add(row, str(error))
            return None

    def _encode_batch(self, bucket, found, size) -> dict[tuple, dict]:
        padded = found + found[-1:] * (size - len(found))  # few shapes, few programs
        self.computed += size
        video_BTHWC = np.stack([clip["video"] for _, clip in padded])
        ids_BL, mask_BL = self.tokenize([clip["text"] for _, clip in padded])
        mean_Bthwc, std_Bthwc, text_BLE = self.encode_batch(video_BTHWC, ids_BL, mask_BL)
        made = {}
        for i, (row, clip) in enumerate(found):
            latent, std = mean_Bthwc[i], std_Bthwc[i]
            if self.sampled:
                number = int(self.reader.numbers[row])
                rng = np.random.default_rng((self.config.seed, number, _NOISE_PURPOSE))
                latent = latent + std * rng.standard_normal(std.shape, np.float32)
                std = std[:0]
            made[row, bucket] = {
                "record": _mark(self.reader, row, bucket),
                "clip": int(self.reader.index["clip"][row]),
                "id": str(self.reader.index["id"][row]),
                "text": clip["text"],
                "fps": clip["fps"],
                "num_frames": bucket.num_frames,
                "height": bucket.height,
                "width": bucket.width,
                "resolution": bucket.resolution,
                "aspect": bucket.aspect,
                "latent": latent.astype(np.float16),
                "latent_std": std.astype(np.float16),
                "text_emb": text_BLE[i, : mask_BL[i].sum()].astype(np.float16),
            }
        return made


def define_flags() -> None:
    """Defines the command's flags; called once, so that others can import this module."""
    config_flags.DEFINE_config_file("config", None, "File of the experiment.")
    flags.DEFINE_string("source", None, "Folder or URL of video shards.")
    flags.DEFINE_string("out", None, "Folder of latent shards to make.")
    flags.DEFINE_enum("buckets", "one", ["one", "all"], "How many buckets a clip goes to.")
    flags.DEFINE_enum(
        "latents", "posterior", ["posterior", "sample"], "Mean and deviation, or one draw of them."
    )
    place, count = os.environ.get("VIDGEN_PROCESS", "0"), os.environ.get("VIDGEN_PROCESSES", "1")
    flags.DEFINE_integer("process_index", place, "Which of the processes this is.", lower_bound=0)
    flags.DEFINE_integer("process_count", count, "How many share the work.", lower_bound=1)
    flags.DEFINE_bool("shrink", False, "Latents that are there may lose more than half.")
    flags.DEFINE_integer("check", 0, "Samples to decode back to mp4.", lower_bound=0)
    flags.DEFINE_float("min_psnr", None, "End with an error where a sample of --check has less.")
    flags.mark_flags_as_required(["config", "source", "out"])
    command_line.writes_folder("out")


def main(argv) -> None:
    del argv
    endings.end_on_error()
    runtime.take_signals()
    runtime.compile_cache()
    values = flags.FLAGS
    with endings.refusing():
        if values.min_psnr is not None and not values.check:
            raise ValueError(f"--min_psnr={values.min_psnr} is for --check=N: give both, or none.")
        meta = encode(
            values.config,
            values.source,
            values.out,
            every_bucket=values.buckets == "all",
            sampled=values.latents == "sample",
            shrink=values.shrink,
            process_index=values.process_index,
            process_count=values.process_count,
        )
    if meta is None:
        print(f"{values.out}: this process is done; others have shards to make.")
        return
    made, shards, left_out = meta["num_records"], len(meta["shards"]), meta["left_out"]
    print(f"{values.out}: {made} clips in {shards} shards; left out: {left_out}")
    if values.check:
        found = decode_check.check(values.config, values.source, values.out, values.check)
        for number, (name, bucket, psnr) in enumerate(found):
            print(f"{values.out}.check/{number:03d}.mp4  {psnr:6.2f} dB  {bucket:>14}  {name}")
        worst = min(psnr for _, _, psnr in found)
        if values.min_psnr is not None and worst < values.min_psnr:
            raise RuntimeError(
                f"a sample comes back with {worst:.2f} dB, less than --min_psnr={values.min_psnr}: "
                "the VAE does not fit these clips, or its weights are not those of the config."
            )


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
