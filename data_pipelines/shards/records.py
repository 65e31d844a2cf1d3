"""The fields of one record and their bytes: the only writer and the only reader of them.

A data set is a folder: ArrayRecord shards of tf.train.Example messages with the metadata of
tensorflow-datasets (`tfds.builder_from_directory` opens it; TensorFlow is not needed), `index.npz`
with the facts that buckets need and a digest (one row a record, in the order of the records), and
`meta.json` with the SHA-256 of each shard and the name of the index. Where a data set has grown
(`builder.finish`), records that left it are marked in the index and passed over here, and
`FOLDER@2` is the data set as its second run left it. There are two kinds:

- video: `id`, `text`, `fps`, `num_frames`, `height`, `width` (pixels, as displayed), and `video`,
  the bytes of the encoded file.
- latent: `id`, `text`, `fps` (as told to the model), `num_frames`, `height`, `width` (pixels of the
  bucket), `resolution` and `aspect` (the bucket's names), `latent` and `latent_std` (posterior mean
  and standard deviation, normalised, float16 t h w c), `text_emb` (float16 L E, true length). Where
  `latent` is a sample of the posterior, `latent_std` is empty.
"""

import collections
import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
import xxhash
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.shards import examples, shard_cache, shard_files

KINDS = ("video", "latent")
FORMAT = 3  # of meta.json and index.npz
MAKERS = {"video": "data_pipelines.pipeline", "latent": "vidgen.encode"}
INDEX = {
    "video": ("id", "fps", "num_frames", "height", "width"),
    "latent": (
        *("id", "fps", "num_frames", "height", "width", "resolution", "aspect"),
        *("latent_frames", "text_length"),
    ),
}
PLACES = ("digest", "size", "place")  # of each record's bytes, see `shard_files`
# What a record is known by when its data set grows, 64 bits each: itself, and its frames alone
# (whatever the caption). They stand beside a record's fields, and in the index alone.
MARKS = ("record", "clip")
ALIVE = "alive"  # column of an index of which some records have left
_TYPES = {"fps": np.float32, "num_frames": np.int32, "height": np.int32, "width": np.int32}
_TYPES |= {"latent_frames": np.int32, "text_length": np.int32}
_TYPES |= {"digest": np.uint64, "size": np.int64, "place": np.int64}
_TYPES |= {name: np.uint64 for name in MARKS}
_ARRAYS = {"latent": 4, "latent_std": 4, "text_emb": 2}  # axes of the fields of float16
_OPEN_SHARDS = 200  # the system allows a process about a thousand files


class CorruptRecord(ValueError):
    """The bytes of a record are not those that were written."""


@functools.cache
def features(kind: str) -> tfds.features.FeaturesDict:
    """Returns the features of a kind.

    Raises:
        ValueError: If the kind is unknown.
    """
    text = tfds.features.Text
    number = lambda dtype: tfds.features.Scalar(dtype)
    half = lambda *shape: tfds.features.Tensor(
        shape=shape, dtype=np.float16, encoding=tfds.features.Encoding.BYTES
    )
    fields = {"id": text(), "text": text(), "fps": number(np.float32)}
    fields |= {k: number(np.int32) for k in ("num_frames", "height", "width")}
    if kind == "video":
        fields |= {"video": number(np.object_)}
    elif kind == "latent":
        fields |= {"resolution": text(), "aspect": text()}
        fields |= {k: half(None, None, None, None) for k in ("latent", "latent_std")}
        fields |= {"text_emb": half(None, None)}
    else:
        raise ValueError(f"kind={kind!r} is unknown: use one of {', '.join(KINDS)}.")
    return tfds.features.FeaturesDict(fields)


def encode(kind: str, record: Mapping) -> bytes:
    """Returns the bytes of a record.

    Raises:
        ValueError: If fields are missing, unknown or of the wrong shape, naming the record.
    """
    wanted, name = set(features(kind)), record.get("id", "?")
    if set(record) != wanted:
        raise ValueError(
            f"{kind} record {name!r}: missing fields {sorted(wanted - set(record))}, unknown "
            f"fields {sorted(set(record) - wanted)}."
        )
    record = dict(record)
    for field, axes in _ARRAYS.items():
        if kind == "latent":
            with np.errstate(over="ignore"):  # found below
                record[field] = np.ascontiguousarray(record[field], np.float16)
            if record[field].ndim != axes or not np.isfinite(record[field]).all():
                raise ValueError(
                    f"latent record {name!r}: {field} {record[field].shape} has to have {axes} "
                    "axes and values that float16 can hold."
                )
    sampled = kind == "latent" and record["latent_std"].size == 0
    if kind == "latent" and not sampled and record["latent"].shape != record["latent_std"].shape:
        raise ValueError(
            f"latent record {name!r}: latent {record['latent'].shape} and latent_std "
            f"{record['latent_std'].shape} differ in shape."
        )
    content = features(kind).serialize_example(record)
    # again, with the fields in order: else their order changes with the process
    return tf_example_pb2.Example.FromString(content).SerializeToString(deterministic=True)


