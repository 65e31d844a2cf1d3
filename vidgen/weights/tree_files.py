"""Weights outside of checkpoints: one file, names, and whether a tree fits a model."""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from vidgen.weights import digests, torch_files

PyTree = Any
WEIGHTS = "weights.safetensors"  # of a folder of vidgen.convert


def load_file(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the params tree of a file that `save_safetensors` wrote, as NumPy arrays.

    Raises:
        ValueError: If the file is no whole safetensors file.
    """
    try:
        return unflatten(safetensors.numpy.load_file(path))
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}): fetch or make it again."
        ) from error


def open_file(path: str | os.PathLike, expected: PyTree) -> dict[str, torch_files.Entry]:
    """The arrays of a file by name, if they are those of `expected`; reads its header only.

    Raises:
        ValueError: As `load_placed`.
    """
    path = pathlib.Path(path)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"start_from={path} is no file: give the --out of vidgen.convert --to=vidgen."
        )
    entries = torch_files.read_header(path)
    check_tree(unflatten(entries), expected, name=str(path))
    return entries


def load_placed(path: str | os.PathLike, places: PyTree) -> PyTree:
    """Reads a params tree onto its devices; a process reads only what its devices hold.

    Args:
        path: A .safetensors file in our layout, or a folder with `weights.safetensors`.
        places: For each array a jax.ShapeDtypeStruct with its sharding.

    Raises:
        ValueError: If the file is damaged, or its arrays are not those of `places`.
    """
    entries = open_file(path, places)

    def place(name, like):
        entry = entries[name]
        values = np.memmap(entry.path, entry.dtype, "r", entry.start, entry.shape or (1,))
        part = lambda index: np.asarray(values.reshape(entry.shape)[index], like.dtype)
        return jax.make_array_from_callback(like.shape, like.sharding, part)

    return unflatten({name: place(name, like) for name, like in flatten(places).items()})


def save_safetensors(
    params: PyTree, path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a params tree as one .safetensors file with names such as "blocks/attn/kernel".

    The file appears whole or not at all. `metadata` goes into its header, strings only.
    """
    path = pathlib.Path(path)
    flat = jax.device_get(flatten(params))
    arrays = {name: np.asarray(x, order="C") for name, x in flat.items()}  # keeps scalars as such
    path.parent.mkdir(parents=True, exist_ok=True)
    data = safetensors.numpy.save(arrays, metadata=dict(metadata or {}))
    digests.write_atomically(path, data)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> one dict with names such as "a/b/c"."""
    flat = {}
    for key, value in tree.items():
        if "/" in str(key):
            raise ValueError(f'the name "{prefix}{key}" has a "/" in it, which separates levels.')
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def put(value: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """An array of the host where and in the type that `like` says; each device gets its part."""
    if like.sharding is None:
        return jnp.asarray(value, like.dtype)
    part = lambda index: np.asarray(value[index]).astype(like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, part)


def fingerprint(tree: PyTree) -> str:
    """Names the content of a tree of arrays, wherever they lie and however they are cut.

    Each array is summed in 32-bit integers, whose order does not count, with weights that follow
    from the places: on the devices, in about the time that it takes to read them. It tells weights
    apart; it is no seal against somebody who wants to deceive.
    """

    def sums(x):
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        mixed = (place ^ (place >> 15)) * np.uint32(0x2C1B3C6D)
        words = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B) + 1
        return jnp.stack([(words * (mixed | 1)).sum(), (words ^ mixed).sum()])

    flat = flatten(tree)
    found = jax.device_get(jax.jit(lambda flat: {name: sums(x) for name, x in flat.items()})(flat))
    lines = [f"{name} {flat[name].dtype} {flat[name].shape} {found[name]}" for name in sorted(flat)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_tree(tree: PyTree, expected: PyTree, name: str) -> None:
    """Refuses weights that are not those of a model.

    Args:
        tree: The weights.
        expected: Arrays or shapes, as the model has them.
        name: Where the weights are from, for the message.

    Raises:
        ValueError: Lists every tensor that is missing, unexpected or of another shape.
    """
    found = {path: tuple(x.shape) for path, x in flatten(tree).items()}
    wanted = {path: tuple(x.shape) for path, x in flatten(expected).items()}
    if found and not found.keys() & wanted.keys():
        raise ValueError(
            f"{name} holds the weights of another model ({', '.join(sorted(found)[:3])}, ...), and "
            f"not of the config's ({', '.join(sorted(wanted)[:3])}, ...): give those that it names."
        )
    problems = [
        f"  {path}: missing, {wanted[path]}" for path in sorted(wanted.keys() - found.keys())
    ]
    problems += [
        f"  {path}: unexpected, {found[path]}" for path in sorted(found.keys() - wanted.keys())
    ]
    problems += [
        f"  {path}: {found[path]} there, {wanted[path]} in the config's model"
        for path in sorted(found.keys() & wanted.keys())
        if found[path] != wanted[path]
    ]
    if problems:
        raise ValueError(
            f"the weights of {name} do not fit the config:\n" + "\n".join(problems) + "\n"
            "Use the config that they were trained with."
        )
