"""Everything about a file that needs its pixels, in one decode: facts, checks, scenes and scores.

`examine` runs in a child process of its own, since files come from anywhere: whatever is wrong with
one becomes a ledger row with a reason, never an exception.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import BinaryIO

from data_pipelines.media import probes, video_io
from data_pipelines.sources import clips
from data_pipelines.stages import cuts, look, scene, scores

SCENE_TOO_SHORT = "scene too short"
ROUNDING_SECONDS = 1e-6  # of times that are sums: two seconds may be 1.9999999999999996


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, besides the facts and the check of every frame. Plain values, picklable.

    Raises:
        ValueError: If a value makes no sense.
        ImportError: If what is asked for needs a package that is missing.
    """

    limits: video_io.Limits = dataclasses.field(default_factory=video_io.Limits)
    cuts: bool = False  # one row a scene
    cut_threshold: float = 3.0  # see `cuts.Cutter`
    min_seconds: float = 0.0  # shorter scenes are left out
    max_seconds: float | None = None  # longer scenes end here
    split_long: bool = False  # the rest of a longer scene becomes further ones instead of nothing
    scores: tuple[str, ...] = ()  # some of `scene.NAMES`
    num_stills: int = 0  # larger copies of frames for models, under the key "stills"
    still_side: int = 336  # their short side at most, in pixels

    def __post_init__(self):
        unknown = [name for name in self.scores if name not in scene.NAMES]
        if unknown:
            raise ValueError(
                f"scores={','.join(unknown)}: not measured from pixels alone; these are "
                f"{', '.join(scene.NAMES)}."
            )
        if self.max_seconds is not None and not 0 < self.max_seconds >= self.min_seconds >= 0:
            raise ValueError(
                f"min_seconds={self.min_seconds}, max_seconds={self.max_seconds}: no scene fits."
            )
        if self.cuts:
            cuts.Cutter(self.cut_threshold)
        if {*self.scores} & {*scene.NEED_OPENCV}:
            scores.opencv()


def examine(
    file: BinaryIO | str | os.PathLike, clip: clips.Clip, options: Options | None = None
) -> list[dict]:
    """Decodes a file to the end and returns its ledger rows (keys of `ledger.SCHEMA`).

    Rows carry no verdict of a filter: `status` is set only where a file or a scene cannot be used.

    Args:
        file: A path or URL (`clips.open_binary`), or a seekable binary file.
        clip: The row of the clip table that names the file. With `start` and `end` only frames in
            between count, and frames from `end` on are not decoded.
        options: What to measure; None: nothing but facts.

    Returns:
        One row, with the clip's id; with `cuts` one row a scene of a video, with ids "ID#000" and
        so on, `parent`, and `start` and `end` in seconds. A scene that is the
        whole clip keeps the clip's own start and end. With `num_stills` a row has another key,
        `stills`: JPEG files for models to look at.
    """
    options = options or Options()
    row = {k: getattr(clip, k) for k in ("id", "source", "file", "start", "end", "text")}
    row["given"] = to_json(clip.given)
    try:
        if isinstance(file, (str, os.PathLike)):
            with clips.open_binary(os.fspath(file)) as opened:
                return _rows(opened, row, options)
        return _rows(file, row, options)
    except video_io.MediaError as error:
        return [row | _facts(error.head) | refusal(error.reason, str(error))]
    except FileNotFoundError:
        return [row | refusal("missing file", "there is no such file.")]
    except OSError as error:
        return [row | refusal("unreadable", f"{error.strerror or error}.")]
    except MemoryError:
        return [row | refusal("too large", "the memory limit of a decoder was reached.")]
    except Exception as error:  # a decoder's own bug must not end the ingest of all other files
        return [row | refusal("decoder error", f"{type(error).__name__}: {error}")]


def to_json(given: Mapping) -> str:
    """Returns what a source says of a clip as the ledger holds it."""
    return json.dumps(dict(given), sort_keys=True, ensure_ascii=False)


def refusal(rule: str, message: str) -> dict:
    """Returns the verdict of a clip that is left out."""
    return {"status": "left out", "rule": rule, "message": message}


def _rows(file: BinaryIO, row: dict, options: Options) -> list[dict]:
    row["bytes"] = file.seek(0, os.SEEK_END)  # a refusal has what was found until then
    if row["bytes"] > options.limits.max_bytes:
        raise video_io.MediaError(
            "too large", f"{row['bytes']} bytes, the limit is {options.limits.max_bytes}."
        )
    file.seek(0)
    row["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    visitor = _visitor(options)
    probe = video_io.check(file, options.limits, visitor, start=row["start"], end=row["end"])
    row |= _facts(probe)
    scenes = visitor.finish()
    if not options.cuts or probe.kind == "image":
        return [row | _frames(scenes[0])]
    whole = (scenes[0].first, scenes[0].stop) == (visitor.first, visitor.next)
    return [
        row | _scene_row(f"{row['id']}#{i:03d}", found, row, whole, options)
        for i, found in enumerate(scenes)
    ]


def _facts(probe: probes.Probe | None) -> dict:
    names = ("kind", "format", "codec", "height", "width", "pixel_aspect", "fps")
    return {name: getattr(probe, name) for name in names} if probe else {}


def _visitor(options: Options) -> look.Visitor:
    return look.Visitor(
        lambda number: scene.Scene(number, options.scores, options.num_stills),
        cutter=cuts.Cutter(options.cut_threshold) if options.cuts else None,
        max_seconds=options.max_seconds if options.cuts else None,
        split_long=options.split_long,
        looks=bool(options.scores),
        still_side=max(options.still_side, scores.SHARP_SIDE),
    )


def _frames(found: look.Scene) -> dict:
    return {"first_frame": found.first, "num_frames": found.stop - found.first} | found.values


def _scene_row(id: str, found: look.Scene, row: dict, whole: bool, options: Options) -> dict:
    """Returns what sets the row of a scene apart from that of its file."""
    seconds = found.end - found.start
    values = {"id": id, "parent": row["id"]} | _frames(found)
    if not whole:
        values |= {"start": found.start, "end": found.end}
    if seconds < options.min_seconds - ROUNDING_SECONDS:
        values |= refusal(
            SCENE_TOO_SHORT, f"{seconds:.2f} seconds, min_seconds={options.min_seconds:g}."
        )
    return values
