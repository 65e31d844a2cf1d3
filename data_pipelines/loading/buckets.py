"""Buckets: the static shapes that batches may have, and which of them a clip goes to.

A bucket is (resolution, number of frames, aspect). The rule of assignment is that of Open-Sora 1.2,
to the last random draw. A bucket table reads

    {resolution: {num_frames: (keep, batch_size) or ((keep, consider), batch_size)}}

where `consider` is the chance that this length is looked at for a clip (else a shorter one is), and
`keep` the chance that a clip stays at this resolution once a length is chosen (else it goes to a
smaller resolution). One frame means images. `(0.0, None)` takes no clip but passes long ones down.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.loading import draws, resolutions

_FRAME_NAMES = {"1x": 51, "2x": 102, "4x": 204, "8x": 408, "16x": 816}
_FRAME_NAMES |= {"2s": 51, "4s": 102, "8s": 204, "16s": 408, "32s": 816}
MIN_PIXEL_SHARE = 0.8  # a clip may be enlarged this little
_CHUNK = 1 << 16  # clips that are placed at once
# Why a clip is in no bucket; what stands later came nearer to one.
REASONS = (
    *("too few pixels", "no bucket of its kind", "too short", "keep is 0"),
    *("length not drawn", "not kept by the draw"),
)
_SMALL, _KIND, _SHORT, _ZERO, _LENGTH, _DRAW = range(len(REASONS))


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One static shape. `batch_size` counts all processes."""

    resolution: str
    num_frames: int
    aspect: str
    height: int
    width: int
    batch_size: int | None

    @property
    def name(self) -> str:
        """As "32/17/1.00", for messages and metrics."""
        return f"{self.resolution}/{self.num_frames}/{self.aspect}"


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One (resolution, frames) of the table; `ordinal` numbers them from large to small."""

    num_frames: int
    keep: float
    consider: float | None
    batch_size: int | None
    ordinal: int


def parse_num_frames(text: str | int) -> int:
    """Reads a number of frames, or the names 1x 2x 4x 8x 16x, 2s 4s 8s 16s 32s (51 to 816)."""
    if text in _FRAME_NAMES:
        return _FRAME_NAMES[text]
    if str(text).isdigit() and int(text) > 0:
        return int(text)
    raise ValueError(
        f"num_frames={text!r} is neither a number above 0 nor one of {', '.join(_FRAME_NAMES)}."
    )


class Table:
    """A bucket table, checked, with the assignment of clips.

    Args:
        buckets: See the module. Numbers of frames may be strings, as in JSON.
        aspects: Only these aspects, or all.
        frame_interval: Every how many frames of a clip one is taken.

    Raises:
        ValueError: If a name or a number is wrong, naming the entry.
    """

    def __init__(
        self,
        buckets: Mapping[str, Mapping[int, tuple]],
        aspects: Sequence[str] | None = None,
        frame_interval: int = 1,
    ):
        if frame_interval < 1:
            raise ValueError(f"frame_interval={frame_interval} has to be 1 or more.")
        if not buckets or not any(buckets.values()):
            raise ValueError(
                "the bucket table is empty: give {resolution: {frames: (keep, size)}}."
            )
        self.frame_interval = frame_interval
        self.aspects: dict[str, tuple[str, ...]] = {}
        self.entries: dict[str, list[_Entry]] = {}
        ordinal = 0
        for resolution in sorted(buckets, key=resolutions.pixels, reverse=True):
            known = resolutions.sizes(resolution)
            kept = tuple(k for k in known if aspects is None or k in aspects)
            if not kept:
                raise ValueError(
                    f"none of aspects={list(aspects)} is in resolution {resolution}, which has "
                    f"{', '.join(known)}."
                )
            self.aspects[resolution] = kept
            self.entries[resolution] = []
            rows = {int(frames): value for frames, value in buckets[resolution].items()}
            for frames in sorted(rows, reverse=True):
                self.entries[resolution].append(_entry(resolution, frames, rows[frames], ordinal))
                ordinal += 1
        self._buckets = self._make_buckets()
        self._number_type = np.int16 if len(self._buckets) < 2**15 else np.int32
        self._first = {}  # (resolution, frames): the number of its first bucket
        for number, made in enumerate(self._buckets):
            self._first.setdefault((made.resolution, made.num_frames), number)
        self.num_buckets = sum(len(v) * len(self.aspects[k]) for k, v in self.entries.items())
        self.is_random = any(
            0 < e.keep < 1 or e.consider is not None for v in self.entries.values() for e in v
        )

    def all_buckets(self) -> list[Bucket]:
        """Returns every bucket that can hold clips, from large to small."""
        return list(self._buckets)

    def assign(
        self, num_frames: int, height: int, width: int, *, row: int, epoch: int, seed: int
    ) -> Bucket | None:
        """Returns the bucket of a clip in this epoch, or None; see `assign_all`."""
        return self.place(num_frames, height, width, row=row, epoch=epoch, seed=seed)[0]

    def place(
        self, num_frames: int, height: int, width: int, *, row: int, epoch: int, seed: int
    ) -> tuple[Bucket | None, str]:
        """Returns the bucket of `assign` and "", or None and one of REASONS; see `place_all`."""
        facts = (np.array([fact]) for fact in (num_frames, height, width))
        number_1, reason_1 = self.place_all(*facts, np.array([row]), epoch=epoch, seed=seed)
        if number_1[0] >= 0:
            return self._buckets[number_1[0]], ""
        return None, REASONS[reason_1[0]]

    def assign_all(self, *facts_N, epoch: int, seed: int) -> np.ndarray:
        """Returns the bucket of each clip in this epoch; the arguments are those of `place_all`.

        The rule of Open-Sora 1.2: resolutions from large to small, at each the longest length that
        is shorter than the clip; one generator a (row, length), seeded with
        seed + epoch + row * num_buckets + ordinal.

        Returns:
            Numbers in `all_buckets`, int16 (int32 of very many); -1: left out of the epoch.
        """
        return self.place_all(*facts_N, epoch=epoch, seed=seed)[0]

    def place_all(
        self,
        num_frames_N: np.ndarray,
        height_N: np.ndarray,
        width_N: np.ndarray,
        rows_N: np.ndarray,
        *,
        epoch: int,
        seed: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of `assign_all`, and why a clip that has none (-1) has none.

        Resolutions may refuse a clip for different reasons: the one by which it came nearest to a
        bucket is told.

        Args:
            num_frames_N: Of each clip; 1 is an image, and goes to buckets of one frame only.
            height_N: Of each clip in pixels.
            width_N: Of each clip in pixels.
            rows_N: The numbers of the clips in the data set.
            epoch: From 0. Draws differ from epoch to epoch.
            seed: Of the run.

        Returns:
            (numbers_N, reasons_N); reasons are numbers in REASONS, int8.

        Raises:
            ValueError: If the seed is negative or so large that a draw's has more than 64 bits.
        """
        last = seed + epoch + (int(rows_N.max(initial=0)) + 1) * self.num_buckets
        if self.is_random and not (seed + epoch >= 0 and last < 2**64):
            raise ValueError(f"seed={seed} has to be 0 or more, and in 64 bits with the draws.")
        numbers_N = np.full(len(rows_N), -1, self._number_type)
        reasons_N = np.full(len(rows_N), _SMALL, np.int8)
        for start in range(0, len(rows_N), _CHUNK):
            part = slice(start, start + _CHUNK)
            facts = (fact_N[part] for fact_N in (num_frames_N, height_N, width_N))
            first_N = rows_N[part].astype(np.uint64) * np.uint64(self.num_buckets)
            first_N += np.uint64((seed + epoch) if self.is_random else 0)
            self._place(*facts, first_N, numbers_N[part], reasons_N[part])
        return numbers_N, reasons_N

    def _place(self, num_frames_N, height_N, width_N, seeds_N, numbers_N, reasons_N):
        """Fills in the last two; `seeds_N` are of ordinal 0. Reasons beside buckets say nothing."""
        open_N = np.arange(len(seeds_N))  # clips without a bucket so far
        for resolution, entries in self.entries.items():
            here_N = open_N[_is_large(resolution, height_N[open_N], width_N[open_N])]
            why_N = np.full(len(seeds_N), _KIND, np.int8)
            wait_N = here_N  # those for which no length is chosen so far
            for entry in entries:
                frames_N = num_frames_N[wait_N]
                fits_N = self._is_long(entry.num_frames, frames_N)
                if entry.num_frames > 1:
                    short_N = wait_N[~fits_N & (frames_N != 1)]
                    why_N[short_N] = np.maximum(why_N[short_N], _SHORT)
                fits_N = np.flatnonzero(fits_N)
                turn = 0
                if entry.consider is not None and entry.num_frames > 1:
                    drawn_N = self._draw(seeds_N[wait_N[fits_N]], entry, turn)
                    why_N[wait_N[fits_N]] = _LENGTH
                    fits_N, turn = fits_N[drawn_N <= entry.consider], 1
                chosen_N = wait_N[fits_N]
                wait_N = np.delete(wait_N, fits_N)
                if entry.keep == 0:
                    why_N[chosen_N] = _ZERO
                    continue
                if entry.keep < 1:
                    kept_N = self._draw(seeds_N[chosen_N], entry, turn) < entry.keep
                    why_N[chosen_N] = _DRAW
                    chosen_N = chosen_N[kept_N]
                numbers_N[chosen_N] = self._first[resolution, entry.num_frames]
                numbers_N[chosen_N] += resolutions.closest_aspects(
                    height_N[chosen_N], width_N[chosen_N], self.aspects[resolution]
                )
            reasons_N[here_N] = np.maximum(reasons_N[here_N], why_N[here_N])
            open_N = open_N[numbers_N[open_N] < 0]

    @staticmethod
    def _draw(seeds_N, entry, turn):
        # an image is accepted below keep, which is never reached at keep = 1
        return draws.random(seeds_N + np.uint64(entry.ordinal), turn)

    def fitting(
        self, num_frames_N: np.ndarray, height_N: np.ndarray, width_N: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (clips_M, numbers_M) of every bucket that a clip can be given in some epoch.

        They are sorted by the place of the clip in the arguments, and then from large to small.
        """
        pairs = [np.empty((2, 0), np.int64)]
        for resolution, entries in self.entries.items():
            large_N = _is_large(resolution, height_N, width_N).nonzero()[0]
            names, size_N = self.aspects[resolution], (height_N[large_N], width_N[large_N])
            aspect_N = resolutions.closest_aspects(*size_N, names).astype(np.int64)
            for entry in entries:
                # an image is not asked whether its length is considered
                if entry.keep > 0 and (entry.consider != 0 or entry.num_frames == 1):
                    fits_N = self._is_long(entry.num_frames, num_frames_N[large_N])
                    numbers_N = self._first[resolution, entry.num_frames] + aspect_N[fits_N]
                    pairs.append(np.stack([large_N[fits_N], numbers_N]))
        clips_M, numbers_M = np.concatenate(pairs, axis=1)
        order_M = np.lexsort((numbers_M, clips_M))
        return clips_M[order_M], numbers_M[order_M]

    def fits(
        self, bucket: Bucket, num_frames_N: np.ndarray, height_N: np.ndarray, width_N: np.ndarray
    ) -> np.ndarray:
        """Tells of each clip whether it is large and long enough for a bucket, whatever aspect."""
        is_large_N = _is_large(bucket.resolution, height_N, width_N)
        return is_large_N & self._is_long(bucket.num_frames, num_frames_N)

    def _is_long(self, num_frames: int, clip_frames_N: np.ndarray) -> np.ndarray:
        """Tells of each clip whether a length takes it: an image is for one frame only."""
        if num_frames == 1:
            return clip_frames_N == 1
        return clip_frames_N > num_frames * self.frame_interval

    def _make_buckets(self) -> list[Bucket]:
        return [
            Bucket(
                *(resolution, entry.num_frames, aspect),
                *resolutions.sizes(resolution)[aspect],
                entry.batch_size,
            )
            for resolution, entries in self.entries.items()
            for entry in entries
            if entry.keep > 0
            for aspect in self.aspects[resolution]
        ]


def _is_large(resolution: str, height_N: np.ndarray, width_N: np.ndarray) -> np.ndarray:
    return height_N.astype(np.int64) * width_N >= MIN_PIXEL_SHARE * resolutions.pixels(resolution)


def _entry(resolution: str, frames: int, value, ordinal: int) -> _Entry:
    try:
        chance, batch_size = value
        keep, consider = chance if isinstance(chance, Sequence) else (chance, None)
        shares = [float(keep)] + ([] if consider is None else [float(consider)])
    except (TypeError, ValueError):
        keep, shares, batch_size = None, [], None
    if keep is None or frames < 1 or not all(0 <= share <= 1 for share in shares):
        raise ValueError(
            f"buckets[{resolution!r}][{frames}]={value!r} has to be (keep, batch_size) or ((keep, "
            "consider), batch_size), with chances in 0..1 and 1 frame or more."
        )
    if shares[0] > 0 and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            f"buckets[{resolution!r}][{frames}] has batch_size={batch_size!r}: a bucket that keeps "
            "clips needs a whole number of 1 or more."
        )
    return _Entry(frames, shares[0], shares[1] if len(shares) > 1 else None, batch_size, ordinal)
