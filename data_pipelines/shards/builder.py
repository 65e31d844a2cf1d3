"""Writes data sets shard by shard, so that work which was killed goes on with the next shard.

`write_shards` gives the same records and metadata as the TFDS builder (`tfds_clips`), and can be
stopped at any moment: finished shards stay in `OUT.work` beside the target, and the target appears
in one rename when everything is in it.

A data set grows where `finish` is told which of its records stay: new shards are added to the
folder, the old ones stay as they are, and meta.json, replaced last, says what counts.

Several processes, on one machine or many with a common folder, share a job by the parts of
`write_shards`: each calls `start`, then `write_shard` for its own numbers, and whoever finds
nothing `missing` calls `finish`. They need no other word from each other; any of them may be killed
at any moment, and two may finish at the same time. Where two have the same shards, the slower one
may find the job finished and its folder gone: `quicker` turns that error into the end of its work.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import tqdm

from data_pipelines.shards import records, tfds_clips

_FIELDS = 1  # of the fingerprint: raise it when the fields of a record change


class Unfinished(ValueError):
    """Shards of a job are not written yet."""


def write_shards(
    out: str | os.PathLike,
    kind: str,
    num_shards: int,
    make_shard: Callable[[int], Iterable[Mapping]],
    *,
    key: str,
    extra: Mapping | None = None,
    files: Mapping[str, bytes] | None = None,
) -> dict:
    """Writes a data set; killed at any moment and called again, it gives the same bytes.

    Args:
        out: The folder to make. If it is there with the same key, nothing is done.
        kind: "video" or "latent".
        num_shards: Shards to make; those without records are left out at the end.
        make_shard: Shard number -> its records, the same on each call. Called once for each shard
            that is not finished yet, in order.
        key: Names everything that the records depend on (source, settings, weights). Shards of
            another key in the work folder are thrown away.
        extra: More entries for meta.json.
        files: More files for the folder, by name.

    Returns:
        The content of meta.json.

    Raises:
        ValueError: If `out` holds something else, or no shard has a record.
    """
    if done := finished(out, key):
        return done
    with quicker(out, key):
        work = start(out, kind, num_shards, key=key)
        todo = missing(work, num_shards)
        progress = tqdm.tqdm(
            total=num_shards, initial=num_shards - len(todo), desc=f"{kind} shards", unit="shard"
        )
        for number in todo:
            write_shard(work, kind, number, num_shards, make_shard(number))
            progress.update()
        progress.close()
    return finish(out, kind, num_shards, key=key, extra=extra, files=files)


@contextlib.contextmanager
def quicker(out: str | os.PathLike, key: str) -> Iterator[None]:
    """Leaves the block quietly where another process has finished the data set meanwhile."""
    try:
        yield
    except (OSError, ValueError):
        if not finished(out, key):
            raise


def start(out: str | os.PathLike, kind: str, num_shards: int, *, key: str) -> pathlib.Path:
    """Returns the work folder of a data set, ready for the shards of a job.

    What other jobs left in it is deleted. Arguments as in `write_shards`.
    """
    work = work_folder(out)
    (work / "shards").mkdir(parents=True, exist_ok=True)
    before = _read_meta(pathlib.Path(out))
    facts = {"kind": kind, "num_shards": num_shards, "key": key}
    facts |= {"before": [before.get("run"), before.get("fingerprint")]}
    state = json.dumps(facts).encode()
    path = work / "state.json"
    if not path.exists() or path.read_bytes() != state:
        _write_apart(path, state)
    tag = _tag(work)
    for other in (work / "shards").iterdir():
        if tag not in other.name:
            other.unlink(missing_ok=True)
    return work


def write_shard(
    work: pathlib.Path, kind: str, number: int, num_shards: int, examples: Iterable[Mapping]
) -> dict:
    """Writes one shard, unless it is there already.

    Args:
        work: What `start` returned.
        kind: "video" or "latent".
        number: Of the shard.
        num_shards: Of the job.
        examples: The records; not asked for where the shard is there.

    Returns:
        `number`, `num_records`, `bytes` and `sha256` of the shard.
    """
    assert 0 <= number < num_shards
    path = _shard_path(work, number)
    if not path.with_suffix(".json").exists():
        _write_records(path, kind, examples)
    facts = json.loads(path.with_suffix(".json").read_text())
    return {
        "number": number,
        "num_records": len(facts["rows"]),
        "bytes": facts["bytes"],
        "sha256": facts["sha256"],
    }


def missing(work: pathlib.Path, num_shards: int) -> list[int]:
    """Returns the numbers of the shards that are not written yet."""
    names, tag = set(os.listdir(work / "shards")), _tag(work)
    return [n for n in range(num_shards) if f"{n:05d}-{tag}.json" not in names]


def finish(
    out: str | os.PathLike,
    kind: str,
    num_shards: int,
    *,
    key: str,
    extra: Mapping | None = None,
    files: Mapping[str, bytes] | None = None,
    stays: np.ndarray | None = None,
) -> dict:
    """Makes the data set of the shards that are written; arguments and result as in `write_shards`.

    Args:
        stays: For each record in the shards of the data set that `out` is, also for those that
            left it, whether it counts from now on; the new shards are added. None: `out` is new.

    Raises:
        Unfinished: If shards are missing.
        ValueError: If `out` holds something else, or no shard has a record.
    """
    out, family = pathlib.Path(out), (extra or {}).get("family") if stays is not None else None
    try:
        if done := finished(out, key, family):
            return done
        work = start(out, kind, num_shards, key=key)
        if todo := missing(work, num_shards):
            raise Unfinished(
                f"{len(todo)} of the {num_shards} shards of {out} are not written yet, the first "
                f"is {todo[0]}: run the processes that make them."
            )
        extra, files = {"kind": kind, "key": key, **(extra or {})}, files or {}
        return _put_together(out, work, num_shards, extra, files, stays)
    except (OSError, ValueError):  # another process finished, and took the work folder away
        if done := finished(out, key, family):
            return done
        raise


def finished(out: str | os.PathLike, key: str, family: str | None = None) -> dict | None:
    """Returns the meta.json of a finished data set of this key, or None if it is to be made.

    Args:
        out: Its folder.
        key: As in `write_shards`.
        family: A data set whose meta.json has this `family` is to be made too: it can grow.

    Raises:
        ValueError: If the folder holds something else.
    """
    out = pathlib.Path(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    meta = _read_meta(out)
    if meta.get("format", records.FORMAT) != records.FORMAT:
        raise ValueError(
            f"{out} has format {meta['format']}, this version writes {records.FORMAT}: delete it, "
            "and the same command makes it again."
        )
    _settle(out, meta)
    if meta.get("key") != key:
        if family is not None and meta.get("family") == family:
            return None
        raise ValueError(
            f"{out} holds {'a data set made from other inputs' if meta else 'other files'}: choose "
            "another folder, or delete it."
        )
    shutil.rmtree(work_folder(out), ignore_errors=True)
    return meta


def check_loss(out: str | os.PathLike, gone: int, count: int, shrink: bool):
    """Refuses to let a data set lose more than half of its records, unless it may `shrink`.

    Raises:
        ValueError: If it would.
    """
    if gone * 2 > count and not shrink:
        raise ValueError(
            f"{out} holds a data set made from other inputs: {gone:,} of its {count:,} clips would "
            "go. Choose another folder, or see whether a disk or a part of the source is missing; "
            "--shrink lets them go."
        )


def work_folder(out: str | os.PathLike) -> pathlib.Path:
    """Returns where the parts of an unfinished data set are kept, beside it."""
    out = pathlib.Path(os.path.abspath(out))
    return out.with_name(out.name + ".work")


def write_whole(path: pathlib.Path, content: bytes):
    """Writes beside the target and renames, so that a file is either absent or complete."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _tag(work: pathlib.Path) -> str:
    """Marks the files of a job, so that those of another one are never taken for them.

    Raises:
        ValueError: If the folder was not made by `start`.
    """
    try:
        return hashlib.sha256((work / "state.json").read_bytes()).hexdigest()[:12]
    except FileNotFoundError as error:
        raise ValueError(f"{work} belongs to no job: call builder.start first.") from error


