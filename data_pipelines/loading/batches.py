"""One sample from a record, and batches from samples.

A sample of a video is {"video": uint8 [T, H, W, 3], "text": str, "fps": float}; one of a latent has
"latent", "latent_std" (float16 [t, h, w, c], the latter empty where the latent is a sample of its
posterior), "text_emb" (float16 [L, E], true length) and "fps".
"""

import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from data_pipelines.loading import buckets, padded, transforms
from data_pipelines.media import video_io
from data_pipelines.shards import records
from data_pipelines.workers import children, guard

DECODER = "data_pipelines.loading.batches:make_decoder"
_DECODER_BYTES = 8 << 30  # of memory: as much as one clip may fill with pixels
_LATENTS = ("latent", "latent_std")
_FRAMES = 10  # purpose of random numbers: which frames


def video_sample(
    content: bytes | memoryview, bucket: buckets.Bucket, frame_interval: int, seed: tuple[int, ...]
) -> dict:
    """Decodes a record of kind video for a bucket.

    Args:
        content: The record.
        bucket: The size of the sample.
        frame_interval: Every how many frames one is taken.
        seed: Of the choice of frames.

    Raises:
        ValueError: If the clip cannot be decoded, naming it.
    """
    record = records.decode("video", content)
    try:
        frames = transforms.choose_frames(
            int(record["num_frames"]),
            bucket.num_frames,
            frame_interval,
            np.random.default_rng(seed),
        )
        fit = functools.partial(
            transforms.fit,
            height=bucket.height,
            width=bucket.width,
            is_image=bucket.num_frames == 1,
        )
        video_THWC = video_io.decode(record["video"], frames.tolist(), each=fit)
    except (ValueError, MemoryError) as error:
        why = str(error) or "decoding needs too much memory."
        raise ValueError(f"clip {record['id']!r}: {why}") from error
    fps = transforms.clip_fps(record["fps"], bucket.num_frames, frame_interval)
    return {"video": video_THWC, "text": record["text"], "fps": fps}


def decoders(count: int, deadline_seconds: float) -> children.Pool:
    """Returns children that call `video_sample` with tuples of its arguments."""
    return children.Pool(
        count, DECODER, deadline_seconds=deadline_seconds, memory_bytes=_DECODER_BYTES
    )


def make_decoder() -> Callable[[tuple], dict]:
    """Returns what a child does; it can do nothing else from now on."""
    guard.enter(_DECODER_BYTES)
    return lambda task: video_sample(*task)


class Samples:
    """Makes samples in this process.

    Args:
        reader: The records.
        frame_interval: Every how many frames one is taken.
        seed: Of the choice of frames.
        cache_bytes: Memory for latents, kept after they are first read.
    """

    def __init__(self, reader: records.Reader, frame_interval: int, seed: int, cache_bytes: int):
        self.reader, self.frame_interval, self.seed = reader, frame_interval, seed
        self._cache: dict[int, dict] = {}
        self._cache_left, self._cache_lock = cache_bytes, threading.Lock()
        self._local = threading.local()

    def __call__(self, task: tuple[int, buckets.Bucket, int, int]) -> dict:
        """Returns the sample of (row, bucket, step, slot).

        The arrays of a latent may be overwritten by the next call in the same thread.

        Raises:
            ValueError: If the record is damaged or cannot be decoded, naming it.
        """
        if self.reader.kind == "latent":
            return self._latent(task[0])
        return video_sample(self.reader.content(task[0]), *self.how(task))

    def how(self, task: tuple[int, buckets.Bucket, int, int]) -> tuple:
        """Returns what `video_sample` needs besides the record."""
        row, bucket, step, slot = task
        return bucket, self.frame_interval, (self.seed, step, slot, row, _FRAMES)

    def _latent(self, row: int) -> dict:
        """A sample, from memory if it was read before and there was room."""
        if row in self._cache:
            return self._cache[row]
        size = int(self.reader.index["size"][row])
        num_bytes = size + 1000  # of Python's own
        with self._cache_lock:
            is_kept = num_bytes <= self._cache_left
            self._cache_left -= num_bytes * is_kept
        buffer = None if is_kept else self._buffer(size)
        record = records.decode("latent", self.reader.content(row, buffer))
        sample = {k: record[k] for k in ("latent", "latent_std", "text_emb", "fps")}
        if is_kept:
            self._cache[row] = sample
        return sample

    def _buffer(self, size: int) -> np.ndarray:
        """Memory of this thread, used again for each record: new memory costs more than reading."""
        if len(getattr(self._local, "buffer", b"")) < size:
            self._local.buffer = np.empty(size, np.uint8)
        return self._local.buffer


def stack_videos(samples: Sequence[Mapping], tokenize, text_tokens: int) -> dict[str, np.ndarray]:
    """Returns `video`, `fps` and, with a tokenizer, `text_ids` and `text_mask`; see `loader`."""
    fps_B = np.array([sample["fps"] for sample in samples], np.float32)
    batch = {"video": np.stack([sample["video"] for sample in samples]), "fps": fps_B}
    if tokenize is None:
        return batch
    ids_BL, mask_BL = tokenize([sample["text"] for sample in samples])
    if ids_BL.shape[1] != text_tokens:
        raise ValueError(
            f"the tokenizer gives {ids_BL.shape[1]} tokens a text, but text_tokens={text_tokens}: "
            "give both the same length."
        )
    return batch | {"text_ids": ids_BL, "text_mask": mask_BL}


def stack_latents(
    samples: Iterable[Mapping], size: int, text_tokens: int, memory: padded.Pool
) -> dict[str, np.ndarray]:
    """Returns `latent`, `latent_std`, `text_emb`, `text_mask` and `fps`; see `loader`.

    Each array is copied once, from its record to its place in the batch, and stays float16:
    widening on the device is exact, and there are half as many bytes to move.
    """
    batch: dict[str, np.ndarray] = {}
    for i, sample in enumerate(samples):  # made one by one, so that each is still in the cache
        text_emb_LE = sample["text_emb"]
        length, width = text_emb_LE.shape
        if not batch:
            # zeros that nothing is written to cost nothing
            batch = {k: np.zeros((size, *sample["latent"].shape), np.float16) for k in _LATENTS}
            texts = memory.take(size, text_tokens, width)
            batch["text_mask"] = np.zeros((size, text_tokens), bool)
            batch["fps"] = np.zeros(size, np.float32)
        batch["latent"][i], batch["fps"][i] = sample["latent"], sample["fps"]
        if sample["latent_std"].size:
            batch["latent_std"][i] = sample["latent_std"]
        texts.put(i, text_emb_LE)
        batch["text_mask"][i, :length] = True
    return batch | {"text_emb": memory.lend(texts, size)}
