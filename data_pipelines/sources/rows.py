"""From a row that nobody checked to a Clip: paths, ids, times and captions of a clip table.

A row that cannot be used stays in the table, with the reason in `given["refused"]`, so that the
ledger tells of it: a path outside of the root (".." or a symbolic link included), a caption of 10
MB, an id that came before. Captions become NFC text without control characters, in which halves
of surrogate pairs and bytes that are not UTF-8 are replaced by U+FFFD.
"""

import contextlib
import functools
import math
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping

from data_pipelines.sources import clips

MAX_CAPTION = 20_000  # characters; the longest of MiraData's have 4,000
MAX_LABEL = 200  # characters of a string in `given`: labels, not prose
_MAX_LABELS = 64
_MAX_ID = 1000

_BLANKS = re.compile(r"[\t-\r\x1c-\x1f\x85\u2028\u2029]+")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x9f]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")


class Refused(ValueError):
    """A row that cannot be used.

    Attributes:
        reason: One short word or two for counting.
        path: Of the row, where it could be read; it is a part of the row's id then.
    """

    def __init__(self, reason: str, message: str, *, path: str | None = None):
        super().__init__(message)
        self.reason, self.path = reason, path


class Rows:
    """Collects the clips of one source.

    Args:
        source: Name of the data set, for `Clip.source`.
        base: Folder (or URL) that paths are relative to.
        root: What they may not leave; None: `base`.
    """

    def __init__(self, source: str, base: str | os.PathLike, root: str | None = None):
        self.clips: list[clips.Clip] = []
        self._source, self._base = source, os.fspath(base) or "."
        self._root = root or self._base
        self._ids: set[str] = set()

    def add(
        self,
        number: int,
        *,
        path: object = None,
        text: object = None,
        id: object = None,
        start: object = None,
        end: object = None,
        given: Iterable[tuple[object, object]] = (),
        file: str | None = None,
        refused: Refused | None = None,
    ):
        """Adds row `number` (counted from 1), whatever is in it.

        Args:
            number: Names a row that has no usable id: "row-000017".
            path: As written in the table. With `file` it only names the clip.
            text: Caption.
            id: Where the source has its own; otherwise the path is the id, with the times where
                there are some ("a.mp4@1-2.5"): one file may hold many clips.
            start: Seconds, or "H:MM:SS.sss".
            end: The same.
            given: Other columns; of them, numbers and short strings stay.
            file: What to open, where the source knows it.
            refused: What is wrong with the row, where the source knows it.
        """
        clip_id, clean = f"row-{number:06d}", None
        place = file or ""
        times = (None, None)
        labels = clean_labels(given)
        try:
            if refused is not None and refused.path:
                with contextlib.suppress(Refused):  # a row that can be read may have the id
                    clip_id = f"{clean_id(self._place(refused.path)[0])}-{clip_id}"
            if id is not None and id != "":
                clip_id = clean_id(id)
            elif path is not None and file is not None:
                clip_id = clean_id(path)
            elif path is not None and path != "":
                clip_id = clean_id(self._place(path)[0])
            if refused is not None:
                raise refused
            if file is None:
                place = self._file(path)
            clean = clean_caption(text)
            times = clean_times(start, end)
            if (id is None or id == "") and times != (None, None):
                clip_id += _span(*times)
            if clip_id in self._ids:
                raise Refused("duplicate id", f"{clip_id} stands in an earlier row.")
        except Refused as error:
            labels["refused"] = f"{error.reason}: {error}"
        while clip_id in self._ids:
            clip_id += f"-row-{number:06d}"
        self._ids.add(clip_id)
        self.clips.append(clips.Clip(clip_id, place, clean, self._source, *times, labels))

    def _place(self, path: object) -> tuple[str, str]:
        """Returns (path below the base or else the root, file), without touching the disk."""
        if path is None or path == "":
            raise Refused("missing path", "the row names no file.")
        if not isinstance(path, str) or not path.strip() or not _is_plain(path):
            raise Refused("bad path", f"{str(path)[:80]!a} is blank or not plain text.")
        if "://" in self._base:
            relative = posixpath.normpath(path.removeprefix(self._base.rstrip("/") + "/"))
            if "://" in path and relative == posixpath.normpath(path):
                raise Refused("outside root", f"{path[:200]} is not below {self._base}.")
            if relative == ".." or relative.startswith(("../", "/")):
                raise Refused("outside root", f"{path[:200]} leaves {self._base}.")
            return relative, posixpath.join(self._base, relative)
        if "://" in path or path.startswith(("tar:", "join:")):
            raise Refused("outside root", f"{path[:200]} is no path below {self._root}.")
        file = os.path.normpath(os.path.join(self._base, path))
        for folder in (self._base, self._root):
            relative = os.path.relpath(file, folder)
            if relative != ".." and not relative.startswith("../"):
                return relative, file
        raise Refused(
            "outside root",
            f"{path[:200]} leaves {self._root}: SOURCE?root=FOLDER allows a folder above it.",
        )

    def _file(self, path: object) -> str:
        file = self._place(path)[1]
        if "://" in self._base:
            return file
        if not (path.isascii() or os.path.lexists(file)):
            # macOS writes names in NFD, and most tables are in NFC
            forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
            files = (self._place(form)[1] for form in forms)
            file = next(filter(os.path.lexists, files), file)
        return inside(self._root, file)


