"""Published PyTorch weights as arrays of ours: found, checked, and given one tensor at a time."""

import dataclasses
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vidgen.weights import digests, layouts, torch_files, torch_names, tree_files

CHECKSUMS = "SHA256SUMS"
_FRESH_BYTES = 256 << 20  # of new values computed at a time: each time compiles a program
NULL_CAPTION = "y_embedder.y_embedding"


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights of a layout, checked against its model; nothing is read yet.

    Args:
        layout: One of `layouts.LAYOUTS`.
        arguments: Of the model.
        config: config.json, or {}.
        entries: Where each tensor lies, by today's name.
        tensors: What the model has, in the order of our tree.
        shapes: Of our arrays by path.
    """

    layout: layouts.Layout
    arguments: dict[str, Any]
    config: dict[str, Any]
    entries: dict[str, torch_files.Entry]
    tensors: list[torch_names.Tensor]
    shapes: dict[str, tuple[int, ...]]

    def dtype(self, path: str) -> np.dtype:
        """Type of our array in the file; float32 where the file has none."""
        found = [self.entries.get(t.name) for t in self.tensors if t.path == path]
        return found[0].dtype if found and found[0] else np.dtype(np.float32)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """(path, array) of our whole tree; a stacked array comes as its layers, one by one."""
        by_path: dict[str, list[torch_names.Tensor]] = {}
        for tensor in self.tensors:
            by_path.setdefault(tensor.path, []).append(tensor)
        fresh: dict[str, np.ndarray] = {}
        for path in self.shapes:
            if path not in by_path:
                if path not in fresh:
                    fresh = self.layout.fresh_values(self._some_from(path, by_path), self.arguments)
                yield path, fresh.pop(path)
            for tensor in by_path.get(path, ()):
                yield path, tensor.to_ours(self._read(tensor))

    def _some_from(self, path: str, known) -> list[str]:
        """The next paths that the file lacks, as many as take some memory, or one."""
        names = list(self.shapes)
        chosen, size = [], 0
        for name in names[names.index(path) :]:
            size += 4 * int(np.prod(self.shapes[name])) * (name not in known)
            if chosen and size > _FRESH_BYTES:
                break
            chosen += [name] * (name not in known)
        return chosen

    def load(self, place: Callable[[str, np.ndarray], Any] = lambda path, value: value) -> dict:
        """Our params tree; `place(path, array)` puts each array where it belongs as it comes."""
        flat, layers = {}, []
        for path, value in self.arrays():
            if value.shape == self.shapes[path]:
                flat[path] = place(path, value)
                continue
            layers.append(value)
            if len(layers) == self.shapes[path][0]:
                flat[path] = place(path, np.stack(layers))
                layers = []
        return tree_files.unflatten(flat)

    def _read(self, tensor):
        entry = self.entries.get(tensor.name)
        if entry is None:
            return layouts.absent_value(tensor)
        value = entry.read()
        if tensor.name == NULL_CAPTION:
            return fit_rows(value, tensor.shape[0])
        return value.reshape(tensor.shape)


def fit_rows(value: np.ndarray, rows: int) -> np.ndarray:
    """The null caption at another length: its last row repeated, or the rest cut (spec 1.4)."""
    more = np.repeat(value[-1:], max(0, rows - len(value)), axis=0)
    return np.concatenate([value, more])[:rows]


def find(source: str, *, allow_pickle: bool = False, scratch: str | None = None) -> pathlib.Path:
    """A local file or folder of safetensors.

    Args:
        source: A path, or the id of a repository on the Hugging Face hub ("owner/name").
        allow_pickle: Read .pth, .pt and .bin, which are programs, in a process of their own.
        scratch: Folder for the copy that is made of a pickle.

    Raises:
        ValueError: If there is nothing, the hub cannot be reached, or it is a pickle.
    """
    path = pathlib.Path(source)
    if not path.exists():
        return _from_hub(source)
    pickles = [path] if path.suffix in torch_files.PICKLES else []
    if path.is_dir() and not any(path.glob("*.safetensors")):
        pickles = sorted(p for p in path.iterdir() if p.suffix in torch_files.PICKLES)
    if not pickles:
        return path
    if not allow_pickle:
        raise ValueError(
            f"{pickles[0]} is a pickle, a program that runs when it is loaded: use the "
            ".safetensors of the same weights, or --allow_pickle if you trust where it is from."
        )
    out = pathlib.Path(tempfile.mkdtemp(prefix="unpickled", dir=scratch)) / "model.safetensors"
    torch_files.unpickle(pickles, out)
    config = (path if path.is_dir() else path.parent) / "config.json"
    if config.is_file():
        (out.parent / "config.json").write_bytes(config.read_bytes())
    return out.parent


def _from_hub(source: str) -> pathlib.Path:
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", source):
        raise ValueError(f"{source} does not exist: give a path, or a hub id such as owner/name.")
    import huggingface_hub

    try:
        patterns = ["*.json", "*.safetensors", "*.model", CHECKSUMS]
        return pathlib.Path(huggingface_hub.snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # the hub raises errors of many libraries
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{source} is no path here, and the hub did not give it ({first}): download the folder "
            "and give its path."
        ) from error


def open_source(path: pathlib.Path, layout_name: str) -> Source:
    """Checks weights against the model of a layout, from headers and config.json alone.

    Raises:
        ValueError: If files are damaged or differ from their checksums, or the tensors are not
            those of the model; lists all that differ.
    """
    layout, folder = layouts.LAYOUTS[layout_name], path if path.is_dir() else path.parent
    config = _config(folder / "config.json")
    entries = {}
    for name, entry in torch_files.read_headers(path).items():
        modern = layout.rename(name)
        if modern in entries:
            raise ValueError(f"{path} holds {modern} twice, as {entries[modern].name} and {name}.")
        if modern:
            entries[modern] = entry
    found = {name: entry.shape for name, entry in entries.items()}
    if layout_name == "t5" and "shared.weight" not in found:
        alias = "encoder.embed_tokens.weight"
        if alias in entries:
            entries["shared.weight"], found["shared.weight"] = entries[alias], found[alias]
    try:
        arguments = layout.arguments(config, found)
        shapes = layout.our_shapes(arguments)
    except KeyError as error:
        raise ValueError(
            f"{folder}/config.json has no field {error}: use that of the weights."
        ) from error
    tensors = [t for t in layout.tensors(shapes, arguments) if not layout.fresh(t.path)]
    expected = {tensor.name: tensor.shape for tensor in tensors}
    optional = [tensor.name for tensor in tensors if tensor.optional]
    for tensor in tensors:
        found = _without_alias(found, tensor)
        if tensor.name == NULL_CAPTION and len(found.get(tensor.name, ())) == 2:
            found |= {tensor.name: (tensor.shape[0], *found[tensor.name][1:])}
        shape = found.get(tensor.name, ())
        if tensor.kind == "patch" and len(shape) == 4:  # PixArt, whose patches have no time
            found |= {tensor.name: (*shape[:2], 1, *shape[2:])}
    torch_files.check(found, expected, str(path), optional)
    _check_sums(folder, {entry.path for entry in entries.values()})
    return Source(layout, arguments, config, entries, tensors, shapes)


def _without_alias(found, tensor):
    for alias in tensor.aliases:
        if alias in found:
            if found[alias] != found[tensor.name]:
                raise ValueError(f"{alias} and {tensor.name} should be equal and differ in shape.")
            found = {name: shape for name, shape in found.items() if name != alias}
    return found


def _config(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, Mapping):
            raise ValueError("it holds no object")
        return dict(config)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): fetch it again.") from error


def _check_sums(folder: pathlib.Path, paths: set[pathlib.Path]) -> None:
    """Compares files with the checksums beside them, where there are any."""
    if not (folder / CHECKSUMS).is_file():
        return
    lines = (folder / CHECKSUMS).read_text().splitlines()
    expected = dict(reversed(line.split("  ", 1)) for line in lines if "  " in line)
    wrong = [p.name for p in sorted(paths) if digests.sha256(p) != expected.get(p.name)]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} in {folder} differ from {CHECKSUMS}: the files are damaged or "
            "were changed. Fetch them again, or remove the checksums if the change is yours."
        )