def _shard_path(work: pathlib.Path, number: int) -> pathlib.Path:
    return work / "shards" / f"{number:05d}-{_tag(work)}.array_record"


def _write_apart(path: pathlib.Path, content: bytes, beside: pathlib.Path | None = None):
    """Like `write_whole`, but others may write the same file at the same time.

    Args:
        path: The file.
        content: Of it.
        beside: Folder where it is written first; None: its own.
    """
    part = (beside or path.parent) / f"{path.name}.{uuid.uuid4().hex}.part"
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _write_records(path: pathlib.Path, kind: str, examples: Iterable[Mapping]):
    """Writes one shard and then its facts, which mark it as finished."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    rows, content_digest, num_bytes = [], hashlib.sha256(), 0
    try:
        with contextlib.closing(records.Writer(part)) as writer:
            for example in examples:
                record = {k: v for k, v in example.items() if k not in records.MARKS}
                content = records.encode(kind, record)
                writer.write(content)
                content_digest.update(hashlib.sha256(content).digest())
                num_bytes += len(content)
                own = records.digest(content)
                marks = {name: example.get(name, own) for name in records.MARKS}
                rows.append(records.index_row(kind, record) | marks)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    rows = [row | place for row, place in zip(rows, writer.places(), strict=True)]
    with open(part, "rb") as file:
        os.fsync(file.fileno())
        file_digest = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {"bytes": part.stat().st_size, "sha256": file_digest}
    facts |= {"content": content_digest.hexdigest(), "num_bytes": num_bytes}
    facts["rows"] = [{k: _plain(v) for k, v in row.items()} for row in rows]
    os.replace(part, path)
    _write_apart(path.with_suffix(".json"), json.dumps(facts).encode())


def _put_together(out, work, num_shards, extra, files, stays) -> dict:
    """Makes the folder beside its target and renames it, or adds to the one that is there."""
    sources = [_shard_path(work, number) for number in range(num_shards)]
    shards = [json.loads(path.with_suffix(".json").read_text()) for path in sources]
    used, kind = [i for i, shard in enumerate(shards) if shard["rows"]], extra["kind"]
    old, written = {"shards": [], "run": 0, "num_bytes": 0}, b""
    if stays is not None:
        written = (out / "meta.json").read_bytes()
        old = json.loads(written)
        if old["key"] == extra["key"]:  # another process was quicker
            return old
    rows = [row for i in used for row in shards[i]["rows"]]
    columns = records.index_columns(kind, rows)
    if stays is not None:
        columns = _grown(out, old, columns, stays)
    is_alive = columns.get(records.ALIVE, np.ones(len(columns["id"]), bool))
    if not (num_records := int(is_alive.sum())):
        raise ValueError(f"no record for {out}: every shard is empty.")
    folder = out if stays is not None else work / f"final-{uuid.uuid4().hex}"
    folder.mkdir(exist_ok=True)
    table = list(old["shards"])
    for number in used:
        facts = {"name": tfds_clips.shard_name(len(table)), "run": old["run"] + 1}
        _place(sources[number], folder / facts["name"], work)
        facts["num_records"] = len(shards[number]["rows"])
        table.append(facts | {k: shards[number][k] for k in ("bytes", "sha256", "content")})
    meta = {"format": records.FORMAT, "num_records": num_records, "run": old["run"] + 1}
    meta |= {"fingerprint": _fingerprint(kind, table, columns), **extra}
    meta["num_bytes"] = old["num_bytes"] + sum(shards[i]["num_bytes"] for i in used)
    meta["shards"] = table
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    meta["replaces"] = {}
    for name, content in {records.index_name(meta["run"]): buffer.getbuffer(), **files}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if (folder / name).exists() and "/" not in name:
            meta["replaces"][name] = name = f"{meta['run']:04d}-{name}"
        _write_apart(folder / name, content, work)
    if stays is None:
        _write_tfds(folder, meta)
    else:
        _write_apart(out / records.meta_name(old["run"]), written, work)
    _write_apart(folder / "meta.json", json.dumps(meta, indent=1).encode(), work)
    if stays is not None:
        _settle(out, meta)
    else:
        for path in filter(pathlib.Path.is_file, folder.iterdir()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            out.rmdir()  # empty: `finished` has seen to it
        os.rename(folder, out)
    shutil.rmtree(work, ignore_errors=True)
    return meta


def _read_meta(out: pathlib.Path) -> dict:
    path = out / "meta.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _write_tfds(folder: pathlib.Path, meta: dict):
    lengths = [shard["num_records"] for shard in meta["shards"]]
    tfds_clips.write_metadata(folder, meta["kind"], lengths, meta["num_bytes"])


def _settle(out: pathlib.Path, meta: dict):
    """Brings the files whose names do not tell their run to the run of meta.json.

    It comes after meta.json was replaced, and again where that was cut short.
    """
    mark, run = out / "settled", str(meta.get("run", 1)).encode()
    if run == b"1" or (mark.exists() and mark.read_bytes() == run):
        return
    for name, source in meta["replaces"].items():
        with contextlib.suppress(FileNotFoundError):  # it was replaced before the cut
            os.replace(out / source, out / name)
    _write_tfds(out, meta)
    _write_apart(mark, run)


def _grown(out, old, columns, stays) -> dict[str, np.ndarray]:
    """The index of a data set with new rows behind its own."""
    with np.load(out / records.index_name(old["run"])) as before:
        if len(before["id"]) != len(stays):
            raise ValueError(f"{out} has changed since this run began: run it again.")
        columns = {k: np.concatenate([before[k], column]) for k, column in columns.items()}
    is_alive = np.ones(len(columns["id"]), bool)
    is_alive[: len(stays)] = stays
    return columns | ({} if is_alive.all() else {records.ALIVE: is_alive})


def _place(source: pathlib.Path, target: pathlib.Path, work: pathlib.Path):
    """Puts a shard into the folder of its data set; what a run that was killed left goes."""
    part = work / f"{target.name}.{uuid.uuid4().hex}.part"
    try:
        os.link(source, part)
    except OSError:  # no hard links on this file system
        shutil.copyfile(source, part)
    os.replace(part, target)


def _fingerprint(kind: str, table: list[dict], columns: dict[str, np.ndarray]) -> str:
    """Names the records of a data set, in their order."""
    digest = hashlib.sha256(f"{kind} {_FIELDS}".encode())
    for shard in table:
        digest.update(bytes.fromhex(shard["content"]))
    if records.ALIVE in columns:
        digest.update(np.packbits(columns[records.ALIVE]).tobytes())
    return digest.hexdigest()


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value
