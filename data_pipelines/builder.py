"""Writes data sets shard by shard, so that work which was killed goes on with the next shard.

`Clips` is the tensorflow-datasets builder: it knows the features, the names of the shards and the
metadata, and `download_and_prepare` works as for any data set. Long jobs use `write_shards`, which
gives the same records and metadata and can be stopped at any moment: finished shards stay in
`OUT.work` beside the target, and the target appears in one rename when everything is in it.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from data_pipelines import records

NAME, SPLIT = "clips", "train"


class Clips(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of one kind of records; examples come from `make_shard(0), (1), ...`."""

    VERSION = tfds.core.Version("1.0.0")
    name = NAME
    url_infos: ClassVar = {}  # nothing is downloaded; TFDS would look for checksums beside the code

    def __init__(
        self,
        kind: str,
        num_shards: int = 0,
        make_shard: Callable[[int], Iterable[dict]] | None = None,
        **kwargs,
    ):
        self.kind, self.num_shards, self.make_shard = kind, num_shards, make_shard
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Clips with captions, kind {self.kind}.",
            features=records.features(self.kind),
            disable_shuffling=True,  # the order of the source: the loader shuffles
        )

    def _split_generators(self, dl_manager):
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self):
        number = 0
        for shard in range(self.num_shards):
            for record in self.make_shard(shard):
                yield number, record
                number += 1


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
    out = pathlib.Path(out)
    if done := finished(out, key):
        return done
    work = work_folder(out)
    state = json.dumps({"kind": kind, "num_shards": num_shards, "key": key})
    if not (work / "state.json").exists() or (work / "state.json").read_text() != state:
        shutil.rmtree(work / "shards", ignore_errors=True)
        (work / "shards").mkdir(parents=True)
        write_whole(work / "state.json", state.encode())
    progress = tqdm.tqdm(total=num_shards, desc=f"{kind} shards", unit="shard")
    for number in range(num_shards):
        if not (work / "shards" / f"{number:05d}.json").exists():
            _write_shard(work / "shards", number, kind, make_shard(number))
        progress.update()
    progress.close()
    return _finish(out, work, kind, num_shards, key, extra or {}, files or {})


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


def _write_shard(folder: pathlib.Path, number: int, kind: str, examples: Iterable[Mapping]):
    """Writes one shard and then its facts, which mark it as finished."""
    part = folder / f"{number:05d}.part"
    writer, rows, digest, num_bytes = records.Writer(part), [], hashlib.sha256(), 0
    for record in examples:
        content = records.encode(kind, record)
        writer.write(content)
        digest.update(hashlib.sha256(content).digest())
        num_bytes += len(content)
        rows.append(records.index_row(kind, record))
    writer.close()
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, folder / f"{number:05d}.array_record")
    facts = {"sha256": digest.hexdigest(), "num_bytes": num_bytes}
    facts["rows"] = [{k: _plain(v) for k, v in row.items()} for row in rows]
    write_whole(folder / f"{number:05d}.json", json.dumps(facts).encode())


def _finish(out, work, kind, num_shards, key, extra, files) -> dict:
    """Puts the folder together beside its target, and renames it."""
    shards = [
        json.loads((work / "shards" / f"{i:05d}.json").read_text()) for i in range(num_shards)
    ]
    used = [i for i, shard in enumerate(shards) if shard["rows"]]
    if not used:
        raise ValueError(f"no record for {out}: every shard is empty.")
    final = work / "final"
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir()
    table = []
    for place, number in enumerate(used):
        name = f"{NAME}-{SPLIT}.array_record-{place:05d}-of-{len(used):05d}"
        source = work / "shards" / f"{number:05d}.array_record"
        try:
            os.link(source, final / name)
        except OSError:  # no hard links on this file system
            shutil.copyfile(source, final / name)
        facts = {"name": name, "bytes": source.stat().st_size, "sha256": shards[number]["sha256"]}
        table.append(facts | {"num_records": len(shards[number]["rows"])})
    rows = [row for i in used for row in shards[i]["rows"]]
    np.savez(final / "index.npz", **records.index_columns(kind, rows))
    lengths = [shard["num_records"] for shard in table]
    _write_tfds_metadata(final, kind, lengths, sum(shards[i]["num_bytes"] for i in used))
    digest = hashlib.sha256(f"{kind} {records.FORMAT}".encode())
    for shard in table:
        digest.update(bytes.fromhex(shard["sha256"]))
    meta = {"format": records.FORMAT, "kind": kind, "num_records": len(rows)}
    meta |= {"fingerprint": digest.hexdigest(), "key": key, **extra, "shards": table}
    for name, content in files.items():
        (final / name).write_bytes(content)
    write_whole(final / "meta.json", json.dumps(meta, indent=1).encode())
    for path in final.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    if out.exists():
        out.rmdir()  # empty: `finished` has seen to it
    os.rename(final, out)
    shutil.rmtree(work)
    return meta


def _write_tfds_metadata(folder: pathlib.Path, kind: str, lengths: list[int], num_bytes: int):
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=NAME, split=SPLIT, filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template
    )
    info = Clips(kind, data_dir=folder).info
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(folder)


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value
