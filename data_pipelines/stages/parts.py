"""The clip table in parts of 64 clips, and the ledger rows of each part in a file of its own.

A part is what a kill may cost, and what engines hand out: it has the same rows on every machine,
with any number of workers. Files are opened here and decoded in a child process behind `guard`, so
that the worst a file can do is end the child, which is then its own verdict.
"""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet

from data_pipelines.sources import clips
from data_pipelines.stages import examine, ledger, measured, plan, rules
from data_pipelines.workers import children, guard

CLIPS_A_PART = 64
KNOWN = "known.parquet"  # beside the clip table: what was measured before
_TABLE = pa.schema(
    [(name, pa.string()) for name in ("id", "file", "text", "source")]
    + [("start", pa.float64()), ("end", pa.float64()), ("given", pa.string())]
)


class Stopped(Exception):
    """The run was asked to stop while this clip was at work; there is no verdict."""


def write_table(path: pathlib.Path, table: Sequence[clips.Clip]):
    """Writes a clip table, one row group a part."""
    rows = [{name: getattr(clip, name) for name in _TABLE.names} for clip in table]
    for row in rows:
        row["given"] = _json(row["given"])
        for name in ("id", "file", "text", "source"):
            if row[name] is not None:  # "surrogateescape" keeps names that are not UTF-8
                row[name] = json.dumps(row[name])
    part = path.with_name(path.name + ".part")
    columns = [pa.array([row[f.name] for row in rows], f.type) for f in _TABLE]
    pyarrow.parquet.write_table(
        pa.Table.from_arrays(columns, schema=_TABLE), part, row_group_size=CLIPS_A_PART
    )
    os.replace(part, path)


def read_part(path: pathlib.Path, number: int) -> list[clips.Clip]:
    """Returns the clips of one part of a table."""
    with pyarrow.parquet.ParquetFile(path) as file:
        rows = file.read_row_group(number).to_pylist()
    for row in rows:
        for name in ("id", "file", "text", "source"):
            row[name] = None if row[name] is None else json.loads(row[name])
        row["given"] = json.loads(row["given"])
    return [clips.Clip(**row) for row in rows]


def table_digest(table: Sequence[clips.Clip], places: Sequence[str | None]) -> str:
    """Names a clip table and what its files were: what is examined follows from them."""
    digest = hashlib.sha256()
    for clip, place in zip(table, places, strict=True):
        row = [getattr(clip, name) for name in _TABLE.names[:-1]]
        digest.update(json.dumps([*row, _json(clip.given), place]).encode() + b"\n")
    return digest.hexdigest()


def places(table: Sequence[clips.Clip]) -> list[str | None]:
    """Returns for each clip's file what tells, without reading it, whether it has changed.

    Of a local file or the archive around it: its path, bytes and time of last change; of a URL
    itself alone. None: there is no such file.
    """
    status = functools.lru_cache(1 << 10)(_status)
    return [
        status(_local(clip.file)) and f"{clip.file}|{status(_local(clip.file))}" for clip in table
    ]


def _local(file: str) -> str:
    """Returns the path of a file that is not a member of an archive, or of the archive."""
    if file.startswith("zip://"):
        return _local(file.partition("::")[2])
    if file.startswith("tar:"):
        return _local(file.removeprefix("tar:").rpartition("#")[0])
    return file.removeprefix("file://")


def _status(path: str) -> str | None:
    try:
        if path.startswith("join:"):
            return "+".join(map(str, map(_status, clips.split_pieces(path.removeprefix("join:")))))
        if "://" in path:
            return "url"
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return f"{os.path.abspath(path)}|{status.st_size}|{status.st_mtime_ns}"


