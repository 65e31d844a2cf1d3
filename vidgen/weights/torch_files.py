"""Safetensors files in the layouts of PyTorch: read a tensor at a time, and written as a stream.

Everything that a header says is checked against the file and against the tensors that a model has
before a tensor is read. Pickles (.pth, .pt, .bin) are programs: `unpickle` reads them in a process
of its own, and only where it is called.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping

import ml_dtypes
import numpy as np

DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
INDEX = ".safetensors.index.json"
PICKLES = (".pth", ".pt", ".bin")
MAX_HEADER_BYTES = 100_000_000  # what the format's own readers take


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor lies: file, place and type; `name` is its name there."""

    path: pathlib.Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read_rows(self) -> Iterator[np.ndarray]:
        """The parts of the first axis, one at a time; as `read`."""
        for i in range(self.shape[0]):
            part = dataclasses.replace(self, shape=self.shape[1:])
            yield dataclasses.replace(part, start=self.start + i * part.num_bytes).read()

    def read(self) -> np.ndarray:
        """The values.

        Raises:
            ValueError: If one is no finite number, or the file was cut meanwhile.
        """
        with open(self.path, "rb") as file:
            file.seek(self.start)
            value = np.fromfile(file, self.dtype, math.prod(self.shape))
        if value.size != math.prod(self.shape):
            raise ValueError(f"{self.path} ends inside {self.name!r}: fetch it again.")
        # in float32, which knows how to look at all bits of a bfloat16 at once
        bad = int(value.size - np.isfinite(value.astype(np.float32, copy=False)).sum())
        if bad:
            raise ValueError(
                f"{self.name!r} in {self.path} holds {bad} values that are no finite numbers: the "
                "file is damaged or the run behind it failed. Use another one."
            )
        return value.reshape(self.shape)


