"""Batches of NumPy arrays from a data set; the batch of a step is a function of (seed, step).

Position is one integer, the number of the step. A batch, its order and every random choice in it
are the same for any number of processes, workers and threads, and after any restart.

A batch is a dict of the local part of B samples:

- video data: `video` uint8 [B, T, H, W, 3]; with a tokenizer `text_ids` int32 [B, L].
- latent data: `latent`, `latent_std` float16 [B, t, h, w, c]; `text_emb` float16 [B, L, E].
- both: `text_mask` bool [B, L] (not without text), `mask` bool [B, t] (True: the frame is
  generated), `drop_text` bool [B] (train without caption), `fps` float32 [B] (120: image), `size`
  float32 [B, 2] (height and width of the bucket), `num_frames` int32 [B], `row` int32 [B], `slot`
  int32 [B] (the place in the batch of all processes).

A record whose digest is wrong, or that cannot be decoded, is replaced by another one of its bucket:
which one is a function of (seed, step, place in the batch), so that the stream is still the same on
every start. So is one whose read hung or killed its worker three times. `Loader.bad_records` holds
them with the reason; more than a small share ends the run.

Videos are decoded in children that can do nothing else (`batches.make_decoder`). JAX stays out: it
is closed to the children, and to Grain, which would import it, unless the program has it already.
"""

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import absl.logging
import numpy as np

from data_pipelines.loading import (
    assignment,
    batches,
    counts,
    mixture,
    padded,
    reads,
    stream,
    transforms,
)
from data_pipelines.loading import buckets as bucket_tables

_FORMAT = 1  # of the stream: raise it when equal arguments give other batches
_MASK, _TEXT, _SUBSTITUTE = 11, 12, 13  # purposes of random numbers
_SUBSTITUTES = 100  # tried for one place in a batch


