"""The embedded data set: procedural clips of one moving shape, written as real media files.

Each clip shows one plain object that moves with constant velocity over a plain background, and its
caption names all six attributes, so that `data_pipelines.judge` can read a video back and tell
whether a model did what the text said. A still image has no direction and no speed, and its caption
names neither. About a fifth of the combinations of shape, colour and direction never occur in the
written data (`held_out`): prompts for them test composition instead of memory.

Three choices make the data learnable in minutes (docs/log.md). The mean of the colours is brighter
than each background, so an average over clips shows where objects are. A moving object keeps to the
third of its room that it moves to, so a still glance already hints at the direction. And the shapes
differ in their outline as a whole, not in their corners, of which a small VAE keeps little.

Lengths are in short sides of the picture, speeds in short sides per second. Everything follows from
(seed, number of the clip), so a writer that was stopped goes on where it was.

    python -m data_pipelines.shapes --out=DIR --clips=6000 --images=600 --seed=0
"""

import argparse
import csv
import dataclasses
import json
import os
import pathlib

import numpy as np
import tqdm

from data_pipelines import encoding

SHAPES = ("circle", "bar", "triangle")
COLOURS = {  # sRGB, far apart in hue, and from the backgrounds also at half the chroma resolution
    "red": (225, 25, 25),
    "green": (20, 160, 40),
    "blue": (30, 50, 225),
    "yellow": (240, 205, 0),
    "magenta": (220, 20, 200),
    "cyan": (0, 195, 210),
}
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows, columns
SPEEDS = {"slow": 0.12, "fast": 0.27}  # short sides per second
SIZES = {"small": 0.17, "large": 0.25}  # radius in short sides
BACKGROUNDS = {"black": (8, 8, 8), "gray": (80, 80, 80), "navy": (12, 16, 88)}
ATTRIBUTES = ("shape", "colour", "direction", "speed", "size", "background")
VALUES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "direction": tuple(DIRECTIONS),
    "speed": tuple(SPEEDS),
    "size": tuple(SIZES),
    "background": tuple(BACKGROUNDS),
}

