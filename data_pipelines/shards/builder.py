"""Writes data sets shard by shard, so that work which was killed goes on with the next shard.

`write_shards` gives the same records and metadata as the TFDS builder (`tfds_clips`), and can be
stopped at any moment: finished shards stay in `OUT.work` beside the target, and the target appears
in one rename when everything is in it.

Several processes, on one machine or many with a common folder, share a job by the parts of
`write_shards`: each calls `start`, then `write_shard` for its own numbers, and whoever finds
nothing `missing` calls `finish`. They need no other word from each other; any of them may be killed
at any moment, and two may finish at the same time. Where two have the same shards, the slower one
may find the job finished and its folder gone: `quicker` turns that error into the end of its work.
"""

import contextlib
import hashlib
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
    state = json.dumps({"kind": kind, "num_shards": num_shards, "key": key}).encode()
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
) -> dict:
    """Makes the data set of the shards that are written; arguments and result as in `write_shards`.

    Raises:
        Unfinished: If shards are missing.
        ValueError: If `out` holds something else, or no shard has a record.
    """
    out = pathlib.Path(out)
    try:
        if done := finished(out, key):
            return done
        work = start(out, kind, num_shards, key=key)
        if todo := missing(work, num_shards):
            raise Unfinished(
                f"{len(todo)} of the {num_shards} shards of {out} are not written yet, the first "
                f"is {todo[0]}: run the processes that make them."
            )
        return _put_together(out, work, kind, num_shards, key, extra or {}, files or {})
    except (OSError, ValueError):  # another process finished, and took the work folder away
        if done := finished(out, key):
            return done
        raise


def finished(out: str | os.PathLike, key: str) -> dict | None:
    """Returns the meta.json of a finished data set of this key, or None if there is nothing.

    Raises:
        ValueError: If the folder holds something else.
    """
    out = pathlib.Path(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    path = out / "meta.json"
    meta = json.loads(path.read_text()) if path.exists() else {}
    if meta.get("format", records.FORMAT) != records.FORMAT:
        raise ValueError(
            f"{out} has format {meta['format']}, this version writes {records.FORMAT}: delete it, "
            "and the same command makes it again."
        )
    if meta.get("key") != key:
        raise ValueError(
            f"{out} holds {'a data set made from other inputs' if meta else 'other files'}: choose "
            "another folder, or delete it."
        )
    shutil.rmtree(work_folder(out), ignore_errors=True)
    return meta


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


def _write_apart(path: pathlib.Path, content: bytes):
    """Like `write_whole`, but others may write the same file at the same time."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
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
            for record in examples:
                content = records.encode(kind, record)
                writer.write(content)
                content_digest.update(hashlib.sha256(content).digest())
                num_bytes += len(content)
                rows.append(records.index_row(kind, record))
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


def _put_together(out, work, kind, num_shards, key, extra, files) -> dict:
    """Makes the folder beside its target, and renames it."""
    sources = [_shard_path(work, number) for number in range(num_shards)]
    shards = [json.loads(path.with_suffix(".json").read_text()) for path in sources]
    used = [i for i, shard in enumerate(shards) if shard["rows"]]
    if not used:
        raise ValueError(f"no record for {out}: every shard is empty.")
    final = work / f"final-{uuid.uuid4().hex}"
    final.mkdir()
    table = []
    for place, number in enumerate(used):
        name = tfds_clips.shard_name(place, len(used))
        try:
            os.link(sources[number], final / name)
        except OSError:  # no hard links on this file system
            shutil.copyfile(sources[number], final / name)
        facts = {"name": name, "num_records": len(shards[number]["rows"])}
        table.append(facts | {k: shards[number][k] for k in ("bytes", "sha256", "content")})
    rows = [row for i in used for row in shards[i]["rows"]]
    np.savez(final / "index.npz", **records.index_columns(kind, rows))
    lengths = [shard["num_records"] for shard in table]
    tfds_clips.write_metadata(final, kind, lengths, sum(shards[i]["num_bytes"] for i in used))
    digest = hashlib.sha256(f"{kind} {_FIELDS}".encode())
    for shard in table:
        digest.update(bytes.fromhex(shard["content"]))
    meta = {"format": records.FORMAT, "kind": kind, "num_records": len(rows)}
    meta |= {"fingerprint": digest.hexdigest(), "key": key, **extra, "shards": table}
    for name, content in files.items():
        (final / name).write_bytes(content)
    write_whole(final / "meta.json", json.dumps(meta, indent=1).encode())
    for path in final.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    with contextlib.suppress(FileNotFoundError):
        out.rmdir()  # empty: `finished` has seen to it
    os.rename(final, out)
    shutil.rmtree(work, ignore_errors=True)
    return meta


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value
