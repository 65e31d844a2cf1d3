"""Small data sets in the file layout of their publishers, made from clips of `shapes`.

OpenVid-1M: a table, zip parts (one stored, one deflated) and one part published as split pieces.
MiraData v1: a table of times in longer videos, and those videos where its own script puts them.
"""

import csv
import dataclasses
import json
import pathlib
import zipfile

import numpy as np

from data_pipelines.embedded import drawing, vocabulary
from data_pipelines.media import encoding

OPENVID_COLUMNS = (
    *("video", "caption", "aesthetic score", "motion score", "temporal consistency score"),
    *("camera motion", "frame", "fps", "seconds"),
)
MIRADATA_COLUMNS = (
    *("clip_id", "source", "video_url", "video_id", "width", "height", "fps", "seconds"),
    *("timestamp", "frame_number", "framestamp", "file_path", "short_caption", "dense_caption"),
    *("background_caption", "main_object_caption", "style_caption", "camera_caption"),
)
FPS = 12.0


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set on disk: its folder, its table, and the ids by what has to become of them."""

    folder: pathlib.Path
    table: pathlib.Path
    present: list[str]
    missing: list[str]
    texts: dict[str, str]


def draw(number: int, num_frames: int = 24, height: int = 48, width: int = 64):
    """Returns (frames uint8 THWC, caption) of a slow small object; 24 frames are 2 seconds."""
    rng = np.random.default_rng(number)
    attributes = vocabulary.sample_attributes(rng)
    attributes = dataclasses.replace(attributes, speed="slow", size="small")
    frames = drawing.render(attributes, height, width, num_frames, FPS, rng)
    return frames, vocabulary.caption(attributes, rng)


def write_table(path: pathlib.Path, columns, rows) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_zip(path: pathlib.Path, members: dict[str, bytes], kind: int = zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _new(folder: str | pathlib.Path) -> pathlib.Path:
    """Makes a folder; a real data set, or one half written, does not get small files among its own.

    Raises:
        ValueError: If it holds files.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files: name a new folder, or delete it.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_openvid(folder: pathlib.Path, clips: int = 6) -> DataSet:
    """Writes OpenVid-1M in small: parts 0 and 1 as zip files, part 2 in two pieces.

    The table names one clip that no part holds, and part 0 holds one that the table does not name.
    """
    folder = _new(folder)
    names = [f"clip{i}_{'abcdefgh'[i % 8]}-X_{i}_0to23.mp4" for i in range(clips)]
    parts: list[dict[str, bytes]] = [{}, {}, {}]
    rows, texts = [], {}
    for i, name in enumerate(names):
        frames, texts[name] = draw(i)
        parts[i % 3][name] = encoding.encode_mp4(frames, FPS)
        scores = {"aesthetic score": 4 + i / 10, "motion score": 1.5 + i}
        scores |= {"temporal consistency score": 0.99, "camera motion": "pan_left"}
        facts = {"frame": len(frames), "fps": FPS, "seconds": len(frames) / FPS}
        rows.append({"video": name, "caption": texts[name], **scores, **facts})
    lost = "never_uploaded_0to23.mp4"
    rows.append({**rows[0], "video": lost})
    parts[0]["not_in_the_table.mp4"] = next(iter(parts[0].values()))
    table = write_table(folder / "data/train/OpenVid-1M.csv", OPENVID_COLUMNS, rows)
    for number, members in enumerate(parts):
        if number:  # some parts keep their members in a folder
            members = {f"part{number}/{name}": content for name, content in members.items()}
        path = folder / f"OpenVid_part{number}.zip"
        write_zip(path, members, zipfile.ZIP_DEFLATED if number else zipfile.ZIP_STORED)
        if number == 2:
            content = path.read_bytes()
            path.unlink()
            half = len(content) // 2
            (folder / f"OpenVid_part{number}_partaa").write_bytes(content[:half])
            (folder / f"OpenVid_part{number}_partab").write_bytes(content[half:])
    return DataSet(folder, table, names, [lost], texts)


def write_miradata(folder: pathlib.Path, clips: int = 4) -> DataSet:
    """Writes MiraData v1 in small: long videos of two clips each, and a table of times in them.

    The last row of the table is of a video that was not downloaded.
    """
    folder, rows, texts = _new(folder), [], {}
    for video in range((clips + 1) // 2):
        number, pieces = 998 + 3 * video, []  # in two folders of thousands
        raw = f"{number // 1000:09d}/{number:012d}"
        for piece in range(min(2, clips - 2 * video)):
            frames, text = draw(100 + 2 * video + piece)
            pieces.append(frames)
            clip_id = f"{number}.{piece}"
            texts[clip_id] = f"{text}, in dense words"
            facts = {"width": 64, "height": 48, "fps": FPS, "seconds": 2.0, "frame_number": 24}
            captions = {name: text for name in MIRADATA_COLUMNS if name.endswith("_caption")}
            rows.append(
                {
                    "clip_id": clip_id,
                    "source": "youtube, 3D engine-rendered scenes" if video else "pexels, nature",
                    "video_url": f"https://videos.example.com/{number}.mp4",
                    "video_id": f"id-{number}",
                    "timestamp": str([f"00:00:{2 * piece:02d}.000", f"00:00:{2 * piece + 2:02d}"]),
                    "framestamp": json.dumps([24 * piece, 24 * piece + 24]),
                    "file_path": f"video_clips/{raw}.{piece}.mp4",
                    **(facts | captions | {"dense_caption": texts[clip_id]}),
                }
            )
        path = folder / f"raw_video/{raw}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoding.encode_mp4(np.concatenate(pieces), FPS))
    lost = "5000.0"
    rows.append({**rows[0], "clip_id": lost, "file_path": "video_clips/000000005/x.mp4"})
    table = write_table(folder / "miradata_v1_tiny.csv", MIRADATA_COLUMNS, rows)
    return DataSet(folder, table, list(texts), [lost], texts)


def reasons(table) -> list[str]:
    """Of each clip of a table, what it is refused for; empty: nothing."""
    return [clip.given.get("refused", "").partition(":")[0] for clip in table]