def read_header(path: str | os.PathLike) -> dict[str, Entry]:
    """The tensors of a safetensors file; reads its header only.

    Raises:
        ValueError: If the header is no header, names a type that weights do not have, or does not
            cover the file exactly: no gap, no overlap, nothing behind the last tensor.
    """
    path = pathlib.Path(path)
    size = path.stat().st_size
    refuse = lambda what: ValueError(
        f"{path} is no whole safetensors file: {what}. Fetch or make it again."
    )
    with open(path, "rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise refuse(f"its header should take {length} bytes, and the file has {size}")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
        header.pop("__metadata__", None)
        rows = [_row(name, entry) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise refuse(f"its header cannot be read ({error})") from error
    place, entries = 0, {}
    for name, dtype, shape, (start, end) in sorted(rows, key=lambda row: row[3]):
        if dtype not in DTYPES:
            raise ValueError(
                f"{path} holds {name!r} as {dtype}, which is no type of weights: use "
                f"{', '.join(DTYPES)}."
            )
        entry = Entry(path, name, shape, DTYPES[dtype], 8 + length + start)
        if start != place or end - start != entry.num_bytes:
            raise refuse(
                f"{name!r} with shape {list(shape)} should take bytes {place} to "
                f"{place + entry.num_bytes}, and its header says {start} to {end}"
            )
        place, entries[name] = end, entry
    if 8 + length + place != size:
        raise refuse(f"its tensors end at byte {8 + length + place}, and the file has {size}")
    return entries


def _no_duplicates(pairs):
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(names) < 64 else []
    if len(set(names)) < len(names):
        raise ValueError(f"a name comes twice {twice}")
    return dict(pairs)


def _row(name, entry):
    shape = tuple(entry["shape"])
    start, end = entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise ValueError(f"{name!r} has the shape {shape} and the place {start} to {end}")
    return name, entry["dtype"], shape, (start, end)


def read_headers(path: str | os.PathLike) -> dict[str, Entry]:
    """The tensors of a file, of a folder with one, or of the shards that a folder's index names.

    Raises:
        ValueError: As `read_header`; or if the folder has no weights, more than one set of them, a
            shard that is missing, or an index that disagrees with its shards.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return read_header(path)
    indices, files = sorted(path.glob(f"*{INDEX}")), sorted(path.glob("*.safetensors"))
    if len(indices) == 1:
        return _read_shards(indices[0])
    if len(files) == 1 and not indices:
        return read_header(files[0])
    found = sorted(item.name for item in path.glob("*")) or "no files"
    raise ValueError(
        f"{path} should hold one .safetensors file, or shards with one *{INDEX}, and holds "
        f"{found}: name the file itself."
    )


def _read_shards(index: pathlib.Path) -> dict[str, Entry]:
    try:
        places = json.loads(index.read_text())["weight_map"]
        names = sorted(set(places.values()))
        if any(pathlib.PurePath(name).name != name for name in names):
            raise ValueError("it names files outside of its folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards ({error}): fetch it again.") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(f"{index} names the shards {missing}, which are missing: fetch them.")
    entries, problems = {}, []
    for shard in names:
        for name, entry in read_header(index.parent / shard).items():
            if places.get(name) != shard:
                problems.append(f"  {name}: in {shard}, and the index says {places.get(name)}")
            entries[name] = entry
    lost = [name for name in places if name not in entries]
    problems += [f"  {name}: in no shard, the index says {places[name]}" for name in lost]
    if problems:
        raise ValueError(
            f"{index} disagrees with its shards:\n" + "\n".join(problems[:40]) + "\nFetch both."
        )
    return entries


def check(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    source: str,
    optional: Iterable[str] = (),
) -> None:
    """Refuses tensors that are not those of a model.

    Args:
        found, expected: Shapes by name.
        source: Where they were found, for the message.
        optional: Expected names that may be missing.

    Raises:
        ValueError: Lists each tensor that is missing, unexpected, or of another shape, and for the
            first two the nearest name of the other kind.
    """
    missing = sorted(expected.keys() - found.keys() - set(optional))
    unexpected = sorted(found.keys() - expected.keys())
    problems = [f"  missing {n} {list(expected[n])}{_near(n, unexpected)}" for n in missing]
    problems += [f"  unexpected {n} {list(found[n])}{_near(n, missing)}" for n in unexpected]
    problems += [
        f"  wrong shape {n} {list(found[n])}, the model has {list(expected[n])}"
        for n in sorted(found.keys() & expected.keys())
        if tuple(found[n]) != tuple(expected[n])
    ]
    if problems:
        shown = problems[:200] + [f"  and {len(problems) - 200} more"] * (len(problems) > 200)
        raise ValueError(
            f"the tensors of {source} are not those of the model:\n" + "\n".join(shown) + "\n"
            "Use the config.json that belongs to the weights, or another --layout."
        )


def _near(name, names):
    near = difflib.get_close_matches(name, names[:300], n=1, cutoff=0.8)
    return f"; nearest is {near[0]}" if near else ""


class Writer:
    """Writes a safetensors file tensor by tensor; it appears whole, under its name, at the end.

        with Writer(path, {"a": ("F32", (2, 3))}) as writer:
            writer.add("a", array)

    Args:
        path: The file.
        tensors: (type, shape) by name, in the order in which they come.
        metadata: Strings for the header.
    """

    def __init__(self, path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata=None):
        self.path, self.tensors, self._todo = pathlib.Path(path), dict(tensors), list(tensors)
        header, place = {"__metadata__": dict(metadata or {}, format="pt")}, 0
        for name, (dtype, shape) in self.tensors.items():
            end = place + math.prod(shape) * DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
            place = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._head = struct.pack("<Q", len(text)) + text
        self._left, self._digest = 0, hashlib.sha256()  # bytes that the tensor at hand still lacks

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, self._temporary = tempfile.mkstemp(
            prefix=self.path.name, suffix=".tmp", dir=self.path.parent
        )
        self._file = open(handle, "wb")
        self._write(self._head)
        return self

    def add(self, name: str, value: np.ndarray) -> None:
        """Appends a tensor, or the next layers of one, in its order and of its type."""
        if not self._left:
            expected = self._todo.pop(0)
            assert name == expected, f"{name} comes where {expected} should"
            dtype, shape = self.tensors[name]
            self._left = math.prod(shape) * DTYPES[dtype].itemsize
        dtype = DTYPES[self.tensors[name][0]]
        data = np.ascontiguousarray(value.astype(dtype, copy=False)).reshape(-1).view(np.uint8)
        self._write(data)
        self._left -= data.nbytes
        assert self._left >= 0, f"{name} is larger than announced"

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                assert not self._todo and not self._left, f"{self._todo[:3]} are missing"
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                os.chmod(self._temporary, 0o644)
                os.replace(self._temporary, self.path)
        finally:
            self._file.close()
            pathlib.Path(self._temporary).unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _write(self, data):
        self._file.write(data)
        self._digest.update(data)


def unpickle(paths: list[pathlib.Path], out: pathlib.Path) -> None:
    """Copies the tensors of pickles into one safetensors file, by a process of its own.

    The process loads with `weights_only=True`, so that a pickle can build tensors and containers
    and nothing else.

    Raises:
        ValueError: If a file holds anything else, or PyTorch is not installed.
    """
    absolute = [str(path.absolute()) for path in (out, *paths)]  # it runs in another folder
    command = [sys.executable, "-m", "vidgen.weights.unpickle", *absolute]
    root = pathlib.Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        names = ", ".join(map(str, paths))
        raise ValueError(f"{names} cannot be read as a pickle of tensors: {reason[-1]}")
