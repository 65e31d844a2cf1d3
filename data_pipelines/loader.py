"""Batches of NumPy arrays from a data set; the batch of a step is a function of (seed, step).

Position is one integer, the number of the step. A batch, its order and every random choice in it
are the same for any number of processes, workers and threads, and after any restart.

A batch is a dict of the local part of B samples:

- video data: `video` uint8 [B, T, H, W, 3]; with a tokenizer `text_ids` int32 [B, L].
- latent data: `latent`, `latent_std` float32 [B, t, h, w, c]; `text_emb` float32 [B, L, E].
- both: `text_mask` bool [B, L] (not without text), `mask` bool [B, t] (True: the frame is
  generated), `drop_text` bool [B] (train without caption), `fps` float32 [B] (120: image), `size`
  float32 [B, 2] (height and width of the bucket), `num_frames` int32 [B], `row` int32 [B].

JAX stays out: workers (`data_pipelines.workers`) cannot import it, and Grain, which would, is
imported with JAX closed to it unless the program has JAX already.
"""

import functools
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import absl.logging
import numpy as np

from data_pipelines import buckets as bucket_tables
from data_pipelines import records, stream, transforms, video_io, workers

_FORMAT = 1  # of the stream: raise it when equal arguments give other batches
_FRAMES, _MASK, _TEXT = 10, 11, 12  # purposes of random numbers


