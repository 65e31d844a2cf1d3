"""Buckets: the static shapes that batches may have, and which of them a clip goes to.

A bucket is (resolution, number of frames, aspect). The tables of sizes and the rule of assignment
are those of Open-Sora 1.2, to the last random draw; resolutions "16" to "128" are our own, for toy
runs. A bucket table reads

    {resolution: {num_frames: (keep, batch_size) or ((keep, consider), batch_size)}}

where `consider` is the chance that this length is looked at for a clip (else a shorter one is), and
`keep` the chance that a clip stays at this resolution once a length is chosen (else it goes to a
smaller resolution). One frame means images. `(0.0, None)` takes no clip but passes long ones down.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

# Pixels that a clip's size is tested against. Not always those of a table entry.
_PIXELS = {
    "144p": 36_864,
    "256": 65_536,
    "240p": 102_240,
    "360p": 230_400,
    "512": 262_144,
    "480p": 409_920,
    "720p": 921_600,
    "1024": 1_048_576,
    "1080p": 2_073_600,
    "2k": 3_686_400,
    "2048": 4_194_304,
    "2880": 8_294_400,
    "4k": 8_294_400,
}
# Aspect, the same as a person writes it, then height x width in pixels at 144p 240p 360p 480p 720p
# 1080p 2k 4k. Some sides at 144p and 480p are odd.
_TABLE_17 = """
 0.38   3:8   117x312   196x522   294x784  392x1046  588x1568  882x2352 1176x3136 1764x4704
 0.43  9:21   125x291   210x490   314x732   420x980  628x1466  942x2198 1256x2930 1886x4400
 0.48 12:25   133x277   222x462   332x692   444x925  666x1388  998x2080 1330x2770 1996x4158
 0.50   1:2   135x270   226x452   340x680   452x904  678x1356 1018x2036 1358x2716 2036x4072
 0.53  9:17   139x262   232x438   350x662   466x880  698x1318 1048x1980 1398x2640 2096x3960
 0.54 27:50   141x260   236x436   352x652   470x870  706x1306 1058x1958 1412x2612 2118x3918
 0.56  9:16   144x256   240x426   360x640   480x854  720x1280 1080x1920 1440x2560 2160x3840
 0.62   5:8   151x241   252x404   380x608   506x810  758x1212 1138x1820 1518x2428 2276x3642
 0.67   2:3   156x234   262x393   392x588   522x784  784x1176 1176x1764 1568x2352 2352x3528
 0.75   3:4   166x221   276x368   416x554   554x738  832x1110 1248x1664 1662x2216 2494x3326
 1.00   1:1   192x192   320x320   480x480   640x640   960x960 1440x1440 1920x1920 2880x2880
 1.33   4:3   221x165   370x278   554x416   740x555  1108x832 1662x1246 2218x1664 3326x2494
 1.50   3:2   235x156   392x262   588x392   784x522  1176x784 1764x1176 2352x1568 3528x2352
 1.78  16:9   256x144   426x240   640x360   854x480  1280x720 1920x1080 2560x1440 3840x2160
 1.89  17:9   263x139   440x232   660x350   880x466  1320x698 1980x1048 2638x1396 3958x2096
 2.00   2:1   271x135   452x226   678x340   906x454  1358x680 2036x1018 2716x1358 4072x2036
 2.08 50:27   277x132   462x222   692x332   924x444  1386x666  2078x998 2772x1330 4156x1994
