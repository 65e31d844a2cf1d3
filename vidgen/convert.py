"""Converts weights between the published PyTorch layouts and ours, a tensor at a time.

    python -m vidgen.convert --to=vidgen --layout=stdit --source=hpcai-tech/OpenSora-STDiT-v3 \\
        --out=weights/stdit
    python -m vidgen.convert --to=open-sora --source=outputs/stdit --out=export/stdit

The first makes a folder with weights.safetensors and model.json; the second, from a run's working
folder or from such a folder, one that the original PyTorch code loads: weights, config.json, a
model card and checksums. docs/weights.md has the layouts.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import flags

from vidgen.process import command_line
from vidgen.tasks import runs
from vidgen.training import checkpoint
from vidgen.weights import digests, layouts, model_card, published, torch_files, tree_files

MODEL = "model.json"
_TYPES = {"float32": "F32", "bfloat16": "BF16", "keep": None}


def to_vidgen(
    source: str, layout: str, out: str | os.PathLike, *, dtype="keep", allow_pickle=False
) -> None:
    """Imports published weights into a folder with weights.safetensors and model.json.

    Args:
        source: A file, a folder, or a hub id.
        layout: One of `layouts.LAYOUTS`.
        out: The folder, which must not exist.
        dtype: "float32", "bfloat16", or "keep" for the types of the file.
        allow_pickle: See `published.find`.

    Raises:
        ValueError: As `published.find` and `published.open_source`; or if `out` exists.
    """
    with _new_folder(out) as folder, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        path = published.find(source, allow_pickle=allow_pickle, scratch=scratch)
        opened = published.open_source(path, layout)
        kind = lambda name: _TYPES[dtype] or _name(opened.dtype(name))
        tensors = {name: (kind(name), shape) for name, shape in opened.shapes.items()}
        note = {"layout": layout, "source": str(source)}
        with torch_files.Writer(folder / tree_files.WEIGHTS, tensors, note) as writer:
            for name, value in opened.arrays():
                writer.add(name, value)
        arguments = {"layout": layouts.kind_of(opened.shapes), "arguments": opened.arguments}
        extra = {"source": str(source), "config": opened.config}
        _write_json(folder / MODEL, arguments | extra)
        _write_sums(folder, {tree_files.WEIGHTS: writer.sha256})


def to_open_sora(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    layout: str | None = None,
    weights: str = "ema",
    step: int | None = None,
    dtype: str = "keep",
    shard_bytes: int = 5 * 10**9,
    license: str = "unknown",
    samples: str = "",
) -> None:
    """Exports a run, or a folder that `to_vidgen` made, in the layout of the original.

    Args:
        source: The working folder of a run, or a folder with weights.safetensors and model.json.
        out: The folder, which must not exist.
        layout: Of the folder; by default that of the whole model. A video VAE can be written as its
            "image_vae" or "temporal_vae" alone.
        weights, step: Of a run: "ema" or "params"; the newest sound checkpoint by default.
        dtype: "float32", "bfloat16" or "keep".
        shard_bytes: Weights that take more are written as shards with an index.
        license: For the model card.
        samples: A folder of `vidgen.sample` that goes with the card.

    Raises:
        ValueError, FileNotFoundError, checkpoint.DamagedError: If the source holds no sound
            weights, they are not those of its model, or `out` exists.
    """
    if samples and not pathlib.Path(samples).is_dir():
        raise ValueError(f"--samples={samples} is no folder: give the --out of vidgen.sample.")
    held = open_ours(pathlib.Path(source), weights, step)
    whole = layouts.LAYOUTS[held.layout]
    chosen = layouts.LAYOUTS[layout or held.layout]
    if chosen is not whole and (chosen.model is not whole.model or not chosen.prefix):
        raise ValueError(f"--layout={layout}: {source} is of layout {held.layout}, leave it out.")
    expected = whole.our_shapes(held.arguments)
    torch_files.check({k: v for k, (v, _) in held.arrays.items()}, expected, str(source))
    by_path: dict[str, list] = {}
    for tensor in chosen.tensors(expected, held.arguments):
        if not chosen.fresh(tensor.path):
            tensor = dataclasses.replace(tensor, name=tensor.name.removeprefix(chosen.prefix))
            by_path.setdefault(tensor.path, []).append(tensor)
    rows = {
        name: (_TYPES[dtype] or _name(held.arrays[path][1]), tensor.shape)
        for path, tensors in by_path.items()
        for tensor in tensors
        for name in (tensor.name, *tensor.aliases)
    }
    with _new_folder(out) as folder:
        writer = _Shards(folder, chosen.file, rows, shard_bytes)
        with writer:
            for path, tensors in by_path.items():
                for tensor, value in zip(tensors, held.read(path), strict=True):
                    for name in (tensor.name, *tensor.aliases):
                        writer.add(name, tensor.to_torch(value))
        _write_json(folder / "config.json", chosen.config(held.arguments) | held.config)
        if samples:
            shutil.copytree(samples, folder / "samples")
        facts = {
            "license": license,
            "layout": layout or held.layout,
            "tensors": rows,
            "made_by": held.made_by,
        }
        files = sorted(p.name for p in (folder / "samples").glob("*")) if samples else []
        card = model_card.write(**facts, samples=files, sums=published.CHECKSUMS)
        (folder / "README.md").write_text(card)
        _write_sums(folder, writer.sums)


@dataclasses.dataclass(frozen=True)
class Ours:
    """Weights of ours: shapes and types by path, and `read(path)`, which gives layer by layer."""

    layout: str
    arguments: Mapping[str, Any]
    arrays: dict[str, tuple[tuple[int, ...], np.dtype]]
    read: Callable[[str], Any]
    made_by: Mapping[str, Any]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the original's kind


def open_ours(source: pathlib.Path, weights: str = "ema", step: int | None = None) -> Ours:
    """Opens a run's working folder, or a folder of `to_vidgen`; reads no weights yet."""
    if (source / MODEL).is_file():
        note = _read_note(source / MODEL)
        if step is not None:
            raise ValueError(f"--step={step}: {source} is an import, which has no steps.")
        entries = torch_files.read_headers(source / tree_files.WEIGHTS)
        arrays = {name: (entry.shape, entry.dtype) for name, entry in entries.items()}
        read = lambda path: entries[path].read_rows() if _stacked(path) else [entries[path].read()]
        kept = {k: v for k, v in note["config"].items() if k != "torch_dtype"}
        if note["layout"] == "vae" or not kept.get("depth"):
            kept = {}  # of a part, such as PixArt
        return Ours(
            note["layout"], note["arguments"], arrays, read, {"source": note["source"]}, kept
        )
    config = runs.load_config(source)
    item = checkpoint.find_item(source, weights, step)
    arrays = {
        path: (tuple(array.shape), np.dtype(array.dtype))
        for path, array in checkpoint.item_metadata(item).items()
    }

    def read(path):
        value = checkpoint.read_item(item, path)
        if not np.isfinite(value.astype(np.float32, copy=False)).all():
            raise ValueError(
                f"{path} in {item} holds values that are no finite numbers: the run has failed. "
                "Export an older checkpoint with --step."
            )
        return value if _stacked(path) else [value]

    layout = layouts.kind_of(arrays)
    fields = config.model if layout == "stdit" else config.vae.model
    known = {"remat", "unroll"}  # how to compute, and not what
    arguments = {name: value for name, value in fields.to_dict().items() if name not in known}
    made_by = {"workdir": str(source), "step": int(item.parent.name), "weights": item.name}
    made_by["run"] = json.loads((source / "run.json").read_text())
    own = {}
    if layout == "stdit":
        own["input_sq_size"] = config.flow.position_size
        own["class_dropout_prob"] = config.data.text_dropout
    return Ours(layout, arguments, arrays, read, made_by, own)


