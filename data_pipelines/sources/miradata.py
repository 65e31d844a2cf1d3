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
`file_path`. Both are found, raw_video/000000000231.mp4 too, and what `cut_miradata` cuts, which is
to be preferred: in a whole video a clip is a pair of times, and reading it goes through all that
comes before.

The caption is dense_caption unless another is asked for: "dense" is the one that sums up the other
five, about 90 words, which fit the 300 tokens of the text encoder, where all six (318 words on
average, README) do not.
"""

import functools
import itertools
import os
import pathlib
import re
from collections.abc import Iterator

from data_pipelines.sources import clips, rows, tables

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
    _cuts.cache_clear()
    table = rows.Rows("miradata", folder)
    for number, row in read_table(table_file, (caption,)):
        refused = file = None
        start = end = None
        try:
            file, start, end = _find(folder, row)
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
    return table.clips


def find_table(source: str, flag: str = "--source=miradata:") -> str:
    """Returns the table that `source` is or holds; `flag` is what the user wrote before it.

    Raises:
        ValueError: If there is none, or more than one.
    """
    if not ("://" in source or os.path.exists(source)):
        raise ValueError(
            f"{flag}{source} does not exist: give a clip table or a folder, that of MiraData "
            "(docs/prepare_data.md says where its table is)."
        )
    if not os.path.isdir(source):
        return source
    names = sorted(
        p for p in pathlib.Path(source).rglob("miradata*") if p.suffix in (".csv", ".parquet")
    )
    if len(names) != 1:
        found = ", ".join(str(p.relative_to(source)) for p in names[:5]) or "none"
        raise ValueError(
            f"{flag}{source} needs one table named miradata*.csv, and has {found}: give the "
            f"file, {flag}FILE.csv."
        )
    return str(names[0])


def read_table(
    table: str, needed: tuple[str, ...] = ()
) -> Iterator[tuple[int, dict | rows.Refused]]:
    """Reads the rows of a table of MiraData; see `tables.read_rows`.

    Raises:
        ValueError: As there, and if the table has no rows or is not one of MiraData.
    """
    found = tables.read_rows(table, needed)
    first = next(found, None)
    if first is None:
        raise ValueError(f"{table} has no rows: fetch it again.")
    if isinstance(first[1], dict) and not {"clip_id", "index"} & set(first[1]):
        raise ValueError(
            f"{table} has neither a column clip_id (v1) nor index (v0), as MiraData's tables have; "
            f"its columns are {', '.join(first[1])[:500]}: give that of the publishers."
        )
    return itertools.chain([first], found)


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


def clip_times(row: dict) -> tuple[float | str, float | str]:
    """Returns (start, end) of the row's clip in its whole video, for `rows.clean_times`.

    Raises:
        Refused: If the row has none.
    """
    found = _TIME.findall(str(row.get("timestamp") or "")[:200])
    if len(found) == 2:
        return found[0], found[1]
    try:
        fps = float(row["fps"])
        return float(row["start_frame"]) / fps, float(row["end_frame"]) / fps
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise rows.Refused("bad times", "the row has no timestamp of two times.") from error


def cut_name(row: dict) -> str:
    """Returns the name of the row's own cut, without what follows its plus sign.

    Raises:
        Refused: If the row's id cannot be a file name.
    """
    number = str(row.get("clip_id") or row["index"])
    if not re.fullmatch(r"[\w.-]{1,100}", number):
        raise rows.Refused("bad id", f"{number[:80]!a} cannot be a file name.")
    if not row.get("clip_id"):
        return number
    video, _, clip = number.partition(".")
    return f"{int(video):012d}.{clip}"


def find_cut(folder: str, name: str) -> tuple[str, float] | None:
    """Returns (file, seconds at which the clip begins in it) of a cut by `cut_miradata`."""
    name_and_begin = _cuts(folder).get(name)
    return name_and_begin and (os.path.join(folder, name_and_begin[0]), name_and_begin[1])


@functools.lru_cache(4096)
def _cuts(folder: str) -> dict[str, tuple[str, float]]:
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = [re.fullmatch(r"(.+)\+(\d{1,7}\.\d{6})\.mp4", name) for name in sorted(names)]
    return {match[1]: (match[0], float(match[2])) for match in found if match}


def find_raw(root: str, name: tuple[str, str]) -> str:
    """Returns the whole video (folder, name).

    Raises:
        Refused: If it is not there.
    """
    folder, stem = name
    for place in (f"raw_video/{folder}/{stem}", f"raw_video/{stem}"):
        for suffix in _SUFFIXES:
            path = os.path.join(root, place + suffix)
            if os.path.lexists(path):
                return rows.inside(root, path)
    raise rows.Refused("missing file", f"raw_video/{folder}/{stem}.mp4 was not fetched.")


def _find(root: str, row: dict) -> tuple[str, float | None, float | None]:
    """Returns (file, start, end) of a clip: our cut of it, the publishers', or the whole video."""
    folder, stem = clip_name(row)
    start, end = rows.clean_times(*clip_times(row))
    if cut := find_cut(os.path.join(root, "video_clips", folder), cut_name(row)):
        return rows.inside(root, cut[0]), cut[1], cut[1] + end - start
    path = str(row.get("file_path") or "")
    if re.fullmatch(r"[\w./-]+", path) and ".." not in path and not path.startswith("/"):
        path = os.path.join(root, path)
        if os.path.lexists(path):
            return rows.inside(root, path), None, None
    return find_raw(root, (folder, stem)), start, end