_ADVERBS = {"slow": "slowly", "fast": "quickly"}
_VIDEO_CAPTIONS = (
    "a {size} {colour} {shape} moves {direction} {adverb} on a {background} background",
    "a {size} {colour} {shape} moving {adverb} {direction} on {background}",
    "{size} {colour} {shape} moving {direction} {adverb}, {background} background",
    "a {size} {colour} {shape} goes {direction} {adverb} on {background}",
)
_IMAGE_CAPTIONS = (
    "a {size} {colour} {shape} on a {background} background",
    "an image of a {size} {colour} {shape} on {background}",
    "{size} {colour} {shape}, {background} background",
    "a still {size} {colour} {shape} on {background}",
)
_SUPERSAMPLES = 4  # an edge has 16 levels
_SQUARES = ((32, 32), (48, 48), (64, 64), (96, 96))
_WIDES = ((36, 60), (48, 80), (60, 100), (72, 120))  # 3:5, upright when turned


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What a clip shows. `direction` and `speed` are None for a still image."""

    shape: str
    colour: str
    direction: str | None
    speed: str | None
    size: str
    background: str


@dataclasses.dataclass(frozen=True)
class Clip:
    """One planned file: what it shows, its caption and its format (fps None for an image)."""

    name: str
    attributes: Attributes
    text: str
    height: int
    width: int
    num_frames: int
    fps: float | None


def held_out(attributes: Attributes) -> bool:
    """Tells whether this combination of shape, colour and direction is kept out of training.

    A fixed rule, by the places of the values in VALUES: every fifth of the 72 combinations, evenly
    spread, so that a pair of values keeps at least two thirds of its combinations.
    """
    if attributes.direction is None:
        return False
    place = lambda k: VALUES[k].index(getattr(attributes, k))
    return (place("shape") + 2 * place("colour") + 3 * place("direction")) % 5 == 0


def sample_attributes(rng: np.random.Generator, *, image: bool = False) -> Attributes:
    """Draws attributes for training: all values alike, held-out combinations never."""
    while True:
        drawn = Attributes(**{k: str(rng.choice(VALUES[k])) for k in ATTRIBUTES})
        if image:
            drawn = dataclasses.replace(drawn, direction=None, speed=None)
        if not held_out(drawn):
            return drawn


def caption(attributes: Attributes, rng: np.random.Generator | None = None) -> str:
    """Returns a caption naming every attribute, lower case, at most 80 bytes.

    Without `rng` it is the first wording, e.g. "a small red circle moves left slowly on a black
    background".
    """
    wordings = _IMAGE_CAPTIONS if attributes.direction is None else _VIDEO_CAPTIONS
    wording = wordings[0 if rng is None else int(rng.integers(len(wordings)))]
    return wording.format(adverb=_ADVERBS.get(attributes.speed), **dataclasses.asdict(attributes))


def parse(text: str) -> dict[str, str | None]:
    """Reads the attributes that a caption names; None for those that it does not name."""
    words = text.lower().replace(",", " ").split()
    words = [{"slowly": "slow", "quickly": "fast"}.get(word, word) for word in words]
    return {k: next((w for w in words if w in values), None) for k, values in VALUES.items()}


def held_out_prompts(n: int, seed: int) -> list[tuple[str, Attributes]]:
    """Returns n (prompt, attributes) of combinations that training never shows."""
    rng = np.random.default_rng((seed, n))
    prompts = []
    while len(prompts) < n:
        drawn = Attributes(**{k: str(rng.choice(VALUES[k])) for k in ATTRIBUTES})
        if held_out(drawn):
            prompts.append((caption(drawn, rng), drawn))
    return prompts


def extent(shape: str, radius: float) -> tuple[float, float, float, float]:
    """Returns how far a shape of this radius reaches from its centroid: up, down, left, right."""
    if shape == "circle":
        return radius, radius, radius, radius
    if shape == "bar":  # lying, nearly the circle's area
        return 0.65 * radius, 0.65 * radius, 1.15 * radius, 1.15 * radius
    half = 1.1 * radius  # equilateral, on its base: the centroid is a third up
    return 2 / np.sqrt(3) * half, half / np.sqrt(3), half, half


def coverage(shape: str, radius: float, centre: tuple[float, float], height: int, width: int):
    """Returns the share of each pixel that the shape covers, [H, W] float32 in 0..1.

    Args:
        shape: One of SHAPES.
        radius: In pixels; see `extent` for what it means for each shape.
        centre: Row and column of the centroid, in pixels from the top left corner.
        height: H.
        width: W.
    """
    n = _SUPERSAMPLES
    up, down, left, right = extent(shape, radius)
    top, first = (max(0, int(np.floor(c - e))) for c, e in zip(centre, (up, left), strict=True))
    bottom = max(top, min(height, int(np.ceil(centre[0] + down))))
    last = max(first, min(width, int(np.ceil(centre[1] + right))))
    y = ((np.arange(top * n, bottom * n) + 0.5) / n - centre[0])[:, None]
    x = ((np.arange(first * n, last * n) + 0.5) / n - centre[1])[None]
    if shape == "circle":
        inside = y**2 + x**2 <= radius**2
    elif shape == "bar":
        inside = (np.abs(y) <= up) & (np.abs(x) <= left)
    else:
        inside = (y <= down) & (np.abs(x) * ((up + down) / left) <= y + up)
    mask = np.zeros((height, width), np.float32)
    window = inside.reshape(bottom - top, n, last - first, n)
    mask[top:bottom, first:last] = window.mean((1, 3), dtype=np.float32)
    return mask


def max_frames(attributes: Attributes, height: int, width: int, fps: float) -> int:
    """Returns the longest clip during which the object stays fully visible."""
    short = min(height, width)
    up, down, left, right = extent(attributes.shape, SIZES[attributes.size])
    dy, _ = DIRECTIONS[attributes.direction]
    room = height / short - up - down if dy else width / short - left - right
    return 1 + int(room / SPEEDS[attributes.speed] * fps + 1e-6)


def render(
    attributes: Attributes,
    height: int,
    width: int,
    num_frames: int,
    fps: float | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws the clip, uint8 [T, H, W, 3]; the place is random, in the third that it moves to.

    Raises:
        ValueError: If the object would leave the picture before the last frame.
    """
    short = min(height, width)
    radius = SIZES[attributes.size] * short
    up, down, left, right = extent(attributes.shape, radius)
    if attributes.direction is None:
        step = np.zeros(2)
    else:
        longest = max_frames(attributes, height, width, fps)
        if num_frames > longest:
            raise ValueError(
                f"num_frames={num_frames} at {fps} fps takes a {attributes.size} "
                f"{attributes.speed} {attributes.shape} out of {height}x{width} pixels: use "
                f"{longest} frames or fewer."
            )
        step = np.array(DIRECTIONS[attributes.direction]) * SPEEDS[attributes.speed] * short / fps
    path = np.arange(num_frames)[:, None] * step  # [T, 2]
    low = np.array([up, left]) - path.min(0)
    high = np.array([height - down, width - right]) - path.max(0)
    place = rng.random(2)  # of the room that the path leaves: 0 is at the top or left
    place = np.where(step == 0, place, 0.5 + np.sign(step) * (0.2 + 0.3 * place))
    centres = low + place * np.maximum(high - low, 0) + path
    mask = np.stack([coverage(attributes.shape, radius, c, height, width) for c in centres])
    back = np.array(BACKGROUNDS[attributes.background], np.float32)
    front = np.array(COLOURS[attributes.colour], np.float32)
    return np.rint(back + mask[..., None] * (front - back)).astype(np.uint8)


