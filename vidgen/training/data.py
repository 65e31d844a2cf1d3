"""NumPy batches of each process -> global arrays on the devices, one batch ahead."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vidgen.models.places import BATCH_AXES
from vidgen.training import sharding

Placed = TypeVar("Placed")


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Joins the processes' parts of a batch into arrays cut along the mesh's batch axes.

    Args:
        batch: Arrays whose first axis is this process's contiguous part of the global batch.
        mesh: The mesh.

    Returns:
        Global arrays. On one process, a batch that the devices do not divide is cut along fewer
        axes: some devices then do the same work twice.

    Raises:
        ValueError: If several processes cannot divide the batch among all devices.
    """
    sizes = {len(x) for x in batch.values()}
    if len(sizes) != 1:
        raise ValueError(
            f"a batch has one size, found { ({k: len(x) for k, x in batch.items()}) }."
        )
    place = _placement(sizes.pop() * jax.process_count(), mesh)
    return {
        name: jax.make_array_from_process_local_data(place, np.asarray(x))
        for name, x in batch.items()
    }


class Prefetch(Generic[Placed]):
    """Places each batch while the devices still work on the one before it.

    All work is done in the calling thread, so that several processes start their programs in the
    same order; the transfers themselves run in the background.

    Attributes:
        position: How many batches were handed out.
    """

    def __init__(self, batches: Iterable[Any], place: Callable[[Any], Placed]):
        self._batches = iter(batches)
        self._place = place
        self._ahead: Callable[[], Placed] | None = None
        self.position = 0

    def __iter__(self) -> Iterator[Placed]:
        return self

    def __next__(self) -> Placed:
        batch = (self._ahead or self._fetch())()
        self._ahead = self._fetch()
        self.position += 1
        return batch

    def _fetch(self) -> Callable[[], Placed]:
        """The next batch, or its error: that is due only when the batch is asked for."""
        try:
            batch = self._place(next(self._batches))
        except Exception as error:
            return _raiser(error)
        return lambda: batch


def _raiser(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def _placement(batch_size: int, mesh: Mesh) -> NamedSharding:
    axes = BATCH_AXES
    while batch_size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    if axes != BATCH_AXES:
        devices = sharding.batch_devices(mesh)
        if jax.process_count() > 1:
            raise ValueError(
                f"a batch of {batch_size} cannot be divided among {devices} devices: make the "
                f"batch size of each bucket a multiple of {devices}."
            )
        logging.log_first_n(
            logging.WARNING,
            "A batch of %d does not divide among %d devices: some do the same work twice. "
            "A multiple of %d would not.",
            1,
            *(batch_size, devices, devices),
        )
    return NamedSharding(mesh, PartitionSpec(axes) if axes else PartitionSpec())