def decode(kind: str, content: bytes | memoryview) -> dict:
    """Returns the fields of a record: str, bytes, NumPy scalars and arrays.

    Arrays are views of `content`, and cannot be written to.

    Raises:
        ValueError: If `content` is no record of this kind.
    """
    found, record = examples.parse(content), {}
    for field in features(kind):
        if kind == "latent" and field in _ARRAYS:
            values = np.frombuffer(found[f"{field}/value"], np.float16)
            record[field] = values.reshape(found[f"{field}/shape"])
        elif field in _TYPES:
            record[field] = found[field][0]
        else:
            record[field] = bytes(found[field]) if field == "video" else str(found[field], "utf-8")
    return record


def digest(content: bytes | memoryview) -> int:
    """Returns 64 bits that tell whether a record's bytes have changed, at the speed of memory.

    XXH3 (https://xxhash.com) finds accidents, all but one in 2^64, and is no seal: who wants equal
    digests can make them. Shards as wholes have their SHA-256.
    """
    return xxhash.xxh3_64_intdigest(content)


def mark(*facts) -> int:
    """Returns 64 bits for values that JSON can hold: one of MARKS."""
    text = json.dumps(facts, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def index_row(kind: str, record: Mapping) -> dict:
    """Returns what the index holds of a record, but for its PLACES and MARKS."""
    facts = dict(record)
    if kind == "latent":
        facts["latent_frames"] = record["latent"].shape[0]
        facts["text_length"] = record["text_emb"].shape[0]
    return {k: facts[k] for k in INDEX[kind]}


def index_columns(kind: str, rows: Sequence[Mapping]) -> dict[str, np.ndarray]:
    """Returns rows of the index as columns."""
    return {
        k: np.array([row[k] for row in rows], _TYPES.get(k, np.str_ if rows else "U1"))
        for k in (*INDEX[kind], *PLACES, *MARKS)
    }


def known(marks: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Tells of each record whether it is wanted; of equal ones the first is."""
    is_wanted = np.isin(marks, np.array(wanted, np.uint64))
    _, first = np.unique(marks, return_index=True)
    is_first = np.zeros(len(marks), bool)
    is_first[first] = True
    return is_wanted & is_first


def lost(index: Mapping[str, np.ndarray], ids: Sequence[str], clips: Sequence[int]) -> int:
    """Returns how many records have neither their id nor their clip among those given."""
    is_there = np.isin(index["clip"], np.array(clips, np.uint64))
    return int((~(is_there | np.isin(index["id"], np.array(ids, np.str_)))).sum())


def index_name(run: int) -> str:
    """Returns the name of the index that a run wrote, counted from 1."""
    return "index.npz" if run == 1 else f"index-{run:04d}.npz"


def meta_name(run: int) -> str:
    """Returns the name that a run's meta.json gets when a later one has its own."""
    return f"meta-{run:04d}.json"


class Writer:
    """Writes records to one ArrayRecord file; equal records give equal bytes.

    Raises:
        OSError: If the file cannot be written; so do `write` and `close`.
    """

    def __init__(self, path: str | os.PathLike):
        self._path, self._written = path, []
        # single records are read at random; videos and latents do not compress
        options = "group_size:1,uncompressed"
        with _as_os_error():
            self._writer = array_record_module.ArrayRecordWriter(os.fspath(path), options)

    def write(self, content: bytes):
        with _as_os_error():
            self._writer.write(content)
        self._written.append((digest(content), len(content), shard_files.head(content)))

    def close(self):
        with _as_os_error():
            self._writer.close()

    def places(self) -> list[dict]:
        """Returns the PLACES of each record; the file has to be closed."""
        places = shard_files.find(
            self._path,
            [head for _, _, head in self._written],
            [size for _, size, _ in self._written],
        )
        rows = zip(self._written, places, strict=True)
        return [dict(zip(PLACES, (*facts[:2], place), strict=True)) for facts, place in rows]


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """The library says RuntimeError of a full disk too."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"a shard cannot be written: {error}") from error


class Reader(Sequence):
    """The records of a data set by number, with its `index` (columns) and `meta`.

    Threads may share a reader. It opens the shards when they are first read. Shards of a URL are
    copied to this machine first (`data_pipelines.shards.shard_cache`).

    Args:
        folder: A path, or a URL that fsspec knows; with "@2" behind it, as the second run left it.

    Attributes:
        index: Columns of the records.
        meta: Of the data set.
        marks: "record" of MARKS, of all records in the shards, also of those that left.
        numbers: Of each record in the shards; they stay when others leave.

    Raises:
        ValueError: If the folder is no finished data set, or a shard is missing or cut.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder, run = split_run(os.fspath(folder))
        self._remote = shard_cache.Remote(self.folder) if "://" in self.folder else None
        try:
            self.meta = self._read_meta(run)
            # a local file is not read whole: ten million rows have 1.5 GB
            name = index_name(self.meta["run"])
            file = pathlib.Path(self.folder) / name
            with np.load(io.BytesIO(self.file(name)) if self._remote else file) as columns:
                self.index = dict(columns)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder} is no finished data set ({error}): give the --out folder of "
                "data_pipelines.pipeline or vidgen.encode, and finish that command first."
            ) from error
        self.kind = self.meta["kind"]
        if self.meta["format"] != FORMAT:
            raise ValueError(
                f"{folder} has format {self.meta['format']}, this version reads {FORMAT}: delete "
                f"it and make it again with python -m {MAKERS[self.kind]}."
            )
        if not self._remote:
            self._check_sizes()
        counts = [shard["num_records"] for shard in self.meta["shards"]]
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self.marks = self.index[MARKS[0]]
        self.numbers = np.arange(sum(counts))
        if (is_alive := self.index.pop(ALIVE, None)) is not None:
            self.numbers = np.flatnonzero(is_alive)
            self.index = {k: column[self.numbers] for k, column in self.index.items()}
        self._open: collections.OrderedDict[int, shard_files.Shard] = collections.OrderedDict()
        self._lock = threading.Lock()

    @property
    def is_remote(self) -> bool:
        return self._remote is not None

    def __len__(self) -> int:
        return self.meta["num_records"]

    def __getitem__(self, row: int) -> dict:
        """Returns the fields of a record; see `decode` and `content`."""
        return decode(self.kind, self.content(row))

    def file(self, name: str) -> bytes:
        """Returns the content of a file of the folder."""
        if self._remote:
            return self._remote.read(name)
        return (pathlib.Path(self.folder) / name).read_bytes()

    def shard(self, row: int) -> int:
        """Returns the number of the shard that holds a record."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} records in {self.folder}")
        return int(np.searchsorted(self._first, self.numbers[row], side="right")) - 1

    def content(self, row: int, buffer: np.ndarray | None = None) -> bytes | memoryview:
        """Returns the bytes of a record, which are those that were written.

        Args:
            row: The record.
            buffer: Memory to read into, uint8, if it is large enough; the result is then a view of
                it.

        Raises:
            CorruptRecord: If they are not, naming the record and its shard.
        """
        number = self.shard(row)
        shard = self._shard(number, self.fetch(row))
        wanted, size, place = (int(self.index[k][row]) for k in PLACES)
        if place >= 0:
            content = shard.read(place, size, buffer)
            if digest(content) == wanted:
                return content
        try:
            within = int(self.numbers[row] - self._first[number])
            content = shard.library().read([within])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._corrupt(row, number, str(error)) from error
        if (found := digest(content)) != wanted:
            raise self._corrupt(row, number, f"its digest is {found:016x}, not {wanted:016x}")
        return content

    def fetch(self, row: int, report: Callable[[str], None] = lambda what: None) -> str:
        """Returns the path of a record's shard, after copying it to this machine if it is remote.

        Args:
            row: The record.
            report: Is told how far a copy is, once every few megabytes.

        Raises:
            OSError: If the shard cannot be copied.
        """
        facts = self.meta["shards"][self.shard(row)]
        if not self._remote:
            return os.path.join(self.folder, facts["name"])
        path, is_new = self._remote.fetch(facts, report)
        if is_new:
            with self._lock:
                self._open.clear()  # open files of shards that made room would still take it
        return path

    def _read_meta(self, run: int | None) -> dict:
        meta = json.loads(self.file("meta.json"))
        if run in (None, meta["run"]):
            return meta
        try:
            return json.loads(self.file(meta_name(run)))
        except OSError as error:
            last = meta["run"]
            raise ValueError(f"of its runs, 1 to {last}, {run} is none that is there") from error

    def _corrupt(self, row: int, shard: int, why: str) -> CorruptRecord:
        name = self.meta["shards"][shard]["name"]
        return CorruptRecord(
            f"record {row} ({str(self.index['id'][row])!r}) in {name} of {self.folder} is "
            f"damaged: {why}."
        )

    def _check_sizes(self):
        for shard in self.meta["shards"]:
            path = pathlib.Path(self.folder) / shard["name"]
            size = path.stat().st_size if path.exists() else None
            if size != shard["bytes"]:
                raise ValueError(
                    f"{path} has {'no' if size is None else size} bytes, not the {shard['bytes']} "
                    "of meta.json: the data set is damaged, copy or write it again."
                )

    def _shard(self, number: int, path: str) -> shard_files.Shard:
        with self._lock:
            if number not in self._open:
                self._open[number] = shard_files.Shard(path)
            self._open.move_to_end(number)
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)  # those that still read it keep it open
            return self._open[number]


def split_run(folder: str) -> tuple[str, int | None]:
    """Splits "FOLDER@2"; a folder of that very name comes first."""
    name, _, run = folder.rpartition("@")
    if not (name and run.isdecimal()) or os.path.exists(folder):
        return folder, None
    return name, int(run)
