"""A command of the project, run as it is, with what tests need to see or to force.

    python -m tests.hooked train --config=... --workdir=...

Variables of the environment:
    HOOK_ROWS: a file that gets a line {"step", "rows"} for each batch that the loop takes.
    HOOK_SHARD_CLIPS: clips of a shard that `encode` makes.
    HOOK_FREE_BYTES: what the disk has left, for all that asks.
    HOOK_FAULTS: a folder of files PROCESS-STEP that hold code, which is run once, when that process
        takes the batch of that step.
    HOOK_POISON: numbers of batches, with commas between, whose latents are 100 times too large.
    HOOK_FLIP: PROCESS-N; in that process the N-th gradient of the start has one bit that is wrong.
"""

import importlib
import json
import os
import pathlib
import shutil
import sys

import jax
import numpy as np

from data_pipelines.loading import loader
from vidgen.process import command_line
from vidgen.training import data, train_state


class RecordingPrefetch(data.Prefetch):
    """Writes down the rows of each batch at the moment that it is handed out."""

    def __init__(self, pairs, place):
        super().__init__(pairs, lambda pair: (pair[0].number, pair[1]["row"], place(pair)))
        self._file = open(os.environ["HOOK_ROWS"], "a")  # noqa: SIM115 (for the whole run)

    def __next__(self):
        step, rows, placed = super().__next__()
        self._file.write(json.dumps({"step": step, "rows": np.asarray(rows).tolist()}) + "\n")
        self._file.flush()
        return placed


class FaultyPrefetch(data.Prefetch):
    """Runs the code of a fault at its step, after its file is gone."""

    def __next__(self):
        path = pathlib.Path(os.environ["HOOK_FAULTS"])
        for file in path.glob(f"{os.environ.get('VIDGEN_PROCESS', 0)}-{self.position}"):
            code = file.read_text()
            file.unlink()
            exec(code, {"__name__": "fault"})  # of the test, never of a user
        return super().__next__()


def poison() -> None:
    iterate = loader.Loader.iterate
    numbers = set(map(int, os.environ["HOOK_POISON"].split(",")))

    def poisoned(self, start_step=0):
        for number, batch in enumerate(iterate(self, start_step), start_step):
            if number in numbers:
                batch["latent"] = batch["latent"] * 100
            yield batch

    loader.Loader.iterate = poisoned


class FlippingUpdate(train_state.Update):
    """Flips a bit of a gradient on a device of this process, after it was added up."""

    def __init__(self, *args):
        super().__init__(*args)
        self._compute, self.gradient, self._count = self.gradient, self._flipped, 0

    def _flipped(self, *args):
        (grads, metrics), loss = self._compute(*args)
        self._count += 1
        process, number = os.environ["HOOK_FLIP"].split("-")
        if os.environ.get("VIDGEN_PROCESS", "0") == process and self._count == int(number):
            leaves, tree = jax.tree.flatten(grads)
            leaves[3] = flip(leaves[3])
            grads = jax.tree.unflatten(tree, leaves)
        return (grads, metrics), loss


def flip(x: jax.Array, device: int = 0) -> jax.Array:
    """The same array with another last bit of one number, where one of our devices holds it."""
    parts = [np.array(shard.data) for shard in x.addressable_shards]
    parts[device].reshape(-1).view(np.uint32)[0] ^= 1
    placed = [jax.device_put(p, s.device) for p, s in zip(parts, x.addressable_shards, strict=True)]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, placed)


def main():
    command = importlib.import_module(f"vidgen.{sys.argv.pop(1)}")
    if "HOOK_ROWS" in os.environ:
        data.Prefetch = RecordingPrefetch
    if "HOOK_FAULTS" in os.environ:
        data.Prefetch = FaultyPrefetch
    if "HOOK_POISON" in os.environ:
        poison()
    if "HOOK_FLIP" in os.environ:
        train_state.Update = FlippingUpdate
    if "HOOK_SHARD_CLIPS" in os.environ:
        command.SHARD_CLIPS = int(os.environ["HOOK_SHARD_CLIPS"])
    if "HOOK_FREE_BYTES" in os.environ:
        free = int(os.environ["HOOK_FREE_BYTES"])
        usage = shutil.disk_usage("/")
        shutil.disk_usage = lambda path: usage._replace(free=free)
    command.define_flags()
    command_line.run(command.main)


if __name__ == "__main__":
    main()