def _read_note(path: pathlib.Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_text())
        return {name: note[name] for name in ("layout", "arguments", "config", "source")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): make the folder again with "
            "vidgen.convert --to=vidgen."
        ) from error


def _stacked(path: str) -> bool:
    return path.startswith(("spatial_blocks/", "temporal_blocks/", "blocks/"))


class _Shards:
    """One safetensors file, or several and an index, written as a stream."""

    def __init__(self, folder: pathlib.Path, file: str, rows, shard_bytes: int):
        self.folder, self.sums, groups, size = folder, {}, [{}], 0
        for name, (kind, shape) in rows.items():
            num_bytes = int(np.prod(shape)) * torch_files.DTYPES[kind].itemsize
            if groups[-1] and size + num_bytes > shard_bytes:
                groups.append({})
                size = 0
            groups[-1][name] = kind, shape
            size += num_bytes
        count = len(groups)
        names = [f"{file}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        names = [f"{file}.safetensors"] if count == 1 else names
        self._index = f"{file}{torch_files.INDEX}"
        self._todo = [
            (n, torch_files.Writer(folder / n, g)) for n, g in zip(names, groups, strict=True)
        ]
        self._shard_of = {name: n for n, g in zip(names, groups, strict=True) for name in g}
        self._open = None

    def __enter__(self):
        return self

    def add(self, name, value):
        shard = self._shard_of[name]
        if self._open is None or self._open.path.name != shard:
            self._close()
            found, self._open = self._todo.pop(0)
            assert found == shard
            self._open.__enter__()
        self._open.add(name, value)

    def __exit__(self, kind, error, trace):
        self._close(kind, error, trace)
        if kind is None and len(self.sums) > 1:
            total = sum((self.folder / name).stat().st_size for name in self.sums)
            index = {"metadata": {"total_size": total}, "weight_map": self._shard_of}
            _write_json(self.folder / self._index, index)

    def _close(self, kind=None, error=None, trace=None):
        if self._open is not None:
            self._open.__exit__(kind, error, trace)
            self.sums[self._open.path.name] = self._open.sha256
            self._open = None


class _new_folder:
    """A folder that appears whole, under its name, or not at all."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path).absolute()
        if self.path.exists():
            raise ValueError(f"--out={path} exists: remove it, or name another folder.")

    def __enter__(self) -> pathlib.Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = f".{self.path.name}-"
        self.temporary = pathlib.Path(tempfile.mkdtemp(prefix=name, dir=self.path.parent))
        return self.temporary

    def __exit__(self, kind, error, trace):
        if kind is None:
            os.chmod(self.temporary, 0o755)
            os.replace(self.temporary, self.path)
        else:
            shutil.rmtree(self.temporary, ignore_errors=True)


def _name(dtype: np.dtype) -> str:
    return next(name for name, known in torch_files.DTYPES.items() if known == dtype)


def _write_json(path: pathlib.Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _write_sums(folder: pathlib.Path, known: Mapping[str, str]) -> None:
    """Checksums of all files, as `sha256sum --check` reads them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        lines.append(f"{known.get(name) or digests.sha256(path)}  {name}\n")
    (folder / published.CHECKSUMS).write_text("".join(lines))


def define_flags() -> None:
    """Defines the command's flags; called once, so that others can import this module."""
    flags.DEFINE_enum("to", None, ["vidgen", "open-sora"], "Import, or export.")
    flags.DEFINE_string("source", None, "File, folder, hub id; to export: a run or an import.")
    flags.DEFINE_string("out", None, "Folder that is made.")
    flags.DEFINE_enum(
        *("layout", None, list(layouts.LAYOUTS)),
        "Of the published side; by default stdit to import, and to export the run's own.",
    )
    flags.DEFINE_enum("dtype", "keep", list(_TYPES), "Type of the numbers that are written.")
    flags.DEFINE_enum("weights", "ema", ["ema", "params"], "Of a run: average or last update.")
    flags.DEFINE_integer("step", None, "Checkpoint of a run; by default the newest.", lower_bound=0)
    flags.DEFINE_bool("allow_pickle", False, "Read .pth, .pt and .bin, in a process of their own.")
    flags.DEFINE_float("shard_gb", 5.0, "Largest file of an export, 1e9 bytes.", lower_bound=1e-3)
    flags.DEFINE_string("license", "unknown", "For the model card of an export.")
    flags.DEFINE_string("samples", "", "Folder of vidgen.sample that goes with an export.")
    flags.mark_flags_as_required(["to", "source", "out"])
    command_line.writes_folder("out")


def _check_direction(values: flags.FlagValues) -> None:
    """Refuses flags that the chosen direction would pass over."""
    other = {"vidgen": ("weights", "step", "shard_gb", "license", "samples")}
    other["open-sora"] = ("allow_pickle",)
    for name in other[values.to]:
        if values[name].present:
            raise ValueError(f"--{name} does nothing with --to={values.to}: leave it out.")


def main(argv):
    del argv
    values = flags.FLAGS
    with runs.refusing("convert"):
        _check_direction(values)
        if values.to == "vidgen":
            chosen = {"dtype": values.dtype, "allow_pickle": values.allow_pickle}
            to_vidgen(values.source, values.layout or "stdit", values.out, **chosen)
        else:
            names = ("layout", "weights", "step", "dtype", "license")
            chosen = {name: values[name].value for name in names}
            chosen |= {"shard_bytes": int(values.shard_gb * 1e9), "samples": values.samples}
            to_open_sora(values.source, values.out, **chosen)
    print(values.out)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
