"""MiraData (Ju et al. 2024, arXiv:2407.06358): a table of times in longer videos.

Its columns, from the publishers' sample of 100 rows of v1 and the README of mira-space/MiraData:
clip_id ("{download id}.{clip}", "231.4"), source ("youtube, 3D engine-rendered scenes"), video_url,
video_id, width, height, fps, seconds, timestamp ("['00:06:21.300', '00:07:42.133']"), frame_number,
framestamp, file_path ("video_clips/000000000/000000000231.4.mp4"), and six captions: short, dense,
background, main_object, style and camera _caption. v0 has index, with the YouTube id in it
("000000008783_AJp_ANXoGoM-000114"), video_id, start_frame, end_frame, fps and the same captions
(assets/miradata_v0_100_samples.csv).

The publishers' download_data.py puts the whole video of download id 231 at
raw_video/000000000/000000000231.mp4 (the folder is the id in thousands) and cuts the clip to
`file_path`. Both are found, and raw_video/000000000231.mp4; cutting is not needed: a clip is a pair
of times.

The caption is dense_caption unless another is asked for: "dense" is the one that sums up the other
five, about 90 words, which fit the 300 tokens of the text encoder, where all six (318 words on
average, README) do not.
"""

import os
import pathlib
import re

import data_pipelines.sources.rows as rows
import data_pipelines.sources.tables as tables
from data_pipelines import clips

CAPTIONS = tuple(
    f"{name}_caption" for name in ("dense", "short", "main_object", "background", "style", "camera")
)
_GIVEN = {"source": "category"} | {k: k for k in ("video_id", "width", "height", "fps", "seconds")}
_SUFFIXES = (".mp4", ".webm", ".mkv")  # yt-dlp may deliver any
_TIME = re.compile(r"\d+:\d{1,2}:\d{1,2}(?:\.\d+)?")


def read(
    source: str, *, caption: str = "dense_caption", root: str | None = None
) -> list[clips.Clip]:
    """Reads the table and finds the videos.

    Args:
        source: Table (.csv or .parquet), or a folder with one whose name begins with "miradata".
        caption: One of CAPTIONS.
        root: Folder of raw_video/ and video_clips/; None: that of the table.

    Raises:
        ValueError: If there is no such table, or it has not the columns.
    """
    if caption not in CAPTIONS:
        raise ValueError(f"caption={caption} is not one of {', '.join(CAPTIONS)}.")
    table_file = find_table(source)
    folder = root or os.path.dirname(table_file) or "."
    table = rows.Rows("miradata", folder)
    for number, row in tables.read_rows(table_file, (caption,)):
        refused = file = None
        start = end = None
        try:
            name = clip_name(row)
            start, end = _times(row)
            file, is_cut = _find(folder, name, str(row.get("file_path") or ""))
            start, end = (None, None) if is_cut else (start, end)
        except rows.Refused as error:
            refused = error
        table.add(
            number,
            id=row.get("clip_id") or row.get("index"),
            file=file or "",
            text=row[caption],
            start=start,
            end=end,
            given=[(new, row.get(old)) for old, new in _GIVEN.items()],
            refused=refused,
        )
    if not table.clips:
        raise ValueError(f"{table_file} has no rows: fetch it again.")
    return table.clips


def find_table(source: str) -> str:
    """Returns the table that `source` is or holds.

    Raises:
        ValueError: If there is none, or more than one.
    """
    if not os.path.isdir(source):
        return source
    names = sorted(
        p for p in pathlib.Path(source).rglob("miradata*") if p.suffix in (".csv", ".parquet")
    )
    if len(names) != 1:
        found = ", ".join(str(p.relative_to(source)) for p in names[:5]) or "none"
        raise ValueError(
            f"--source=miradata:{source} needs one table named miradata*.csv, and has {found}: "
            "give the file, --source=miradata:FILE.csv."
        )
    return str(names[0])


def clip_name(row: dict) -> tuple[str, str]:
    """Returns (folder, name) of the row's whole video below raw_video/, without a suffix.

    Raises:
        Refused: If the row has no id of the data set.
    """
    for column, pattern in (("clip_id", r"(\d{1,12})(?:\.\d+)?"), ("index", r"(\d{1,12})_.*")):
        found = re.fullmatch(pattern, str(row.get(column) or ""))
        if found:
            number = int(found[1])
            name = f"{number:012d}"
            if column == "index":
                name = str(row["index"]).rpartition("-")[0]
                if not re.fullmatch(r"[\w-]+", name):
                    break
            return f"{number // 1000:09d}", name
    raise rows.Refused("bad id", "the row has no clip_id (v1) or index (v0) of MiraData.")


def _times(row: dict) -> tuple[float | str, float | str]:
    found = _TIME.findall(str(row.get("timestamp") or "")[:200])
    if len(found) == 2:
        return found[0], found[1]
    try:
        fps = float(row["fps"])
        return float(row["start_frame"]) / fps, float(row["end_frame"]) / fps
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise rows.Refused("bad times", "the row has no timestamp of two times.") from error


def _find(root: str, name: tuple[str, str], cut: str) -> tuple[str, bool]:
    """Returns (file, whether it is the clip itself) of a video that was fetched."""
    folder, stem = name
    for place in (f"raw_video/{folder}/{stem}", f"raw_video/{stem}"):
        for suffix in _SUFFIXES:
            path = os.path.join(root, place + suffix)
            if os.path.lexists(path):
                return rows.inside(root, path), False
    if re.fullmatch(r"[\w./-]+", cut) and ".." not in cut and not cut.startswith("/"):
        path = os.path.join(root, cut)
        if os.path.lexists(path):
            return rows.inside(root, path), True
    raise rows.Refused("missing file", f"raw_video/{folder}/{stem}.mp4 was not fetched.")
