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

from data_pipelines.loading import resolutions

_FRAME_NAMES = {"1x": 51, "2x": 102, "4x": 204, "8x": 408, "16x": 816}
_FRAME_NAMES |= {"2s": 51, "4s": 102, "8s": 204, "16s": 408, "32s": 816}
MIN_PIXEL_SHARE = 0.8  # a clip may be enlarged this little
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
        self.num_buckets = sum(len(v) * len(self.aspects[k]) for k, v in self.entries.items())
        self.is_random = any(
            0 < e.keep < 1 or e.consider is not None for v in self.entries.values() for e in v
        )

    def bucket(self, resolution: str, num_frames: int, aspect: str) -> Bucket | None:
        """Returns the bucket of this name, or None if the table has none."""
        for entry in self.entries.get(resolution, []):
            if entry.num_frames == num_frames and aspect in self.aspects[resolution]:
                size = resolutions.sizes(resolution)[aspect]
                return Bucket(resolution, num_frames, aspect, *size, entry.batch_size)
        return None

    def all_buckets(self) -> list[Bucket]:
        """Returns every bucket that can hold clips, from large to small."""
        return [
            self.bucket(resolution, entry.num_frames, aspect)
            for resolution, entries in self.entries.items()
            for entry in entries
            if entry.keep > 0
            for aspect in self.aspects[resolution]
        ]

    def assign(
        self, num_frames: int, height: int, width: int, *, row: int, epoch: int, seed: int
    ) -> Bucket | None:
        """Returns the bucket of a clip in this epoch, or None if it is left out of the epoch.

        The rule of Open-Sora 1.2: resolutions from large to small, at each the longest length that
        is shorter than the clip; one generator a (row, length), seeded with
        seed + epoch + row * num_buckets + ordinal.

        Args:
            num_frames: Of the clip; 1 is an image, and goes to buckets of one frame only.
            height: Of the clip in pixels.
            width: Of the clip in pixels.
            row: The clip's number in the data set.
            epoch: From 0. Draws differ from epoch to epoch.
            seed: Of the run.
        """
        return self.place(num_frames, height, width, row=row, epoch=epoch, seed=seed)[0]

    def place(
        self, num_frames: int, height: int, width: int, *, row: int, epoch: int, seed: int
    ) -> tuple[Bucket | None, str]:
        """Returns the bucket of `assign` and "", or None and one of REASONS.

        Resolutions may refuse a clip for different reasons: the one by which it came nearest to a
        bucket is told.
        """
        base = seed + epoch + row * self.num_buckets
        nearest = _SMALL
        for resolution, entries in self.entries.items():
            if height * width < MIN_PIXEL_SHARE * resolutions.pixels(resolution):
                continue
            chosen, rng, reason = None, None, _KIND
            for entry in entries:
                draws = _Draws(base + entry.ordinal)
                if num_frames == 1 or entry.num_frames == 1:
                    if num_frames == entry.num_frames:
                        # an image is accepted below keep, which is never reached at keep = 1
                        chosen, rng = entry, draws
                        break
                    continue
                if num_frames <= entry.num_frames * self.frame_interval:
                    reason = max(reason, _SHORT)
                elif entry.consider is not None and draws.next() > entry.consider:
                    reason = _LENGTH
                else:
                    chosen, rng = entry, draws
                    break
            if chosen is not None and (chosen.keep == 1 or rng.next() < chosen.keep):
                aspect = resolutions.closest_aspect(
                    height, width, resolution, self.aspects[resolution]
                )
                return self.bucket(resolution, chosen.num_frames, aspect), ""
            if chosen is not None:
                reason = _DRAW if chosen.keep else _ZERO
            nearest = max(nearest, reason)
        return None, REASONS[nearest]

    def fitting(self, num_frames: int, height: int, width: int) -> list[Bucket]:
        """Returns every bucket that a clip can be given in some epoch, from large to small."""
        found = []
        for resolution, entries in self.entries.items():
            if height * width < MIN_PIXEL_SHARE * resolutions.pixels(resolution):
                continue
            aspect = resolutions.closest_aspect(height, width, resolution, self.aspects[resolution])
            for entry in entries:
                is_long = num_frames > entry.num_frames * self.frame_interval
                fits = num_frames == 1 if entry.num_frames == 1 else is_long
                if fits and entry.keep > 0 and entry.consider != 0:
                    found.append(self.bucket(resolution, entry.num_frames, aspect))
        return found


class _Draws:
    """A generator that is made only when a number is drawn: making one takes 10 us."""

    def __init__(self, seed: int):
        self.seed, self.rng = seed, None

    def next(self) -> float:
        self.rng = self.rng or np.random.default_rng(self.seed)
        return self.rng.random()


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