def plan(number: int, *, image: bool, seed: int) -> tuple[Clip, np.random.Generator]:
    """Decides on clip `number` (images are numbered apart), and returns the generator to draw it.

    Seven of ten clips are square at 12 fps and 18 frames or more, which is one frame more than the
    17 frames of the first bucket (a clip has to be longer than its bucket).
    """
    rng = np.random.default_rng((seed, int(image), number))
    attributes = sample_attributes(rng, image=image)
    text = caption(attributes, rng)
    if rng.random() < 0.7:
        height, width = _SQUARES[rng.integers(len(_SQUARES))]
        fps = 12.0
    else:
        kind = rng.integers(3)  # square, landscape, portrait
        sides = _SQUARES if kind == 0 else _WIDES
        height, width = sides[rng.integers(len(sides))][:: -1 if kind == 2 else 1]
        fps = float(rng.choice([12.0, 15.0, 24.0, 29.97]))
    if image:
        return Clip(f"images/{number:06d}.png", attributes, text, height, width, 1, None), rng
    shortest = 1 + int(17 / 12 * fps + 1e-6)
    longest = min(int(1.8 * fps), max_frames(attributes, height, width, fps))
    num_frames = int(rng.integers(shortest, longest + 1))
    name = f"clips/{number:06d}.mp4"
    return Clip(name, attributes, text, height, width, num_frames, fps), rng


def write(folder: str | os.PathLike, *, clips: int, images: int, seed: int) -> pathlib.Path:
    """Writes the data set: mp4 and png files, and `clips.csv` (path, text) as the last file.

    The bytes follow from the arguments and the version of the encoder. A folder that was left half
    written is completed; `clips` and `images` may grow later.

    Returns:
        The path of clips.csv.

    Raises:
        ValueError: If the folder holds a data set of another seed.
    """
    folder = pathlib.Path(folder)
    note = folder / "shapes.json"
    if note.exists() and json.loads(note.read_text())["seed"] != seed:
        raise ValueError(f"{folder} holds clips of another seed ({note}): choose another folder.")
    for name in ("clips", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_whole(note, json.dumps({"seed": seed}).encode())
    rows = [(i, False) for i in range(clips)] + [(i, True) for i in range(images)]
    table = []
    for number, image in tqdm.tqdm(rows, desc="shapes", unit="clip", mininterval=1.0):
        clip, rng = plan(number, image=image, seed=seed)
        table.append((clip.name, clip.text))
        if (folder / clip.name).exists():
            continue
        frames = render(clip.attributes, clip.height, clip.width, clip.num_frames, clip.fps, rng)
        encoded = encoding.encode_png(frames[0]) if image else encoding.encode_mp4(frames, clip.fps)
        _write_whole(folder / clip.name, encoded)
    lines = [["path", "text"], *table]
    part = folder / "clips.csv.part"
    with open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    os.replace(part, folder / "clips.csv")
    return folder / "clips.csv"


def _write_whole(path: pathlib.Path, content: bytes):
    """Writes beside the target and renames, so that a file is either absent or complete."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="data_pipelines.shapes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--clips", type=int, default=6000, help="number of video clips")
    parser.add_argument("--images", type=int, default=600, help="number of still images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if min(args.clips, args.images) < 0 or args.clips + args.images == 0:
        parser.error("--clips and --images must be 0 or more, and one of them at least 1")
    try:
        path = write(args.out, clips=args.clips, images=args.images, seed=args.seed)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{path}: {args.clips} clips, {args.images} images")


if __name__ == "__main__":
    main()
