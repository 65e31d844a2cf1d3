"""What the page knows of each clip, by columns: numbers, labels and texts, from the ledger.

A page reads columns in chunks of rows. Numbers are float32 with NaN where nothing was measured,
labels are uint16 places in a list of words, and texts are read only for the clips in sight.
"""

import base64
import collections
import dataclasses
import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from data_pipelines.stages import ledger

BINS = 48  # of a histogram
MAX_TEXT = 4000  # characters of a caption or message that the page shows and searches
_MAX_WORDS = 500  # of a label; rarer ones are OTHER
_MAX_GIVEN = 12  # scores of the source, the most frequent ones
OTHER = "(other)"
FACTS = {  # column of the ledger: how a person calls it, unit
    "num_frames": ("frames", ""),
    "fps": ("frame rate", "fps"),
    "height": ("height", "px"),
    "width": ("width", "px"),
    "bytes": ("file size", "B"),
}
LABELS = ("status", "rule", "source", "kind", "format", "codec", "camera")
TEXTS = ("id", "message", "file", "parent", "sha256", "duplicate_of", "given")


@dataclasses.dataclass(frozen=True)
class Number:
    """One measured column: float32 values, and the bins of its histogram."""

    name: str
    title: str
    unit: str
    values: np.ndarray  # float32 [clip], NaN: not measured

    def describe(self) -> dict:
        """Returns name, title, unit, scale ("linear" or "log"), range, and clips in each bin."""
        known = self.values[np.isfinite(self.values)].astype(np.float64)
        low, high = float(known.min()), float(known.max())
        # sizes and the like lie over decades: a log scale shows more than one bin of them
        scale = "log" if low > 0 and high > 30 * np.median(known) else "linear"
        to_axis = np.log if scale == "log" else np.asarray
        span = to_axis(high) - to_axis(low)
        place = (to_axis(known) - to_axis(low)) / span * BINS if span else np.zeros(len(known))
        counts = np.bincount(np.minimum(place.astype(np.int64), BINS - 1), minlength=BINS)
        return {
            **{"name": self.name, "title": self.title, "unit": self.unit, "scale": scale},
            **{"low": low, "high": high, "counts": counts.tolist(), "known": len(known)},
        }


@dataclasses.dataclass(frozen=True)
class Label:
    """One column of few words: uint16 places in `words`."""

    name: str
    title: str
    words: list[str]
    codes: np.ndarray  # uint16 [clip]

    def describe(self) -> dict:
        counts = np.bincount(self.codes, minlength=len(self.words)).tolist()
        return {"name": self.name, "title": self.title, "words": self.words, "counts": counts}


def numbers(rows: pa.Table) -> list[Number]:
    """Returns seconds, the facts, the scores, and what the source states, where there is any."""
    is_image = np.array([kind == "image" for kind in rows["kind"].to_pylist()], bool)
    column = lambda name: _floats(rows[name])
    fps, frames = column("fps"), column("num_frames")
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds = np.where(fps > 0, frames / fps, np.nan)
    # an image's frame rate stands for "no motion": it is no fact of the file
    facts = {"fps": fps, "num_frames": frames, "seconds": seconds}
    facts = {name: np.where(is_image, np.nan, values) for name, values in facts.items()}
    found = [Number("seconds", "duration", "s", facts["seconds"])]
    for name, (title, unit) in FACTS.items():
        found.append(Number(name, title, unit, facts.get(name, column(name))))
    found += [Number(name, name.replace("_", " "), "", column(name)) for name in ledger.SCORES]
    found += _given(rows)
    finite = lambda x: np.where(np.isfinite(x), x, np.nan).astype(np.float32)
    found = [dataclasses.replace(number, values=finite(number.values)) for number in found]
    return [number for number in found if np.isfinite(number.values).any()]


def labels(rows: pa.Table) -> list[Label]:
    """Returns the label columns of the ledger that say anything."""
    found = []
    for name in LABELS:
        words = [word or "" for word in rows[name].to_pylist()]
        if any(words):
            found.append(label(name, name, words))
    return found


def label(name: str, title: str, words: list[str]) -> Label:
    """Codes words by frequency; the rarest of more than 500 become "(other)"."""
    ordered = [word for word, _ in collections.Counter(words).most_common()]
    known = ordered if len(ordered) <= _MAX_WORDS else [*ordered[: _MAX_WORDS - 1], OTHER]
    places = {word: place for place, word in enumerate(known)}
    codes = np.array([places.get(word, len(known) - 1) for word in words], np.uint16)
    return Label(name, title, [word[:MAX_TEXT] for word in known], codes)


def texts(rows: pa.Table, start: int, stop: int) -> dict[str, list]:
    """Returns the texts of some rows; long ones are cut, and end in "…"."""
    part = rows.slice(start, stop - start)
    found = {name: [_cut(text) for text in part[name].to_pylist()] for name in TEXTS}
    captions = zip(part["caption"].to_pylist(), part["text"].to_pylist(), strict=True)
    found["caption"] = [_cut(text if caption is None else caption) for caption, text in captions]
    times = zip(part["start"].to_pylist(), part["end"].to_pylist(), strict=True)
    found["times"] = [None if a is None and b is None else [a, b] for a, b in times]
    return found


def packed(values: np.ndarray) -> str:
    """Returns a column's bytes, little-endian, in base64."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<"))).decode()


def script(call: str, *arguments) -> bytes:
    """Returns a script `browse.CALL(...)`: pages opened as files can load no other data.

    Arguments are JSON in ASCII without "<": nothing in a caption can end a script or a string.
    """
    coded = (json.dumps(a, separators=(",", ":"), allow_nan=False) for a in arguments)
    return f"browse.{call}({','.join(coded)});\n".replace("<", "\\u003c").encode("ascii")


def _cut(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)


def _given(rows: pa.Table) -> list[Number]:
    """The numbers of the source itself, "given motion"; labels among them stay in the texts."""
    stated: dict[str, list[tuple[int, float]]] = collections.defaultdict(list)
    for row, text in enumerate(rows["given"].to_pylist()):
        for name, value in _mapping(text).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and abs(value) < 1e38:  # not infinite nor NaN either
                stated[name].append((row, value))
    found = []
    for name in sorted(stated, key=lambda name: -len(stated[name]))[:_MAX_GIVEN]:
        values = np.full(len(rows), np.nan)
        places, given = zip(*stated[name], strict=True)
        values[list(places)] = given
        found.append(Number(f"given.{name}", f"given {name}"[:80], "", values))
    return found


def _mapping(text: str | None) -> Mapping:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}
