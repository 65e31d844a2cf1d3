"""Everything about a file that needs its pixels, in one decode: facts, checks, scenes and scores.

`examine` runs in a child process of its own, since files come from anywhere: whatever is wrong with
one becomes a ledger row with a reason, never an exception.
"""

import dataclasses
import hashlib
import json
import os
from typing import BinaryIO

from data_pipelines import video_io


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, besides the facts and the check of every frame. Plain values, picklable."""

    limits: video_io.Limits = dataclasses.field(default_factory=video_io.Limits)


def examine(file: BinaryIO | str | os.PathLike, clip, options: Options = Options()) -> list[dict]:
    """Decodes a file to the end and returns its ledger rows (keys of `ledger.SCHEMA`).

    Rows carry no verdict of a rule: `status` is set only where a file cannot be used.

    Args:
        file: A path, or a seekable binary file.
        clip: The row of the clip table (`clips.Clip`) that names the file.
        options: What to measure.

    Returns:
        One row; a file that cannot be used has status "left out", rule and message.
    """
    row = {k: getattr(clip, k) for k in ("id", "source", "file", "start", "end", "text")}
    row["given"] = json.dumps(dict(clip.given), sort_keys=True, ensure_ascii=False)
    try:
        if isinstance(file, (str, os.PathLike)):
            with open(file, "rb") as opened:
                return [row | _facts(opened, options)]
        return [row | _facts(file, options)]
    except video_io.MediaError as error:
        return [row | refusal(error.reason, str(error))]
    except FileNotFoundError:
        return [row | refusal("missing file", "there is no such file.")]
    except OSError as error:
        return [row | refusal("unreadable", f"{error.strerror or error}.")]
    except MemoryError:
        return [row | refusal("too large", "the memory limit of a decoder was reached.")]
    except Exception as error:  # a decoder's own bug must not end the ingest of all other files
        return [row | refusal("decoder error", f"{type(error).__name__}: {error}")]


def refusal(rule: str, message: str) -> dict:
    """Returns the verdict of a clip that is left out."""
    return {"status": "left out", "rule": rule, "message": message}


def _facts(file: BinaryIO, options: Options) -> dict:
    facts = {"bytes": file.seek(0, os.SEEK_END)}
    if facts["bytes"] > options.limits.max_bytes:
        raise video_io.MediaError(
            "too large", f"{facts['bytes']} bytes, the limit is {options.limits.max_bytes}."
        )
    file.seek(0)
    facts["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    probe = video_io.check(_source(file), options.limits)
    return facts | {
        k: v for k, v in dataclasses.asdict(probe).items() if k in _PROBE_KEYS and v is not None
    }


_PROBE_KEYS = ("kind", "format", "codec", "num_frames", "height", "width", "fps")


def _source(file: BinaryIO):
    return file.name if isinstance(getattr(file, "name", None), str) else file.read()
