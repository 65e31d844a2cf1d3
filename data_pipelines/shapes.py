"""The embedded data set: procedural clips of one moving shape, written as real media files.

Each clip shows one plain object that moves with constant velocity over a plain background, and its
caption names all six attributes, so that `data_pipelines.embedded.judge` can read a video back and
tell whether a model did what the text said. A still image has no direction and no speed, and its
caption names neither. About a fifth of the combinations of shape, colour and direction never occur
in the written data (`held_out`): prompts for them test composition instead of memory.

Three choices make the data learnable in minutes (docs/log.md). The mean of the colours is brighter
than each background, so an average over clips shows where objects are. A moving object keeps to the
third of its room that it moves to, so a still glance already hints at the direction. And the shapes
differ in their outline as a whole, not in their corners, of which a small VAE keeps little.

Lengths are in short sides of the picture, speeds in short sides per second. Everything follows from
(seed, number of the clip), so a writer that was stopped goes on where it was.

    python -m data_pipelines.shapes --out=DIR --clips=6000 --images=600 --seed=0
"""

import csv
import dataclasses
import json
import os
import pathlib

import numpy as np
import tqdm

from data_pipelines.embedded import drawing, vocabulary
from data_pipelines.media import encoding
from data_pipelines.process import arguments, outputs

_SQUARES = ((32, 32), (48, 48), (64, 64), (96, 96))
_WIDES = ((36, 60), (48, 80), (60, 100), (72, 120))  # 3:5, upright when turned


@dataclasses.dataclass(frozen=True)
class Clip:
    """One planned file: what it shows, its caption and its format (fps None for an image)."""

    name: str
    attributes: vocabulary.Attributes
    text: str
    height: int
    width: int
    num_frames: int
    fps: float | None


def plan(number: int, *, image: bool, seed: int) -> tuple[Clip, np.random.Generator]:
    """Decides on clip `number` (images are numbered apart), and returns the generator to draw it.

    Seven of ten clips are square at 12 fps and 18 frames or more, which is one frame more than the
    17 frames of the first bucket (a clip has to be longer than its bucket).
    """
    rng = np.random.default_rng((seed, int(image), number))
    attributes = vocabulary.sample_attributes(rng, image=image)
    text = vocabulary.caption(attributes, rng)
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
    longest = min(int(1.8 * fps), drawing.max_frames(attributes, height, width, fps))
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
        ValueError: If the folder holds a data set of another seed, or other files.
    """
    folder = pathlib.Path(folder)
    note, content = folder / "shapes.json", json.dumps({"seed": seed}).encode()
    if note.exists() and note.read_bytes() != content:
        raise ValueError(f"{folder} holds clips of another seed ({note}): choose another folder.")
    if folder.is_dir() and not note.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files: choose a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(note, content)  # first: it says whose folder this is
    for name in ("clips", "images"):
        (folder / name).mkdir(exist_ok=True)
    rows = [(i, False) for i in range(clips)] + [(i, True) for i in range(images)]
    table = []
    for number, image in tqdm.tqdm(rows, desc="shapes", unit="clip", mininterval=1.0):
        clip, rng = plan(number, image=image, seed=seed)
        table.append((clip.name, clip.text))
        if (folder / clip.name).exists():
            continue
        frames = drawing.render(
            clip.attributes, clip.height, clip.width, clip.num_frames, clip.fps, rng
        )
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
    parser = arguments.Parser("data_pipelines.shapes", __doc__)
    add, count = parser.add_argument, arguments.at_least(0)
    add("--out", required=True, help="folder to write")
    add("--clips", type=count, default=6000, help="number of video clips")
    add("--images", type=count, default=600, help="number of still images")
    add("--seed", type=count, default=0)
    args = parser.parse_args(argv)
    if args.clips + args.images == 0:
        parser.error("--clips and --images are both 0: ask for 1 or more of one of them")
    with parser.refusing():
        outputs.check_folder(args.out)
        path = write(args.out, clips=args.clips, images=args.images, seed=args.seed)
    print(f"{path}: {args.clips} clips, {args.images} images")


if __name__ == "__main__":
    main()
