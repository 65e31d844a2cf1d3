"""Which records each bucket has in an epoch.

Videos are assigned by `buckets.Table`, where chances are drawn anew in each epoch. Latents stay in
the bucket that they were encoded for; where a clip was encoded for each bucket that it fits, one of
its records is chosen in each epoch, as the videos themselves would have been.
"""

import collections
import functools
import io
import threading

import numpy as np

from data_pipelines.loading import buckets, resolutions, transforms
from data_pipelines.shards import records

# id, num_frames, height, width of the videos, beside latents of every bucket; where these have
# grown, meta.json names the file under "clips"
CLIPS = "clips.npz"
_BUCKET = ("resolution", "num_frames", "aspect")
_FACTS = ("num_frames", "height", "width")
_EPOCHS = 4  # kept in memory


class Assignment:
    """Epoch -> the rows of each bucket of the table, ascending.

    `is_fixed` tells whether they are the same in each epoch.

    Args:
        reader: The records.
        table: The buckets.
        seed: Of the draws.
    """

    def __init__(self, reader: records.Reader, table: buckets.Table, seed: int):
        self.reader, self.table, self.seed = reader, table, seed
        self._buckets = table.all_buckets()
        self._is_chosen = reader.meta.get("buckets") == "all"
        self._is_drawn = reader.kind == "video" or self._is_chosen
        self.is_fixed = not (self._is_drawn and table.is_random)
        self._lock = threading.RLock()
        self._epochs: collections.OrderedDict[int, list[np.ndarray]] = collections.OrderedDict()
        self._asked: collections.Counter[int] = collections.Counter()  # epoch: clips drawn apart
        self._aspects = functools.cache(self._find_aspects)
        self._candidates = functools.lru_cache(maxsize=1)(self._find_candidates)

    def __call__(self, epoch: int) -> list[np.ndarray]:
        epoch = 0 if self.is_fixed else epoch
        with self._lock:
            if epoch not in self._epochs:
                self._epochs[epoch] = self._sort(epoch)
                del self._asked[epoch]
            self._epochs.move_to_end(epoch)
            if len(self._epochs) > _EPOCHS:
                self._epochs.popitem(last=False)
            return self._epochs[epoch]

    def rows(self, epoch: int, bucket: int) -> np.ndarray:
        """Returns the rows of one bucket; of an old epoch only clips that may be in it are drawn.

        A bucket with few clips fills a batch from many epochs, each of which would take seconds.
        """
        with self._lock:
            if self.is_fixed or epoch in self._epochs:
                return self(epoch)[bucket]
            clips_M = self._candidates(bucket)
            self._asked[epoch] += len(clips_M)
            if 2 * self._asked[epoch] > len(self._clips["height"]):
                return self(epoch)[bucket]  # all together is less work
            rows_M, numbers_M = self._draw(epoch, clips_M)
            return np.sort(rows_M[numbers_M == bucket])

    def _sort(self, epoch: int) -> list[np.ndarray]:
        if self._is_drawn:
            rows_M, numbers_M = self._draw(epoch, np.arange(len(self._clips["height"])))
        else:
            numbers_M = bucket_numbers(self.reader, self.table)
            rows_M = np.arange(len(numbers_M))
        if self._is_chosen:
            order_M = np.argsort(rows_M, kind="stable")
            rows_M, numbers_M = rows_M[order_M], numbers_M[order_M]
        rows_M = rows_M.astype(np.int32 if len(self.reader) < 2**31 else np.int64)
        ends = np.cumsum(np.bincount(numbers_M, minlength=len(self._buckets)))
        return np.split(rows_M[np.argsort(numbers_M, kind="stable")], ends[:-1])

    def _draw(self, epoch: int, clips_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows_M, numbers_M) of those of the clips that have a bucket in an epoch."""
        facts = (self._clips[name][clips_N] for name in _FACTS)
        numbers_N = self.table.assign_all(*facts, clips_N, epoch=epoch, seed=self.seed)
        placed_M = np.flatnonzero(numbers_N >= 0)
        clips_M, numbers_M = clips_N[placed_M], numbers_N[placed_M]
        return self._choose(clips_M, numbers_M) if self._is_chosen else (clips_M, numbers_M)

    def _choose(self, clips_M, numbers_M):
        """(rows, numbers) of the latents of clips in buckets; some have none."""
        code_of, keys_N, rows_N = self._latents
        keys_M = code_of[clips_M] * len(self._buckets) + numbers_M
        place_M = np.maximum(np.searchsorted(keys_N, keys_M, side="right") - 1, 0)
        is_found_M = keys_N[place_M] == keys_M
        missing = np.flatnonzero(~is_found_M & (code_of[clips_M] >= 0))
        if len(missing):  # else the clip was left out when the latents were made
            name = str(self._clips["id"][clips_M[missing[0]]])
            raise ValueError(
                f"{self.reader.folder} has clip {name!r}, but not for bucket "
                f"{self._buckets[numbers_M[missing[0]]].name}: encode the clips again with these "
                "buckets."
            )
        return rows_N[place_M[is_found_M]], numbers_M[is_found_M]

    @functools.cached_property
    def _clips(self) -> dict[str, np.ndarray]:
        """Columns of the clips that are drawn: the records, or the videos that they came from."""
        if not self._is_chosen:
            return self.reader.index
        with np.load(io.BytesIO(self.reader.file(self.reader.meta.get("clips", CLIPS)))) as columns:
            return dict(columns)

    @functools.cached_property
    def _latents(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(code of each clip or -1, code * buckets + bucket of the records, sorted, their rows)."""
        names, code_N = np.unique(self.reader.index["id"], return_inverse=True)
        wanted = self._clips["id"]
        place = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
        code_of = np.where(names[place] == wanted, place, -1)
        numbers_N = bucket_numbers(self.reader, self.table)
        assert numbers_N.min() >= 0  # `check_latents` has refused others
        keys_N = code_N * len(self._buckets) + numbers_N
        rows_N = np.argsort(keys_N, kind="stable")
        return code_of, keys_N[rows_N], rows_N

    def _find_candidates(self, bucket: int) -> np.ndarray:
        """Returns the clips that can be given a bucket in some epoch."""
        wanted = self._buckets[bucket]
        aspects = self.table.aspects[wanted.resolution]
        clips_M = np.flatnonzero(self._aspects(aspects) == aspects.index(wanted.aspect))
        facts = (self._clips[name][clips_M] for name in _FACTS)
        return clips_M[self.table.fits(wanted, *facts)]

    def _find_aspects(self, aspects: tuple[str, ...]) -> np.ndarray:
        return resolutions.closest_aspects(self._clips["height"], self._clips["width"], aspects)


