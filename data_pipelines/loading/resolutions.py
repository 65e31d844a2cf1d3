"""Resolutions: the sizes of frames in pixels, by aspect.

The tables are those of Open-Sora 1.2; resolutions "16" to "128" are our own, for toy runs. An
aspect is "height / width" to two places.
"""

import functools
from collections.abc import Sequence

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


def sizes(resolution: str) -> dict[str, tuple[int, int]]:
    """Returns {aspect: (height, width)} in pixels.

    Raises:
        ValueError: If the resolution has no table.
    """
    if resolution not in _all_sizes():
        known = sorted(_all_sizes(), key=pixels)
        raise ValueError(f"resolution {resolution!r} is unknown: use one of {', '.join(known)}.")
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
    return names[closest_aspects(np.array([height]), np.array([width]), names)[0]]


def closest_aspects(
    height_N: np.ndarray, width_N: np.ndarray, aspects: Sequence[str]
) -> np.ndarray:
    """Returns the place of each frame's nearest aspect in `aspects`; the first of equals."""
    ratio_N = height_N / width_N
    nearest_N = np.zeros(len(ratio_N), np.int8)
    smallest_N = np.full(len(ratio_N), np.inf)
    for place, aspect in enumerate(aspects):
        distance_N = np.abs(ratio_N - float(aspect))
        nearest_N[distance_N < smallest_N] = place
        np.minimum(smallest_N, distance_N, out=smallest_N)
    return nearest_N


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