"""
# Aspect and size at 256; 512, 1024 and 2048 have the same aspects and multiples of the sizes.
_TABLE_40 = """
0.25 128x512,  0.26 128x496,  0.27 128x480,  0.28 128x464,  0.32 144x448
0.33 144x432,  0.35 144x416,  0.40 160x400,  0.42 160x384,  0.48 176x368
0.50 176x352,  0.52 176x336,  0.57 192x336,  0.60 192x320,  0.68 208x304
0.72 208x288,  0.78 224x288,  0.82 224x272,  0.88 240x272,  0.94 240x256
1.00 256x256,  1.07 256x240,  1.13 272x240,  1.21 272x224,  1.29 288x224
1.38 288x208,  1.46 304x208,  1.67 320x192,  1.75 336x192,  2.00 352x176
2.09 368x176,  2.40 384x160,  2.50 400x160,  2.89 416x144,  3.00 432x144
3.11 448x144,  3.62 464x128,  3.75 480x128,  3.88 496x128,  4.00 512x128
"""
# The resolution 2880 has aspects of its own.
_TABLE_2880 = """
0.25 1408x5760,  0.26 1408x5568,  0.27 1408x5376,  0.28 1408x5184,  0.32 1600x4992
0.33 1600x4800,  0.34 1600x4672,  0.40 1792x4480,  0.42 1792x4288,  0.47 1920x4096
0.49 1920x3904,  0.51 1920x3776,  0.55 2112x3840,  0.59 2112x3584,  0.68 2304x3392
0.72 2304x3200,  0.78 2496x3200,  0.83 2496x3008,  0.89 2688x3008,  0.93 2688x2880
1.00 2880x2880,  1.07 2880x2688,  1.12 3008x2688,  1.21 3008x2496,  1.28 3200x2496
1.39 3200x2304,  1.47 3392x2304,  1.70 3584x2112,  1.82 3840x2112,  2.03 3904x1920
2.13 4096x1920,  2.39 4288x1792,  2.50 4480x1792,  2.92 4672x1600,  3.00 4800x1600
3.12 4992x1600,  3.68 5184x1408,  3.82 5376x1408,  3.95 5568x1408,  4.00 5760x1408
"""
_COLUMNS_17 = ("144p", "240p", "360p", "480p", "720p", "1080p", "2k", "4k")
_TOYS = {"16": "0.67 16x24, 1.00 16x16, 1.50 24x16"} | {
    str(n): f"0.60 {n * 3 // 4}x{n * 5 // 4}, 1.00 {n}x{n}, 1.67 {n * 5 // 4}x{n * 3 // 4}"
    for n in (32, 64, 96, 128)
}
_NAMED_RATIOS = {line.split()[1]: line.split()[0] for line in _TABLE_17.split("\n")[1:-1]}
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


@functools.cache
def _all_sizes() -> dict[str, dict[str, tuple[int, int]]]:
    result: dict[str, dict[str, tuple[int, int]]] = {name: {} for name in _COLUMNS_17}
    for line in _TABLE_17.split("\n")[1:-1]:
        key, _, *cells = line.split()
        for name, cell in zip(_COLUMNS_17, cells, strict=True):
            result[name][key] = _size(cell)
    for factor in (1, 2, 4, 8):
        result[str(256 * factor)] = {
            k: (h * factor, w * factor) for k, (h, w) in _table(_TABLE_40).items()
        }
    result["2880"] = _table(_TABLE_2880)
    return result | {name: _table(text) for name, text in _TOYS.items()}


def _table(text: str) -> dict[str, tuple[int, int]]:
    items = [item.split() for item in text.replace("\n", ",").split(",") if item.strip()]
    return {key: _size(cell) for key, cell in items}


def _size(cell: str) -> tuple[int, int]:
    height, width = cell.split("x")
    return int(height), int(width)


def resolutions() -> tuple[str, ...]:
    """Returns the names of all resolutions, from small to large."""
    return tuple(sorted(_all_sizes(), key=pixels))


def sizes(resolution: str) -> dict[str, tuple[int, int]]:
    """Returns {aspect: (height, width)} in pixels; an aspect is "height / width" to two places.

    Raises:
        ValueError: If the resolution has no table.
    """
    if resolution not in _all_sizes():
        raise ValueError(
            f"resolution {resolution!r} is unknown: use one of {', '.join(resolutions())}."
        )
    return dict(_all_sizes()[resolution])


def pixels(resolution: str) -> int:
    """Returns the pixels of a frame that stand for this resolution."""
    height, width = sizes(resolution)["1.00"]
    return _PIXELS.get(resolution, height * width)


def closest_aspect(
    height: int, width: int, resolution: str, aspects: Sequence[str] | None = None
) -> str:
    """Returns the aspect (of these, or of all) nearest to height / width; the first of equals."""
    names = [k for k in sizes(resolution) if aspects is None or k in aspects]
    return min(names, key=lambda k: abs(height / width - float(k)))


def image_size(resolution: str, ratio: str) -> tuple[int, int]:
    """Returns (height, width) for a ratio as written by a person, "9:16" being height 9, width 16.

    Raises:
        ValueError: If the resolution has no such ratio.
    """
    names = sizes(resolution)
    parts = ratio.split(":")
    if ratio in names:
        return names[ratio]
    if len(parts) == 2 and all(p.isdigit() and int(p) for p in parts):
        key = _NAMED_RATIOS.get(ratio, f"{int(parts[0]) / int(parts[1]):.2f}")
        if key in names:
            return names[key]
    known = [k for k, v in _NAMED_RATIOS.items() if v in names]
    raise ValueError(
        f"ratio {ratio!r} is not in resolution {resolution}: use one of "
        f"{', '.join([*known, *names])} (height:width or height/width)."
    )


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
        for resolution in sorted(buckets, key=pixels, reverse=True):
            known = sizes(resolution)
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
                size = sizes(resolution)[aspect]
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
            if height * width < MIN_PIXEL_SHARE * pixels(resolution):
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
                aspect = closest_aspect(height, width, resolution, self.aspects[resolution])
                return self.bucket(resolution, chosen.num_frames, aspect), ""
            if chosen is not None:
                reason = _DRAW if chosen.keep else _ZERO
            nearest = max(nearest, reason)
        return None, REASONS[nearest]

    def fitting(self, num_frames: int, height: int, width: int) -> list[Bucket]:
        """Returns every bucket that a clip can be given in some epoch, from large to small."""
        found = []
        for resolution, entries in self.entries.items():
            if height * width < MIN_PIXEL_SHARE * pixels(resolution):
                continue
            aspect = closest_aspect(height, width, resolution, self.aspects[resolution])
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