class Loader:
    """The batches of a data set.

    Args:
        path: Folder of a data set (`data_pipelines.records`).
        buckets: {resolution: {frames: (keep, batch_size) or ((keep, consider), batch_size)}}, see
            `data_pipelines.buckets`. Batch sizes count all processes. Of latents, whose bucket was
            chosen when they were encoded, the chances are not drawn again.
        aspects: Only these aspects, or all.
        seed: Of everything random.
        frame_interval: Every how many frames one is taken.
        time_stride: Pixel frames a latent frame.
        chunk_frames: Pixel frames that the VAE encodes at once; None: all.
        mask_ratios: {strategy: share}, see `transforms.frame_mask`; the rest generates all frames.
        text_dropout: Chance that a caption is dropped.
        tokenize: Texts -> (ids_BL, mask_BL), for video data; None: batches without text.
        text_tokens: L.
        process_index: Which part of each batch is made here.
        process_count: Into how many equal parts batches are cut.
        num_workers: Child processes that make batches; 0: threads of this process.
        prefetch: Batches made ahead.
        cache_bytes: Memory for decoded latents, kept after they are first read.
        deadline_seconds: For a worker to make a batch; then it is replaced.

    Raises:
        ValueError: If an argument is wrong or does not fit the data.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        buckets: Mapping[str, Mapping[int, tuple]],
        aspects: Sequence[str] | None = None,
        seed: int,
        frame_interval: int = 1,
        time_stride: int = 4,
        chunk_frames: int | None = 17,
        mask_ratios: Mapping[str, float] = {},
        text_dropout: float = 0.0,
        tokenize: Callable[[list[str]], tuple[np.ndarray, np.ndarray]] | None = None,
        text_tokens: int,
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int = 0,
        prefetch: int = 2,
        cache_bytes: int = 1 << 30,
        deadline_seconds: float = 300.0,
    ):
        transforms.check_mask_ratios(mask_ratios)
        if not 0 <= text_dropout <= 1:
            raise ValueError(f"text_dropout={text_dropout} has to be in 0..1.")
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index={process_index} is not in 0..{process_count - 1}.")
        if min(num_workers, prefetch) < 0:
            raise ValueError(f"num_workers={num_workers} and prefetch={prefetch}: 0 or more.")
        self.reader = records.Reader(path)
        self.kind = self.reader.kind
        self.num_rows = len(self.reader)
        self.table = bucket_tables.Table(buckets, aspects, frame_interval)
        self.seed, self.text_dropout, self.mask_ratios = seed, text_dropout, dict(mask_ratios)
        self.frame_interval, self.tokenize = frame_interval, tokenize
        self.time_stride, self.chunk_frames = time_stride, chunk_frames
        self.text_tokens, self.prefetch, self.num_workers = text_tokens, prefetch, num_workers
        self.process_index, self.process_count = process_index, process_count
        self.deadline_seconds = deadline_seconds
        self._buckets = self.table.all_buckets()
        self._check_batch_sizes()
        if self.kind == "latent":
            self._check_latents(path)
        self._worker_args = {
            "path": str(path),
            "buckets": {k: dict(v) for k, v in buckets.items()},
            "aspects": aspects,
            "seed": seed,
            "frame_interval": frame_interval,
            "time_stride": time_stride,
            "chunk_frames": chunk_frames,
            "mask_ratios": dict(mask_ratios),
            "text_dropout": text_dropout,
            "tokenize": tokenize,
            "text_tokens": text_tokens,
            "process_index": process_index,
            "process_count": process_count,
            "cache_bytes": cache_bytes // max(1, num_workers),
        }
        self._fixed: list[np.ndarray] | None = None
        self._stream = stream.Stream(
            self._rows_of, [b.batch_size for b in self._buckets], self.seed
        )
        self._cache: dict[int, dict] = {}
        self._cache_left, self._cache_lock = cache_bytes, threading.Lock()
        if not any(len(rows) for epoch in range(3) for rows in self._rows_of(epoch)):
            raise ValueError(
                f"none of the {self.num_rows} clips of {path} fits a bucket: a clip has to have "
                f"{bucket_tables.MIN_PIXEL_SHARE:.0%} of a resolution's pixels, and more frames "
                f"than the bucket times frame_interval={frame_interval} (an image: a bucket of 1). "
                f"Buckets: {self._names(self._buckets)}."
            )

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the data and of every argument that changes the batches of the whole run."""
        entries = {
            k: [[e.num_frames, e.keep, e.consider, e.batch_size] for e in v]
            for k, v in self.table.entries.items()
        }
        tokenizer = self.tokenize and getattr(
            self.tokenize, "fingerprint", getattr(self.tokenize, "__qualname__", "unnamed")
        )
        facts = {
            "format": _FORMAT,
            "data": self.reader.meta["fingerprint"],
            "buckets": entries,
            "aspects": self.table.aspects,
            "seed": self.seed,
            "frame_interval": self.frame_interval,
            "time_stride": self.time_stride,
            "chunk_frames": self.chunk_frames,
            "mask_ratios": list(self.mask_ratios.items()),  # their order counts
            "text_dropout": self.text_dropout,
            "tokenizer": tokenizer,
            "text_tokens": self.text_tokens,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def bucket(self, step: int) -> bucket_tables.Bucket:
        """Returns the bucket of a step."""
        return self._buckets[self._stream.at(step).bucket]

    def rows(self, step: int) -> np.ndarray:
        """Returns the rows of a step's whole batch, over all processes."""
        return self._stream.at(step).rows

    def epoch(self, step: int) -> int:
        """Returns the epoch that a step belongs to."""
        return self._stream.at(step).epoch

    def steps_in_epoch(self, epoch: int = 0) -> int:
        """Returns the number of steps of an epoch; epochs differ where clips are carried over."""
        return self._stream.steps_in_epoch(epoch)

    def used_buckets(self) -> list[bucket_tables.Bucket]:
        """Returns the buckets that have clips in the first epoch: the shapes to compile."""
        return [b for b, rows in zip(self._buckets, self._rows_of(0), strict=True) if len(rows)]

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Makes this process's part of the batch of a step, here and now."""
        taken = self._stream.at(step)
        bucket = self._buckets[taken.bucket]
        size = bucket.batch_size // self.process_count
        slots = range(self.process_index * size, (self.process_index + 1) * size)
        rng = lambda slot, purpose: np.random.default_rng(
            (self.seed, step, slot, int(taken.rows[slot]), purpose)
        )
        if self.kind == "video":
            batch = self._videos(bucket, [(int(taken.rows[s]), rng(s, _FRAMES)) for s in slots])
            t = transforms.latent_frames(bucket.num_frames, self.time_stride, self.chunk_frames)
        else:
            batch = self._latents([int(taken.rows[s]) for s in slots])
            t = batch["latent"].shape[1]
        masks = [transforms.frame_mask(t, self.mask_ratios, rng(s, _MASK)) for s in slots]
        drops = [rng(s, _TEXT).random() < self.text_dropout for s in slots]
        return batch | {
            "mask": np.stack(masks),
            "drop_text": np.array(drops, bool),
            "size": np.tile(np.array([[bucket.height, bucket.width]], np.float32), (size, 1)),
            "num_frames": np.full(size, bucket.num_frames, np.int32),
            "row": taken.rows[slots.start : slots.stop].astype(np.int32),
        }

    def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of start_step, start_step + 1, ... without end, made ahead.

        Close the iterator (or drop it) to end the threads and workers.

        Raises:
            RuntimeError: If workers failed three times on one batch, naming its clips.
        """
        grain = _import_grain()
        threads = max(min(self.prefetch, 16), self.num_workers)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        if self.num_workers == 0:
            yield from self._map(grain, self.batch, start_step, options)
            return
        make = "data_pipelines.loader:make_worker"
        args = (self._worker_args,)
        with workers.Pool(self.num_workers, make, args, self.deadline_seconds) as pool:
            call = functools.partial(self._call_worker, pool)
            yield from self._map(grain, call, start_step, options)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.iterate(0)

    def _map(self, grain, function, start_step: int, options):
        steps = grain.MapDataset.range(start_step, start_step + (1 << 40))
        iterator = iter(steps.map(function).to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()

    def _call_worker(self, pool: workers.Pool, step: int) -> dict[str, np.ndarray]:
        """Asks a worker for a batch, and another one if that dies over it, three in all."""
        for attempt in (1, 2, 3):
            try:
                return pool(step)
            except workers.WorkerDied as error:
                if pool.closed:
                    raise
                absl.logging.warning("step %d: %s Attempt %d of 3.", step, error, attempt)
                last = error
        names = [self.reader[int(row)]["id"] for row in self.rows(step)]
        raise RuntimeError(
            f"no worker could make the batch of step {step}: {last} One of these clips may be the "
            f"reason: {', '.join(names)}."
        ) from last

    def _rows_of(self, epoch: int) -> list[np.ndarray]:
        """Returns the rows of each bucket in an epoch."""
        if self._fixed is not None:
            return self._fixed
        numbers = {(b.resolution, b.num_frames, b.aspect): i for i, b in enumerate(self._buckets)}
        index, rows = self.reader.index, [[] for _ in self._buckets]
        if self.kind == "latent":
            names = zip(index["resolution"], index["num_frames"], index["aspect"], strict=True)
            for row, (resolution, num_frames, aspect) in enumerate(names):
                rows[numbers[str(resolution), int(num_frames), str(aspect)]].append(row)
        else:
            facts = (index[k].tolist() for k in ("num_frames", "height", "width"))
            for row, size in enumerate(zip(*facts, strict=True)):
                bucket = self.table.assign(*size, row=row, epoch=epoch, seed=self.seed)
                if bucket is not None:
                    rows[numbers[bucket.resolution, bucket.num_frames, bucket.aspect]].append(row)
        result = [np.array(r, np.int64) for r in rows]
        if self.kind == "latent" or not self.table.is_random:
            self._fixed = result
        return result

    def _videos(self, bucket: bucket_tables.Bucket, samples: list) -> dict[str, np.ndarray]:
        videos, texts, fps = [], [], []
        for row, rng in samples:
            record = self.reader[row]
            videos.append(read_video(record, bucket, self.frame_interval, rng))
            texts.append(record["text"])
            rate = transforms.clip_fps(record["fps"], bucket.num_frames, self.frame_interval)
            fps.append(rate)
        batch = {"video": np.stack(videos), "fps": np.array(fps, np.float32)}
        if self.tokenize is None:
            return batch
        ids_BL, mask_BL = self.tokenize(texts)
        if ids_BL.shape[1] != self.text_tokens:
            raise ValueError(
                f"the tokenizer gives {ids_BL.shape[1]} tokens a text, but text_tokens="
                f"{self.text_tokens}: give both the same length."
            )
        return batch | {"text_ids": ids_BL, "text_mask": mask_BL}

    def _latents(self, rows: list[int]) -> dict[str, np.ndarray]:
        read = [self._read_latent(row) for row in rows]
        stack = lambda name: np.stack([r[name] for r in read]).astype(np.float32)
        width = read[0]["text_emb"].shape[1]
        text_emb_BLE = np.zeros((len(rows), self.text_tokens, width), np.float32)
        mask_BL = np.zeros((len(rows), self.text_tokens), bool)
        for i, record in enumerate(read):
            length = len(record["text_emb"])
            text_emb_BLE[i, :length] = record["text_emb"]
            mask_BL[i, :length] = True
        batch = {"latent": stack("latent"), "latent_std": stack("latent_std")}
        batch |= {"text_emb": text_emb_BLE, "text_mask": mask_BL}
        return batch | {"fps": np.array([r["fps"] for r in read], np.float32)}

    def _read_latent(self, row: int) -> dict:
        """Reads a record, from memory if it was read before and there was room."""
        if row in self._cache:
            return self._cache[row]
        record = self.reader[row]
        kept = {k: record[k] for k in ("latent", "latent_std", "text_emb", "fps")}
        num_bytes = sum(np.asarray(v).nbytes for v in kept.values()) + 1000  # of Python's own
        with self._cache_lock:
            if num_bytes <= self._cache_left:
                self._cache_left -= num_bytes
                self._cache[row] = kept
        return kept

    def _check_batch_sizes(self):
        odd = [b for b in self._buckets if b.batch_size % self.process_count]
        if odd:
            raise ValueError(
                f"batch sizes have to be multiples of process_count={self.process_count}; these "
                f"are not: {self._names(odd)}."
            )

    def _check_latents(self, path):
        index = self.reader.index
        names, counts = np.unique(
            [
                f"{r}/{n}/{a}"
                for r, n, a in zip(
                    index["resolution"], index["num_frames"], index["aspect"], strict=True
                )
            ],
            return_counts=True,
        )
        known = {b.name for b in self._buckets}
        if missing := [
            f"{n}: {c} rows" for n, c in zip(names, counts, strict=True) if n not in known
        ]:
            raise ValueError(
                f"{path} has latents of buckets (resolution/frames/aspect) that `buckets` and "
                f"`aspects` leave out: {', '.join(missing)}. Add them, or encode the clips again."
            )
        longest = int(index["text_length"].max(initial=0))
        if longest > self.text_tokens:
            raise ValueError(
                f"{path} has texts of up to {longest} tokens, but text_tokens={self.text_tokens}: "
                f"use {longest} or more."
            )
        for frames in np.unique(index["num_frames"]):
            expected = transforms.latent_frames(int(frames), self.time_stride, self.chunk_frames)
            found = np.unique(index["latent_frames"][index["num_frames"] == frames])
            if found.tolist() != [expected]:
                raise ValueError(
                    f"{path} has {found.tolist()} latent frames for {frames} frames, but "
                    f"time_stride={self.time_stride} and chunk_frames={self.chunk_frames} make "
                    f"{expected}: use the settings of the VAE that encoded them."
                )

    @staticmethod
    def _names(listed: Sequence[bucket_tables.Bucket]) -> str:
        names = [f"{b.name} (batch {b.batch_size})" for b in listed]
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def read_video(
    record: Mapping,
    bucket: bucket_tables.Bucket,
    frame_interval: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Decodes a clip of a record of kind video for its bucket, uint8 [T, H, W, 3].

    Raises:
        ValueError: If the clip cannot be decoded, naming it.
    """
    try:
        frames = transforms.choose_frames(
            int(record["num_frames"]), bucket.num_frames, frame_interval, rng
        )
        video_THWC = video_io.decode(record["video"], frames.tolist())
    except ValueError as error:
        raise ValueError(f"clip {record['id']!r}: {error}") from error
    return transforms.fit(video_THWC, bucket.height, bucket.width)


def make_worker(args: dict) -> Callable[[int], dict[str, np.ndarray]]:
    """Returns the function of a child process: step -> batch."""
    return Loader(**args).batch


def _import_grain():
    """Imports Grain without its import of JAX, which it can do without."""
    if "jax" in sys.modules or "grain" in sys.modules:
        import grain

        return grain
    level = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)  # it warns of a missing profiler
    sys.modules["jax"] = None
    try:
        import grain
    finally:
        del sys.modules["jax"]
        absl.logging.set_verbosity(level)
    return grain
