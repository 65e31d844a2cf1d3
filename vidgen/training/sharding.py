"""Where arrays live: a mesh of devices, and rules from names to places."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vidgen.models.places import BATCH_AXES

PyTree = Any
Rules = Sequence[tuple[str, Sequence[str | Sequence[str] | None]]]


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh over all devices; `with jax.set_mesh(mesh):` lets models see it.

    Args:
        shape: Size of each axis by name, such as {"data": -1, "fsdp": 8}; one size may be -1 and
            takes the rest. The axes `data` and `fsdp` are added with size 1 where they are absent.
        devices: By default all devices of all processes.

    Raises:
        ValueError: If the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": -1, "fsdp": 1} if shape is None else {**dict.fromkeys(BATCH_AXES, 1), **shape}
    known = math.prod(size for size in sizes.values() if size != -1)
    free = [name for name, size in sizes.items() if size == -1]
    rest, left = divmod(len(devices), known) if known > 0 else (0, 1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"mesh={dict(sizes)}: sizes are positive, and at most one is -1.")
    if left or (not free and rest != 1):
        raise ValueError(
            f"mesh={dict(sizes)} does not fit {len(devices)} devices: the sizes must multiply to "
            "that number. Set one of them to -1 to take the rest."
        )
    sizes |= dict.fromkeys(free, rest)
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(jax.sharding.AxisType.Auto,) * len(sizes),
        devices=devices,
    )


def by_path(tree: PyTree, rules: Rules, mesh: Mesh) -> PyTree:
    """Places each array of a tree by the first rule whose pattern is found in its path.

    The optimizer's state and the moving average hold trees with the parameters' own paths in them,
    so one list of rules places all three alike. A dimension that its mesh axes do not divide stays
    whole, and so does an array with fewer dimensions than its rule.

    Args:
        tree: Arrays or jax.ShapeDtypeStructs.
        rules: (regular expression, names of mesh axes for each dimension), first match wins; for
            example [("blocks/.*kernel", (None, "fsdp")), (".*", ())].
        mesh: The mesh.

    Returns:
        The same tree with a NamedSharding for each array.

    Raises:
        ValueError: If a rule names an axis that the mesh does not have, or no rule matches; lists
            all such paths.
    """
    problems = []

    def place(path: tuple[Any, ...], x: Any) -> NamedSharding:
        name = path_name(path)
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
        if spec is None:
            problems.append(f"  {name}: no rule matches")
            return replicated(mesh)
        unknown = {axis for entry in spec for axis in _axes(entry)} - set(mesh.shape)
        if unknown:
            problems.append(f"  {name}: axes {sorted(unknown)}, the mesh has {list(mesh.shape)}")
            return replicated(mesh)
        if np.ndim(x) < len(spec):
            return replicated(mesh)
        return NamedSharding(mesh, _fitting(spec, np.shape(x), mesh.shape))

    placed = jax.tree.map_with_path(place, tree)
    if problems:
        raise ValueError("sharding rules do not fit the parameters:\n" + "\n".join(problems))
    return placed


def placed(tree: PyTree, places: PyTree) -> PyTree:
    """A tree of shapes together with where each array goes, as a restore needs it."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places
    )


def batch(mesh: Mesh) -> NamedSharding:
    """The first axis cut along `data` and `fsdp`, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_devices(mesh: Mesh) -> int:
    """Among how many devices a batch is cut; those of other axes hold the same rows."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def path_name(path: tuple[Any, ...]) -> str:
    """A jax tree path as "blocks/attn/kernel", the same for dict, tuple and attribute."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def _axes(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _fitting(spec: Sequence[Any], shape: Sequence[int], sizes: Mapping[str, int]) -> PartitionSpec:
    whole = lambda size, entry: size % math.prod(sizes[axis] for axis in _axes(entry))
    pairs = zip(shape, spec, strict=False)
    return PartitionSpec(*(None if whole(size, entry) else entry for size, entry in pairs))