class Loader:
    """The batches of a data set.

    Args:
        path: Folder of a data set (`data_pipelines.shards.records`), or several (`mixture`).
        buckets: {resolution: {frames: (keep, batch_size) or ((keep, consider), batch_size)}}, see
            `data_pipelines.loading.buckets`. Batch sizes count all processes. Of latents, whose
            bucket was chosen when they were encoded, the chances are not drawn again.
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
        num_workers: Child processes that decode videos; 0: threads of this process do. Latents need
            no decoding, and are read by threads.
        prefetch: Batches made ahead.
        cache_bytes: Memory for latents, kept after they are first read.
        deadline_seconds: For one record; a worker that takes longer is replaced.
        bad_limit: The largest share of bad records.
        bad_list: A file that gets a line for each bad record.
        counts_file: A file that keeps how many rows each bucket has in each epoch, where chances
            are drawn: a later start does not have to draw all epochs before its own again.
            Processes may share it; process 0 writes it, from the first iteration on.

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
        deadline_seconds: float = 60.0,
        bad_limit: float = 0.01,
        bad_list: str | os.PathLike | None = None,
        counts_file: str | os.PathLike | None = None,
    ):
        transforms.check_mask_ratios(mask_ratios)
        if not 0 <= text_dropout <= 1:
            raise ValueError(f"text_dropout={text_dropout} has to be in 0..1.")
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index={process_index} is not in 0..{process_count - 1}.")
        if min(num_workers, prefetch) < 0:
            raise ValueError(f"num_workers={num_workers} and prefetch={prefetch}: 0 or more.")
        if not 0 <= bad_limit <= 1:
            raise ValueError(f"bad_limit={bad_limit} has to be in 0..1.")
        self.reader = mixture.read(path)
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
            assignment.check_latents(
                self.reader,
                self.table,
                text_tokens=text_tokens,
                time_stride=time_stride,
                chunk_frames=chunk_frames,
            )
        self.bad_records = reads.BadRecords(self.num_rows, bad_limit, str(path), bad_list)
        self._samples = batches.Samples(self.reader, frame_interval, seed, cache_bytes)
        self._reads = reads.Reads(self.reader, deadline_seconds, self.bad_records)
        self._memory = padded.Pool()
        self._rows_of = mixture.assign(self.reader, self.table, seed)
        sizes = [b.batch_size for b in self._buckets]
        self._counts: counts.Counts | None = None
        if counts_file is not None and not self._rows_of.is_fixed:
            self._counts = counts.Counts(counts_file, self.fingerprint)
        self._stream = stream.Stream(
            self._rows_of, sizes, seed, rows_in=self._rows_of.rows, counts=self._counts
        )
        if not any(self._stream.counts(epoch).any() for epoch in range(3)):
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
        num_clips = self._stream.counts(0)
        return [b for b, count in zip(self._buckets, num_clips, strict=True) if count]

    def clip_ids(self, step: int) -> list[str]:
        """Returns the names of a step's clips, over all processes."""
        return [str(self.reader.index["id"][row]) for row in self.rows(step)]

    def example(self, bucket: bucket_tables.Bucket) -> dict[str, np.ndarray]:
        """Returns a batch of one clip with the shapes and types of a bucket's, not its values.

        Of latents a record is read, because their channels stand in no index.
        """
        t = transforms.latent_frames(bucket.num_frames, self.time_stride, self.chunk_frames)
        if self.kind == "video":
            shape = bucket.num_frames, bucket.height, bucket.width, 3
            sample = {"video": np.zeros(shape, np.uint8), "text": "", "fps": 24.0}
            batch = batches.stack_videos([sample], self.tokenize, self.text_tokens)
        else:
            row = self._rows_of(0)[self._buckets.index(bucket)][0]
            sample = self._samples((int(row), bucket, 0, 0))
            batch = batches.stack_latents([sample], 1, self.text_tokens, self._memory)
        batch |= {"mask": np.ones((1, t), bool), "drop_text": np.zeros(1, bool)}
        batch |= {"slot": np.zeros(1, np.int32), "row": np.zeros(1, np.int32)}
        return batch

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Makes this process's part of the batch of a step, here and now, without deadlines."""
        return self._make(step, self._samples)

    def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of start_step, start_step + 1, ... without end, made ahead.

        Close the iterator (or drop it) to end the threads and workers.

        Raises:
            RuntimeError: If too many records are bad, naming them.
        """
        if self._counts is not None and self.process_index == 0:
            self._counts.write()  # not before: the folder may turn out to be another run's
        grain, threads = _import_grain(), min(self.prefetch, 16)
        if self.num_workers == 0 or self.kind == "latent":
            yield from self._map(grain, self._in_thread, start_step, threads)
            return
        with batches.decoders(self.num_workers, self.deadline_seconds) as pool:
            read = lambda task: self._reads.in_child(pool, task[0], self._samples.how(task))
            make_batch = functools.partial(self._make, read=read)
            yield from self._map(grain, make_batch, start_step, max(threads, self.num_workers))

    def _in_thread(self, step: int) -> dict[str, np.ndarray]:
        self._stream.at(step)  # may take long in a large data set, and is no read
        return self._reads.in_thread(functools.partial(self._make, step), self._samples)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.iterate(0)

    def _map(self, grain, function, start_step: int, threads: int):
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        steps = grain.MapDataset.range(start_step, start_step + (1 << 40))
        iterator = iter(steps.map(function).to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()

    def _make(self, step: int, read: Callable[[tuple], dict]) -> dict[str, np.ndarray]:
        """Makes the batch of a step; `read` turns (row, bucket, step, slot) into a sample."""
        taken = self._stream.at(step)
        bucket = self._buckets[taken.bucket]
        size = bucket.batch_size // self.process_count
        slots = range(self.process_index * size, (self.process_index + 1) * size)
        rows: list[int] = []
        samples = (self._sample(taken, bucket, step, slot, read, rows) for slot in slots)
        if self.kind == "video":
            batch = batches.stack_videos(list(samples), self.tokenize, self.text_tokens)
        else:
            batch = batches.stack_latents(samples, size, self.text_tokens, self._memory)
        self.bad_records.count_read(size)
        t = transforms.latent_frames(bucket.num_frames, self.time_stride, self.chunk_frames)
        rng = lambda slot, purpose: np.random.default_rng(
            (self.seed, step, slot, int(taken.rows[slot]), purpose)
        )
        # a generator takes 10 us to make: none where nothing is drawn
        masks_Bt, drops_B = np.ones((size, t), bool), np.zeros(size, bool)
        for i, slot in enumerate(slots):
            if t > 1 and self.mask_ratios:
                masks_Bt[i] = transforms.frame_mask(t, self.mask_ratios, rng(slot, _MASK))
            if self.text_dropout > 0:
                drops_B[i] = rng(slot, _TEXT).random() < self.text_dropout
        return batch | {
            "mask": masks_Bt,
            "drop_text": drops_B,
            "size": np.tile(np.array([[bucket.height, bucket.width]], np.float32), (size, 1)),
            "num_frames": np.full(size, bucket.num_frames, np.int32),
            "slot": np.array(slots, np.int32),
            "row": np.array(rows, np.int32),
        }

    def _sample(self, taken, bucket, step, slot, read, rows: list[int]) -> dict:
        """The sample of a place in a batch, or of the first good substitute; adds to `rows`."""
        for row in self._candidates(taken, step, slot):
            if row in self.bad_records:
                continue
            try:
                sample = read((row, bucket, step, slot))
            except ValueError as error:
                self.bad_records.add(row, str(error))
                continue
            rows.append(row)
            return sample
        raise RuntimeError(
            f"{_SUBSTITUTES} records of bucket {bucket.name}, drawn to replace a bad one in step "
            f"{step}, are bad too: {' '.join(list(self.bad_records.values())[:5])}"
        )

    def _candidates(self, taken: stream.Step, step: int, slot: int) -> Iterator[int]:
        yield int(taken.rows[slot])
        rows = self._stream.rows(taken.epoch, taken.bucket)
        rng = np.random.default_rng((self.seed, step, slot, _SUBSTITUTE))
        yield from rng.choice(rows, _SUBSTITUTES).tolist()

    def _check_batch_sizes(self):
        odd = [b for b in self._buckets if b.batch_size % self.process_count]
        if odd:
            raise ValueError(
                f"batch sizes have to be multiples of process_count={self.process_count}; these "
                f"are not: {self._names(odd)}."
            )

    @staticmethod
    def _names(listed: Sequence[bucket_tables.Bucket]) -> str:
        names = [f"{b.name} (batch {b.batch_size})" for b in listed]
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


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
