"""What a model may say of where an array lies: along which mesh axes its first dimension is cut.

Models are code for one device; what stands here does nothing there.
"""

import math

import jax
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")  # the batch is cut along both


def batch_parts(rows: int) -> int:
    """Into how many parts the devices of the mesh cut an axis of so many rows; 1 without a mesh."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    parts = math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)
    return parts if rows % parts == 0 else 1


def as_batch(tree):
    """Arrays whose first axis is the batch, with the promise that it is cut among the devices.

    Where the devices do not divide it, and without a mesh, they stay as they are.
    """

    def promise(x):
        if batch_parts(x.shape[0]) == 1:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))

    return jax.tree.map(promise, tree)


def whole_kernel_dot(x, kernel, dimensions, **kinds):
    """jax.lax.dot_general with a kernel that all devices of the mesh hold whole while it is used.

    So the kernel is gathered before, and its gradient reduced after, to where the kernel lies.
    Where rows are few vectors, the compiler would rather send the vectors to where columns of the
    kernel lie, one device to all others.
    """
    if math.prod(dict(jax.sharding.get_abstract_mesh().shape).values()) > 1:
        kernel = jax.lax.with_sharding_constraint(kernel, PartitionSpec())
    return jax.lax.dot_general(x, kernel, dimensions, **kinds)


def in_slices(f, x, size: int | None):
    """Returns f(x) for an `f` without ties between rows, `size` rows of each device at a time.

    Rows are cut inside of each device's part: a cut across the parts would send all rows to all
    devices, and each would do the work of all. In a gradient each slice is computed again, so that
    memory is bounded there too.

    Args:
        f: From rows to rows, one for one.
        x: An array or a tree of arrays with one first axis, which is the batch, or begins with it.
        size: Rows; None takes all at once.
    """
    rows = jax.tree.leaves(x)[0].shape[0]
    parts = batch_parts(rows)
    mine = rows // parts
    if size is None or mine <= size:
        return f(x)
    split = lambda x: x.reshape(parts, mine, *x.shape[1:])
    whole = mine // size * size

    def run(piece):  # [parts, rows of a slice, ...]
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), as_batch(piece))
        out = as_batch(f(as_batch(flat)))
        return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), out)

    by_slice = lambda x: x[:, :whole].reshape(parts, -1, size, *x.shape[2:]).swapaxes(0, 1)
    x = jax.tree.map(split, x)
    out = jax.lax.map(jax.checkpoint(run), jax.tree.map(by_slice, x))
    out = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(parts, whole, *x.shape[3:]), out)
    if whole < mine:
        rest = run(jax.tree.map(lambda x: x[:, whole:], x))
        out = jax.tree.map(lambda *both: jax.numpy.concatenate(both, axis=1), out, rest)
    return as_batch(jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), out))