def num_parts(num_clips: int) -> int:
    return -(-num_clips // CLIPS_A_PART)


def size(number: int, num_clips: int) -> int:
    """Returns how many clips a part has."""
    return min(CLIPS_A_PART, num_clips - CLIPS_A_PART * number)


def part_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"{number:05d}.parquet"


def missing(folder: pathlib.Path, num_clips: int) -> list[int]:
    """Returns the numbers of the parts that are not examined yet."""
    names = set(os.listdir(folder)) if folder.exists() else set()
    numbers = range(num_parts(num_clips))
    return [number for number in numbers if part_path(folder, number).name not in names]


def part_paths(folder: pathlib.Path, num_clips: int) -> list[pathlib.Path]:
    """Returns the files of all parts, in the order of the clip table."""
    return [part_path(folder, number) for number in range(num_parts(num_clips))]


def read_rows(folder: pathlib.Path, num_clips: int) -> pa.Table:
    """Returns the ledger rows of all parts, in the order of the clip table."""
    return pa.concat_tables([ledger.read(path) for path in part_paths(folder, num_clips)])


class Examiner:
    """Gives the ledger rows of clips, and writes those of whole parts; threads may share it.

    Models are loaded at once, so that what is wrong with them is said before any work.

    Args:
        table: The clip table's file.
        folder: Where the parts are kept.
        plain: The config as plain values.
        num_workers: Child processes.

    Raises:
        ImportError: If a model needs a package that is missing.
        ValueError: If a model cannot be read.
    """

    def __init__(self, table: pathlib.Path, folder: pathlib.Path, plain: dict, num_workers: int):
        self.table, self.folder, self.plain = table, folder, plain
        self.how, self.early = plan.measurement(plain), plan.early_rules(plain)
        known = table.with_name(KNOWN)
        self.known = measured.Store([known] if known.exists() else [], self.how, self.early)
        self.num_workers = num_workers
        self.wants_text = not plain["endpoint"]["url"]
        limits = plain["limits"]
        self.max_bytes = limits["max_bytes"]
        answers = folder.parent / f"captions-{self.how['models'][:16]}.jsonl"
        self.models, self.models_lock = _models(plain, answers), threading.Lock()
        self.pool = children.Pool(
            num_workers,
            "data_pipelines.stages.parts:make_examiner",
            (plan.examine_options(plain), limits["memory_bytes"]),
            limits["deadline_seconds"],
            memory_bytes=limits["memory_bytes"],
        )

    def clip_rows(self, clip: clips.Clip) -> list[dict]:
        """Returns what one clip is, one row or one a scene; never fails for what is in a file.

        Rows have the columns of `measured.SCHEMA`, as far as something was measured.

        Raises:
            Stopped: If the examiner was closed meanwhile.
        """
        row = {
            name: getattr(clip, name) for name in ("id", "source", "file", "start", "end", "text")
        }
        row["given"] = examine.to_json(clip.given)
        if refused := clip.given.get("refused"):
            rule, _, message = str(refused).partition(": ")
            return [row | examine.refusal(rule, message)]
        if self.wants_text and not (clip.text or "").strip():
            return [row | examine.refusal("no caption", "the text is empty or its file missing.")]
        (place,) = places([clip])  # before it is read: what changes meanwhile is read again
        try:
            with open_file(clip.file, self.max_bytes) as file:
                found = self._known(clip, file) or self._measured(clip, row, file)
        except FileNotFoundError:
            return [row | examine.refusal("missing file", "there is no such file.")]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            return [row | examine.refusal("unreadable", f"{reason}.")]
        return [one | {"place": place} for one in found]

    def _known(self, clip: clips.Clip, file: BinaryIO) -> list[dict]:
        """Returns the rows of content that was measured before, wherever it was."""
        if not len(self.known):
            return []
        number = self.known.of(_sha256(file), clip)
        file.seek(0)
        rows, lacking = self.known.take([number], [clip]) if number is not None else ([], True)
        return [] if lacking else rows.to_pylist()

    def _measured(self, clip: clips.Clip, row: dict, file: BinaryIO) -> list[dict]:
        try:
            found = self._call(clip, file)
        except children.WorkerDied as error:
            if self.pool.closed:
                raise Stopped from error
            facts = {"bytes": file.seek(0, os.SEEK_END), "sha256": _sha256(file)}
            found = [row | facts | examine.refusal(f"decoder {error.reason}", str(error))]
        how = json.dumps(self.how | {"models": "", "text": ""}, sort_keys=True)
        return [one | {"asked": measured.asked(clip), "how": how} for one in found]

    def _call(self, clip: clips.Clip, file: BinaryIO) -> list[dict]:
        for attempt in (1, 2):
            try:
                return self.pool(clip, [file])
            except children.WorkerDied as error:
                # a child that something else has killed says nothing of the clip: once more
                if error.reason != "crash" or attempt == 2 or self.pool.closed:
                    raise
                file.seek(0)
            except RuntimeError as error:
                if self.pool.closed:
                    raise Stopped from error
                raise
        raise AssertionError

    def write_part(self, number: int, rows: list[dict]) -> collections.Counter:
        """Lets the models see a part's clips, and writes its rows; returns counts by status."""
        rows = self._model_rows(rows)
        measured.write(part_path(self.folder, number), rows)
        return collections.Counter(row.get("status") or ledger.KEPT for row in rows)

    def _model_rows(self, rows: list[dict]) -> list[dict]:
        """Adds what models and the endpoint say, to clips that no rule leaves out before."""
        if not any("stills" in row for row in rows):
            return rows
        plain_rows = [{k: v for k, v in row.items() if k != "stills"} for row in rows]
        verdicts = rules.apply(self.early, ledger.table(plain_rows, measured.SCHEMA))
        is_shown = [
            "stills" in row and verdict is None and row.get("status") is None
            for row, verdict in zip(rows, verdicts, strict=True)
        ]
        shown = [row if s else p for row, p, s in zip(rows, plain_rows, is_shown, strict=True)]
        with self.models_lock:
            for model in self.models:
                shown = list(model(shown))
        for row, is_seen in zip(shown, is_shown, strict=True):
            row.pop("stills", None)
            if is_seen:
                text = measured.mark(self.how, row["text"])
                row["how"] = json.dumps(self.how | {"text": text}, sort_keys=True)
        return shown

    def examine_part(self, number: int) -> collections.Counter:
        """Examines one part, unless it is there; returns its counts."""
        if part_path(self.folder, number).exists():
            return collections.Counter()
        with concurrent.futures.ThreadPoolExecutor(self.num_workers) as threads:
            found = list(threads.map(self.clip_rows, read_part(self.table, number)))
        return self.write_part(number, [row for rows in found for row in rows])

    def close(self):
        self.pool.close()


def _sha256(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def make_examiner(options: examine.Options, memory_bytes: int):
    """Returns what a child process calls for each clip and its open file."""
    guard.enter(memory_bytes)
    return lambda clip, file: examine.examine(file, clip, options)


def _models(plain: dict, answers: pathlib.Path) -> list[Callable]:
    """Returns the functions rows -> rows of the models that a config asks for.

    The answers of a caption endpoint are kept in a file, so that none is paid for twice.
    """
    paths, endpoint, steps = plain["models"], plain["endpoint"], []
    if paths["text"]:
        from data_pipelines.stages import overlay

        steps.append(overlay.TextDetector(paths["text"]).score_rows)
    if endpoint["url"]:
        from data_pipelines.stages import captions

        prompt = endpoint["prompt"] or captions.PROMPT
        options = {name: endpoint[name] for name in ("parallel", "timeout")}
        options |= {"num_frames": paths["num_stills"], "cache": answers}
        steps.append(
            captions.Captioner(endpoint["url"], endpoint["model"], prompt, **options).caption_rows
        )
    if paths["clip"]:
        from data_pipelines.stages import clip_scores

        scorer = clip_scores.Scorer(
            paths["clip"], paths["aesthetic"] or None, allow_pickle=paths["allow_pickle"]
        )
        steps.append(scorer.score_rows)
    return steps


@contextlib.contextmanager
def open_file(name: str, max_bytes: int) -> Iterator[BinaryIO]:
    """Opens a clip's file for a child process: a file of the system, at its beginning.

    What is none (a member of an archive, a remote file) is copied to a temporary file first, up to
    one byte more than is allowed.

    Raises:
        OSError: If it cannot be opened, or is a folder, pipe or device.
    """
    if "://" not in name and not name.startswith(("tar:", "join:")):
        mode = os.stat(name).st_mode
        if not stat.S_ISREG(mode):
            raise OSError("not a regular file")  # a pipe would wait for its other end
    with clips.open_binary(name) as opened:
        try:
            opened.fileno()
        except (OSError, AttributeError):
            with tempfile.TemporaryFile() as copy:
                _copy(opened, copy, max_bytes + 1)
                copy.seek(0)
                yield copy
        else:
            yield opened


def _copy(source: BinaryIO, target: BinaryIO, max_bytes: int):
    while max_bytes > 0 and (content := source.read(min(1 << 20, max_bytes))):
        target.write(content)
        max_bytes -= len(content)
    target.flush()


def _json(given) -> str:
    return json.dumps(dict(given), sort_keys=True)