def inside(root: str, file: str) -> str:
    """Returns `file` where it is one, and no symbolic link leads out of `root`.

    Raises:
        Refused: Otherwise.
    """
    try:
        status = os.lstat(file)
        if stat.S_ISLNK(status.st_mode):
            real, status = os.path.realpath(file), os.stat(file)
        else:
            real = os.path.join(_real_folder(os.path.dirname(file)), os.path.basename(file))
    except FileNotFoundError as error:
        raise Refused("missing file", "there is no such file.") from error
    except (OSError, ValueError) as error:
        raise Refused("unreadable", f"the file cannot be reached: {error}.") from error
    top = _real_folder(root)
    if os.path.commonpath([top, real]) != top:
        raise Refused(
            "outside root",
            f"the file is {real}, outside of {root}: SOURCE?root=FOLDER allows a folder that "
            "holds both.",
        )
    if not stat.S_ISREG(status.st_mode):
        raise Refused("not a file", "the path is of a folder or a device.")
    return file


@functools.lru_cache(65536)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def clean_caption(text: object) -> str | None:
    """Returns the caption as NFC text on one line, None if it is missing or empty.

    Raises:
        Refused: If it is longer than MAX_CAPTION characters, or no text.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise Refused("bad caption", f"the caption is {type(text).__name__}, not text.")
    text = text.strip()
    if len(text) > MAX_CAPTION:
        lines = text.count("\n")
        hint = f" in {lines} lines (is a quote left open?)" if lines > 100 else ""
        raise Refused(
            "caption too long",
            f"{len(text)} characters{hint}, the limit is {MAX_CAPTION}.",
        )
    return _clean(text) or None


def _clean(text: str) -> str:
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = unicodedata.normalize("NFC", text)
    return _CONTROLS.sub("", _BLANKS.sub(" ", text)).strip()


def clean_id(value: object) -> str:
    """Returns the id of a clip.

    Raises:
        Refused: If it is no text, too long, or could be mistaken for a path elsewhere.
    """
    text = value if isinstance(value, str) else str(value) if isinstance(value, int | float) else ""
    if not text.strip() or len(text) > _MAX_ID or not _is_plain(text):
        raise Refused("bad id", f"{text[:80]!a} is empty, over {_MAX_ID} long or not plain text.")
    text = unicodedata.normalize("NFC", text.strip())
    if text.startswith("/") or ".." in text.split("/"):
        raise Refused("bad id", f"{text[:200]} is a path that leaves its folder.")
    return text


def _is_plain(text: str) -> bool:
    return text.isprintable() or not any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text
    )


def clean_times(start: object, end: object) -> tuple[float | None, float | None]:
    """Returns (start, end) in seconds; None where nothing is said.

    Raises:
        Refused: If they are no times, or the end is not after the start.
    """
    first, last = _seconds(start), _seconds(end)
    if last is not None and last <= (first or 0.0):
        raise Refused("bad times", f"the clip ends at {last} s and starts at {first or 0.0} s.")
    return first, last


def _span(start: float | None, end: float | None) -> str:
    """What tells one part of a file from another, in a clip's id: "@1.5-4"."""
    return f"@{start or 0.0:.10g}-{'' if end is None else f'{end:.10g}'}"


def _seconds(value: object) -> float | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    seconds = math.nan
    if isinstance(value, int | float):
        seconds = float(value) if abs(value) < 1e9 else math.inf
    elif isinstance(value, str) and len(value) < 40:
        if clock := _CLOCK.fullmatch(value.strip()):
            hours, minutes, rest = clock.groups()
            seconds = 3600 * int(hours or 0) + 60 * int(minutes) + float(rest)
        elif _NUMBER.fullmatch(value.strip()):
            seconds = float(value)
    if not 0 <= seconds < 1e7:
        raise Refused("bad times", f"{str(value)[:40]!a} is no time in seconds.")
    return seconds


def clean_labels(pairs: Iterable[tuple[object, object]] | Mapping) -> dict[str, float | str]:
    """Returns numbers as float and short strings; all else is dropped, as is a key "refused"."""
    labels: dict[str, float | str] = {}
    for key, value in pairs.items() if isinstance(pairs, Mapping) else pairs:
        if not isinstance(key, str) or len(key) > MAX_LABEL or len(labels) >= _MAX_LABELS:
            continue
        if isinstance(value, str):
            value = value.strip()
            if len(value) < 40 and _NUMBER.fullmatch(value):
                value = float(value)
            elif value and len(value) <= MAX_LABEL:
                value = _clean(value)
        elif isinstance(value, int | float):
            value = float(value) if abs(value) < 1e300 else math.inf
        name = _clean(key)
        keep = isinstance(value, float) and math.isfinite(value)
        if isinstance(value, str):
            keep = 0 < len(value) <= MAX_LABEL
        if name and name != "refused" and keep:
            labels[name] = value
    return labels
