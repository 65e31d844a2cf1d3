"""Which records each bucket has in an epoch.

Videos are assigned by `buckets.Table`, where chances are drawn anew in each epoch. Latents stay in
the bucket that they were encoded for; where a clip was encoded for each bucket that it fits, one of
its records is chosen in each epoch, as the videos themselves would have been.
"""

import io

import numpy as np

from data_pipelines.loading import buckets, transforms
from data_pipelines.shards import records

CLIPS = "clips.npz"  # id, num_frames, height, width of the videos, beside latents of every bucket


class Assignment:
    """Epoch -> the rows of each bucket of the table, ascending.

    Args:
        reader: The records.
        table: The buckets.
        seed: Of the draws.
    """

    def __init__(self, reader: records.Reader, table: buckets.Table, seed: int):
        self.reader, self.table, self.seed = reader, table, seed
        names = ((b.resolution, b.num_frames, b.aspect) for b in table.all_buckets())
        self._numbers = {name: i for i, name in enumerate(names)}
        self._is_chosen = reader.meta.get("buckets") == "all"
        self._is_fixed = not table.is_random or (reader.kind == "latent" and not self._is_chosen)
        self._fixed: list[np.ndarray] | None = None

    def __call__(self, epoch: int) -> list[np.ndarray]:
        if self._fixed is not None:
            return self._fixed
        rows: list[list[int]] = [[] for _ in self._numbers]
        if self.reader.kind == "video":
            for row, bucket in self._assigned(epoch, self.reader.index):
                rows[self._numbers[bucket]].append(row)
        elif self._is_chosen:
            self._choose(epoch, rows)
        else:
            for row, bucket in enumerate(_bucket_names(self.reader)):
                rows[self._numbers[bucket]].append(row)
        result = [np.array(sorted(r), np.int64) for r in rows]
        if self._is_fixed:
            self._fixed = result
        return result

    def _assigned(self, epoch, index):
        """(row, name of its bucket) of the clips that have one in an epoch."""
        facts = (index[k].tolist() for k in ("num_frames", "height", "width"))
        for row, size in enumerate(zip(*facts, strict=True)):
            bucket = self.table.assign(*size, row=row, epoch=epoch, seed=self.seed)
            if bucket is not None:
                yield row, (bucket.resolution, bucket.num_frames, bucket.aspect)

    def _choose(self, epoch, rows):
        with np.load(io.BytesIO(self.reader.file(CLIPS))) as columns:
            clips = dict(columns)
        ids = self.reader.index["id"].tolist()
        pairs = zip(ids, _bucket_names(self.reader), strict=True)
        found = {pair: row for row, pair in enumerate(pairs)}
        known = set(ids)
        for clip, bucket in self._assigned(epoch, clips):
            name = str(clips["id"][clip])
            if (name, bucket) in found:
                rows[self._numbers[bucket]].append(found[name, bucket])
            elif name in known:  # else it was left out when the latents were made
                raise ValueError(
                    f"{self.reader.folder} has clip {name!r}, but not for bucket "
                    f"{'/'.join(map(str, bucket))}: encode the clips again with these buckets."
                )


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
    names, counts = np.unique(
        ["/".join(map(str, name)) for name in _bucket_names(reader)], return_counts=True
    )
    known = {b.name for b in table.all_buckets()}
    if missing := [f"{n}: {c} rows" for n, c in zip(names, counts, strict=True) if n not in known]:
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


def _bucket_names(reader: records.Reader) -> list[tuple[str, int, str]]:
    columns = (reader.index[k].tolist() for k in ("resolution", "num_frames", "aspect"))
    return list(zip(*columns, strict=True))
