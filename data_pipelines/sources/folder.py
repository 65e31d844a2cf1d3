"""A folder of videos and images, each with its caption in a file of the same name beside it.

NAME.txt holds the caption; NAME.json holds it as "text", "caption" or "prompt" and may name
"start", "end" and any scores. A clip without either has no caption. Files of other media formats
are listed too, as clips that cannot be read.
"""

import os
import pathlib

from data_pipelines.media import limits
from data_pipelines.process import text_files
from data_pipelines.sources import clips, rows, tables

TEXT_KEYS = ("text", "caption", "prompt")
MAX_SIDECAR = 10 << 20  # bytes
_WANTED = "mp4, mov, mkv, webm or avi, images to png, jpeg or webp"


def read(source: str, *, root: str | None = None) -> list[clips.Clip]:
    """Reads all clips below a folder, sorted by path.

    Raises:
        ValueError: If there is none.
    """
    suffixes = limits.VIDEO_SUFFIXES + limits.IMAGE_SUFFIXES
    listed = suffixes + limits.OTHER_SUFFIXES
    files = [p for p in pathlib.Path(source).rglob("*") if p.suffix.lower() in listed]
    files = sorted(p for p in files if p.is_file() or p.is_symlink())
    if not files:
        raise ValueError(
            f"{source} has no files named {', '.join('*' + s for s in suffixes)}: give the folder "
            "of the clips, or a CSV file with the columns path and text."
        )
    table = rows.Rows("folder", source, root)
    for number, file in enumerate(files, start=1):
        found, refused = {}, None
        try:
            found = _read_sidecar(file, root or source)
            if file.suffix.lower() not in suffixes:
                raise rows.Refused(
                    "unknown format",
                    f"{file.suffix} files are not read: copy or convert it to {_WANTED}.",
                )
        except rows.Refused as error:
            refused = error
        table.add(
            number, path=file.relative_to(source).as_posix(), refused=refused, **caption_of(found)
        )
    return table.clips


def caption_of(found: dict) -> dict:
    """Sorts the content of a sidecar into text, start, end and given."""
    found = dict(found)
    key = next((key for key in TEXT_KEYS if found.get(key) is not None), None)
    taken = {"text": found.pop(key, None), "start": found.pop("start", None)}
    return {**taken, "end": found.pop("end", None), "given": found.items()}


def _read_sidecar(file: pathlib.Path, root: str) -> dict:
    for suffix in (".txt", ".json"):
        sidecar = file.with_suffix(suffix)
        if not os.path.lexists(sidecar):
            continue
        try:
            rows.inside(root, str(sidecar))
        except rows.Refused as error:
            raise rows.Refused(error.reason, f"the caption {sidecar.name}: {error}") from error
        with open(sidecar, "rb") as handle:
            content = handle.read(MAX_SIDECAR + 1)
        return parse_sidecar(sidecar.name, content)
    return {}


def parse_sidecar(name: str, content: bytes) -> dict:
    """Returns what a .txt or .json file says, {"text": ...} and more.

    Raises:
        Refused: If it is over MAX_SIDECAR bytes, or no JSON object.
    """
    if len(content) > MAX_SIDECAR:
        raise rows.Refused("caption too long", f"{name} has over {MAX_SIDECAR} bytes.")
    if not name.endswith(".json"):
        return {"text": text_files.decode(content, "replace")}
    found = tables.parse_json(text_files.decode(content, "replace"))
    if isinstance(found, rows.Refused):
        raise rows.Refused(found.reason, f"{name}: {found}")
    return found
