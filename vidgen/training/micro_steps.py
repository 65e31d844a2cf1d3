"""What makes an update: a list of micro-steps, each of one bucket, the same on every process.

An update takes the next `batches` batches of the loader's order, whose buckets are drawn by (seed,
step). Each batch is cut into slices where memory asks for it: a slice has rows of every device, and
nothing moves between them. The gradients are added up, by weights whose sum is 1.

The original averages over processes that draw buckets of their own, each with the same weight
whatever its batch: `weighting="batch"`, with as many batches an update as it has processes.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from data_pipelines.loading import buckets
from vidgen.training import sharding

WEIGHTINGS = ("batch", "clip", "token")


@dataclasses.dataclass(frozen=True)
class MicroStep:
    """A slice of a batch, and what its gradient counts in the update."""

    number: int  # of the batch in the loader's order
    part: int  # which of the `parts` slices
    parts: int
    bucket: buckets.Bucket
    weight: float

    @property
    def clips(self) -> int:
        """Of all processes."""
        return self.bucket.batch_size // self.parts


class MicroSteps:
    """The micro-steps of every update of a run.

    Args:
        loader: Of the run: batches, and the bucket of each.
        tokens: Bucket -> tokens of a clip.
        devices: Among how many a batch is cut.
        batches: How many make an update.
        weighting: What a batch counts: as much as any other, or by its clips or its tokens.
        slices: Into how many a batch is cut at least; the next number that divides the clips of a
            device is taken.
        number: Position of a batch in the run -> its number in the loader's order; grows. By
            default they are the same.

    Raises:
        ValueError: If an argument is wrong.
    """

    def __init__(
        self,
        loader,
        tokens,
        devices: int,
        *,
        batches: int,
        weighting: str,
        slices: int,
        number: Callable[[int], int] = lambda position: position,
    ):
        for name, value in (("accumulate.batches", batches), ("microbatches", slices)):
            if value < 1:
                raise ValueError(f"{name}={value}: use 1 or more.")
        if weighting not in WEIGHTINGS:
            raise ValueError(
                f"accumulate.weighting={weighting!r} is unknown: use one of "
                f"{', '.join(WEIGHTINGS)}."
            )
        self._loader, self._devices, self._batches, self._slices = loader, devices, batches, slices
        self._number = number
        self._share = {
            "batch": lambda bucket: 1,
            "clip": lambda bucket: bucket.batch_size,
            "token": lambda bucket: bucket.batch_size * tokens(bucket),
        }[weighting]

    def __call__(self, step: int) -> list[MicroStep]:
        """The micro-steps of the update that comes after `step` updates."""
        numbers = map(self._number, range(step * self._batches, (step + 1) * self._batches))
        found = [(number, self._loader.bucket(number)) for number in numbers]
        whole = sum(self._share(bucket) for _, bucket in found)
        return [
            MicroStep(number, part, parts, bucket, self._share(bucket) / whole / parts)
            for number, bucket in found
            for parts in [slices(bucket.batch_size, self._devices, self._slices)]
            for part in range(parts)
        ]

    def iterate(self, start: int) -> Iterator[tuple[MicroStep, dict[str, np.ndarray]]]:
        """Yields every micro-step after `start` updates, with this process's part of its clips."""
        following = self._number(start * self._batches)
        batches = self._loader.iterate(following)
        try:
            for step in itertools.count(start):
                for micro_step in self(step):
                    if micro_step.number > following:  # what is between is passed over
                        batches.close()
                        batches = self._loader.iterate(micro_step.number)
                    if micro_step.part == 0:
                        batch, following = next(batches), micro_step.number + 1
                    yield micro_step, cut(batch, micro_step)
        finally:
            batches.close()


def make(config, loader, tokens, mesh, number) -> MicroSteps:
    """The micro-steps of a config on the devices of a mesh; see `MicroSteps`."""
    settings = config.accumulate.to_dict() | {"slices": config.microbatches, "number": number}
    return MicroSteps(loader, tokens, sharding.batch_devices(mesh), **settings)


def slices(clips: int, devices: int, least: int) -> int:
    """Into how many slices a batch is cut: `least` or more, which divide the clips of a device."""
    processes = jax.process_count()
    mine = clips // (processes if clips % devices else devices)
    return next((n for n in range(least, mine) if mine % n == 0), mine)


def cut(batch: dict[str, np.ndarray], micro_step: MicroStep) -> dict[str, np.ndarray]:
    """The rows of a slice of a batch."""
    rows = len(batch["slot"]) // micro_step.parts
    return {k: x[micro_step.part * rows : (micro_step.part + 1) * rows] for k, x in batch.items()}


def labels(micro_steps: Sequence[MicroStep]) -> tuple[str, ...]:
    """Names of their buckets, each once: what their programs depend on."""
    return tuple(dict.fromkeys(m.bucket.name for m in micro_steps))


def work(micro_steps: Sequence[MicroStep], task) -> dict[str, Any]:
    """What an update does, for `metrics.Logger.step`: labels, clips, tokens and FLOPs."""
    total = lambda amount: math.fsum(m.clips * amount(m.bucket) for m in micro_steps)
    return {
        "labels": labels(micro_steps),
        "tokens": total(task.tokens),
        "flops": total(lambda bucket: 3 * task.forward_flops(bucket)),  # backward costs twice it
    }