def check_latents(
    reader: records.Reader,
    table: buckets.Table,
    *,
    text_tokens: int,
    time_stride: int,
    chunk_frames: int | None,
):
    """Refuses latents that the arguments of a loader do not fit.

    Raises:
        ValueError: If there are latents of other buckets, longer texts, or more or fewer latent
            frames.
    """
    strange = np.flatnonzero(bucket_numbers(reader, table) < 0)
    if len(strange):
        columns = (reader.index[k][strange].tolist() for k in _BUCKET)
        counts = collections.Counter("/".join(map(str, k)) for k in zip(*columns, strict=True))
        missing = [f"{name}: {count} rows" for name, count in sorted(counts.items())]
        raise ValueError(
            f"{reader.folder} has latents of buckets (resolution/frames/aspect) that `buckets` and "
            f"`aspects` leave out: {', '.join(missing)}. Add them, or encode the clips again."
        )
    index = reader.index
    longest = int(index["text_length"].max(initial=0))
    if longest > text_tokens:
        raise ValueError(
            f"{reader.folder} has texts of up to {longest} tokens, but text_tokens={text_tokens}: "
            f"use {longest} or more."
        )
    for frames in np.unique(index["num_frames"]):
        expected = transforms.latent_frames(int(frames), time_stride, chunk_frames)
        found = np.unique(index["latent_frames"][index["num_frames"] == frames])
        if found.tolist() != [expected]:
            raise ValueError(
                f"{reader.folder} has {found.tolist()} latent frames for {frames} frames, but "
                f"time_stride={time_stride} and chunk_frames={chunk_frames} make {expected}: use "
                "the settings of the VAE that encoded them."
            )


def bucket_numbers(reader: records.Reader, table: buckets.Table) -> np.ndarray:
    """Returns the number in `table.all_buckets()` of each record of latents; -1: of no bucket."""
    resolution_N, num_frames_N, aspect_N = (reader.index[k] for k in _BUCKET)
    numbers_N = np.full(len(reader), -1, np.int32)
    known = collections.defaultdict(list)
    for number, bucket in enumerate(table.all_buckets()):
        known[bucket.resolution, bucket.aspect].append((bucket.num_frames, number))
    of_resolution = functools.cache(lambda name: np.flatnonzero(resolution_N == name))
    for (resolution, aspect), lengths in known.items():
        rows_M = of_resolution(resolution)
        rows_M = rows_M[aspect_N[rows_M] == aspect]
        for num_frames, number in lengths:
            numbers_N[rows_M[num_frames_N[rows_M] == num_frames]] = number
    return numbers_N
