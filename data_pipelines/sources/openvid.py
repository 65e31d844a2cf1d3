"""OpenVid-1M (Nan et al. 2024, arXiv:2407.02371), read from the files as they are published.

    DIR/data/train/OpenVid-1M.csv (or OpenVidHD.csv), DIR/OpenVid_part0.zip ... OpenVid_part185.zip

The columns video, caption, aesthetic score, motion score, temporal consistency score, camera
motion, frame, fps, seconds stand in the head of the table. Parts over 50 GB are published as
pieces, OpenVid_part73_partaa and _partab, to be joined with `cat` (data set card of
nkp37/OpenVid-1M on the Hugging Face hub); they are read as they are, here. OpenVidHD has
OpenVidHD_part_1.zip and pieces OpenVidHD_part_15_part_aa. Members may lie in a folder of the
archive (the card says `unzip -j`), so they are found by their last name.

The publishers have not recorded which part holds which clip (NJU-PCALab/OpenVid-1M, issues 17 and
19), and users have found fewer clips than the table has (issue 14). So the directories of the
archives decide: a clip that no part holds is refused as "missing file", and members without a row
are counted.
"""

import dataclasses
import os
import pathlib
import re
import sys

from data_pipelines.media import limits
from data_pipelines.sources import clips, rows, tables

GIVEN = {
    "aesthetic score": "aesthetic",
    "motion score": "motion",
    "temporal consistency score": "temporal_consistency",
    "camera motion": "camera",
    "frame": "num_frames",
    "fps": "fps",
    "seconds": "seconds",
}
_TABLES = ("OpenVid-1M.csv", "OpenVidHD.csv")
_WHOLE = re.compile(r"OpenVid(?:HD)?_part_?(\d+)\.zip")
_PIECE = re.compile(r"(OpenVid(?:HD)?_part_?(\d+)_part_?)[a-z]{2}")


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where the clips lie: {name: file for `clips.open_binary`}, and what went wrong."""

    files: dict[str, str]
    archives: int
    unreadable: dict[str, str]  # archive: message


def read(folder: str, *, csv: str | None = None) -> list[clips.Clip]:
    """Reads the table and finds each clip in the parts that are there.

    Args:
        folder: Where the files are, laid out as on the hub; parts may be in subfolders. Clips that
            were unpacked into `folder` or `folder/video` are found too.
        csv: Table below `folder`; None: OpenVid-1M.csv, or OpenVidHD.csv if only that is there.

    Raises:
        ValueError: If there is no table, or no clip of it.
    """
    source = _find_table(folder, csv)
    parts = find_parts(folder)
    if not parts.files:
        raise ValueError(
            f"{folder} has no readable OpenVid_part*.zip and no video: fetch some with "
            "python -m data_pipelines.download --source=openvid --parts=0-3 --out="
            + folder
            + "".join(
                f" ({name}: {message})" for name, message in list(parts.unreadable.items())[:1]
            )
        )
    table, named = rows.Rows("openvid", folder), set()
    for number, row in tables.read_rows(source, ("video", "caption")):
        if isinstance(row, rows.Refused):
            table.add(number, refused=row)
            continue
        name, refused, file = row.get("video"), None, None
        if isinstance(name, str):
            file = parts.files.get(name)
            named.add(name)
        if file is None:
            unread = ", ".join(parts.unreadable) or "none"
            refused = rows.Refused(
                "missing file",
                f"in none of the {parts.archives} parts that are here; unreadable: {unread[:300]}.",
            )
        given = [(new, row.get(old)) for old, new in GIVEN.items()]
        table.add(
            number, path=name, file=file or "", text=row["caption"], given=given, refused=refused
        )
    if not table.clips:
        raise ValueError(f"{source} has no rows: fetch it again.")
    missing = sum("refused" in clip.given for clip in table.clips)
    print(
        f"{source}: {len(table.clips)} clips, {missing} of them not here or refused; "
        f"{parts.archives} parts hold {len(parts.files)} clips, {len(parts.files.keys() - named)} "
        f"of them not in the table",
        file=sys.stderr,
    )
    for archive, message in parts.unreadable.items():
        print(f"{archive}: {message}", file=sys.stderr)
    return table.clips


def find_parts(folder: str) -> Parts:
    """Finds all clips in and beside the archives below `folder`; the first of a name counts."""
    archives: dict[tuple, str] = {}
    files: dict[str, str] = {}
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(place, name)
            if found := _WHOLE.fullmatch(name):
                archives[int(found[1]), name.startswith("OpenVidHD")] = path
            elif found := _PIECE.fullmatch(name):
                key = int(found[2]), name.startswith("OpenVidHD")
                archives.setdefault(key, "join:" + os.path.join(place, found[1]))
            elif name.lower().endswith(limits.VIDEO_SUFFIXES):
                files.setdefault(name, path)
    unreadable = {}
    for _, archive in sorted(archives.items()):
        try:
            for member, address in clips.addresses(archive).items():
                name = member.rpartition("/")[2]
                if name.lower().endswith(limits.VIDEO_SUFFIXES) and "::" not in member:
                    files.setdefault(name, address)
        except OSError as error:
            unreadable[os.path.basename(archive)] = str(error)
    return Parts(files, len(archives), unreadable)


def _find_table(folder: str, csv: str | None) -> str:
    if not os.path.isdir(folder):
        raise ValueError(
            f"--source=openvid:{folder} is no folder: give that of the OpenVid files, which "
            f"data_pipelines.download --source=openvid --out={folder} makes."
        )
    for name in (csv,) if csv else _TABLES:
        for place in ("", "data/train"):
            path = pathlib.Path(folder, place, name)
            if path.is_file():
                return str(path)
    raise ValueError(
        f"{folder} has no {csv or ' and no '.join(_TABLES)}: fetch the table with "
        f"python -m data_pipelines.download --source=openvid --parts= --out={folder}"
    )
