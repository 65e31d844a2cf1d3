"""The fields of one record and their bytes: the only writer and the only reader of them.

A data set is a folder: ArrayRecord shards of tf.train.Example messages with the metadata of
tensorflow-datasets (`tfds.builder_from_directory` opens it; TensorFlow is not needed), `index.npz`
with the facts that buckets need (one row a record, in the order of the records), and `meta.json`.
There are two kinds:

- video: `id`, `text`, `fps`, `num_frames`, `height`, `width` (pixels, as displayed), and `video`,
  the bytes of the encoded file.
- latent: `id`, `text`, `fps` (as told to the model), `num_frames`, `height`, `width` (pixels of the
  bucket), `resolution` and `aspect` (the bucket's names), `latent` and `latent_std` (posterior mean
  and standard deviation, normalised, float16 t h w c), `text_emb` (float16 L E, true length).
"""

import functools
import json
import os
import pathlib
import threading
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

KINDS = ("video", "latent")
FORMAT = 1  # of meta.json and the fields
INDEX = {
    "video": ("id", "fps", "num_frames", "height", "width"),
    "latent": (
        *("id", "fps", "num_frames", "height", "width", "resolution", "aspect"),
        *("latent_frames", "text_length"),
    ),
}
_TYPES = {"fps": np.float32, "num_frames": np.int32, "height": np.int32, "width": np.int32}
_TYPES |= {"latent_frames": np.int32, "text_length": np.int32}


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
    for field, axes in (("latent", 4), ("latent_std", 4), ("text_emb", 2)):
        if kind == "latent":
            with np.errstate(over="ignore"):  # found below
                record[field] = np.ascontiguousarray(record[field], np.float16)
            if record[field].ndim != axes or not np.isfinite(record[field]).all():
                raise ValueError(
                    f"latent record {name!r}: {field} {record[field].shape} has to have {axes} "
                    "axes and values that float16 can hold."
                )
    if kind == "latent" and record["latent"].shape != record["latent_std"].shape:
        raise ValueError(
            f"latent record {name!r}: latent {record['latent'].shape} and latent_std "
            f"{record['latent_std'].shape} differ in shape."
        )
    content = features(kind).serialize_example(record)
    # again, with the fields in order: else their order changes with the process
    return tf_example_pb2.Example.FromString(content).SerializeToString(deterministic=True)


def decode(kind: str, content: bytes) -> dict:
    """Returns the fields of a record: str, bytes, NumPy scalars and arrays."""
    record = features(kind).deserialize_example_np(content)
    return {
        k: v.decode() if isinstance(v, bytes) and k != "video" else v for k, v in record.items()
    }


def index_row(kind: str, record: Mapping) -> dict:
    """Returns what the index holds of a record."""
    facts = dict(record)
    if kind == "latent":
        facts["latent_frames"] = record["latent"].shape[0]
        facts["text_length"] = record["text_emb"].shape[0]
    return {k: facts[k] for k in INDEX[kind]}


def index_columns(kind: str, rows: Sequence[Mapping]) -> dict[str, np.ndarray]:
    """Returns rows of the index as columns."""
    return {
        k: np.array([row[k] for row in rows], _TYPES.get(k, np.str_ if rows else "U1"))
        for k in INDEX[kind]
    }


class Writer:
    """Writes records to one ArrayRecord file; equal records give equal bytes."""

    def __init__(self, path: str | os.PathLike):
        # single records are read at random; videos and latents do not compress
        options = "group_size:1,uncompressed"
        self._writer = array_record_module.ArrayRecordWriter(os.fspath(path), options)

    def write(self, content: bytes):
        self._writer.write(content)

    def close(self):
        self._writer.close()


class Reader(Sequence):
    """The records of a data set by number, with its `index` (columns) and `meta`.

    Threads may share a reader. It opens the shards when they are first read.

    Raises:
        ValueError: If the folder is no finished data set, or a shard is missing or cut.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        try:
            self.meta = json.loads((self.folder / "meta.json").read_text())
            with np.load(self.folder / "index.npz") as columns:
                self.index = dict(columns)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.folder} is no finished data set ({error}): give the --out folder of "
                "data_pipelines.pipeline or vidgen.encode, and finish that command first."
            ) from error
        if self.meta["format"] != FORMAT:
            raise ValueError(
                f"{self.folder} has format {self.meta['format']}, this version reads {FORMAT}: "
                "write the data set again."
            )
        self.kind = self.meta["kind"]
        for shard in self.meta["shards"]:
            path = self.folder / shard["name"]
            size = path.stat().st_size if path.exists() else None
            if size != shard["bytes"]:
                raise ValueError(
                    f"{path} has {'no' if size is None else size} bytes, not the {shard['bytes']} "
                    "of meta.json: the data set is damaged, copy or write it again."
                )
        counts = [shard["num_records"] for shard in self.meta["shards"]]
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.meta["num_records"]

    def __getitem__(self, row: int) -> dict:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} records in {self.folder}")
        shard = int(np.searchsorted(self._first, row, side="right")) - 1
        content = self._reader(shard).read([int(row - self._first[shard])])[0]
        return decode(self.kind, content)

    def _reader(self, shard: int) -> array_record_module.ArrayRecordReader:
        with self._lock:
            if shard not in self._readers:
                path = os.fspath(self.folder / self.meta["shards"][shard]["name"])
                # without reading ahead: rows come in random order
                options = "readahead_buffer_size:0"
                self._readers[shard] = array_record_module.ArrayRecordReader(path, options)
            return self._readers[shard]
