"""Finds silent corruption: a gradient is computed twice, and every device compares the bits.

A chip that is wrong now and then writes finite numbers, which no other check sees. So the first
micro-step of an update is replayed every so often, from the same parameters and batch, in the same
memory: its sums are digested where they lie, set to zero and computed again. Costs the time of one
micro-step, and no bytes.

Each device digests what it holds itself, so that a difference has a place. Copies of parameters and
gradients on several devices are compared too.
"""

import collections
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from vidgen.process import exit_codes, ranks
from vidgen.training import events as events_lib
from vidgen.training import micro_steps as micro_steps_lib

PyTree = Any

LIMIT_SECONDS = 600.0  # for all processes to have computed it
_WHAT = ("parameters", "gradient", "gradient again")


class ReplayError(RuntimeError):
    """The same computation gave other bits."""

    exit_code = exit_codes.NUMBERS


class Replay:
    """Replays a micro-step in the first update of a start, and in every so many.

    Every process makes one and calls it alike.

    Args:
        every: Updates; 0: never.
        places: A NamedSharding for each parameter; their gradients lie alike.
        events: Of the run.
        note: Prints a line.
        close: Called before the run ends, so that a checkpoint that is being written lands.
    """

    def __init__(
        self,
        every: int,
        places: PyTree,
        events: events_lib.Events,
        note: Callable[[str], None] = lambda text: None,
        close: Callable[[], None] = lambda: None,
    ):
        self._every, self._events, self._note, self._close = every, events, note, close
        self._last, self._repeats, self._does_not = 0, set(), set()
        mesh = jax.tree.leaves(places)[0].mesh
        specs = jax.tree.map(lambda place: place.spec, places)
        one_each = PartitionSpec(mesh.axis_names)
        folds = jax.shard_map(
            fold, mesh=mesh, in_specs=(specs,), out_specs=one_each, check_vma=False
        )
        self._digest = jax.jit(folds)
        cleared = lambda tree: jax.tree.map(jnp.zeros_like, tree)
        self._clear = jax.jit(  # into the same memory: nothing else says where zeros are to lie
            cleared, donate_argnums=0, keep_unused=True, out_shardings=(places, None)
        )
        self._mesh, self._places = mesh, places

    def at(self, step: int, plan: Sequence[micro_steps_lib.MicroStep]) -> Callable | None:
        """What `train_state.Update` is to compute the first gradient of this update by, or None."""
        is_due = self._every and (not self._last or step % self._every == 0)
        if not is_due or plan[0].bucket.name in self._does_not:
            return None
        return functools.partial(self._twice, step, plan)

    def _twice(self, step: int, plan: Sequence, gradient, params, total, *batch):
        """Returns (total, loss) as `gradient(params, total, *batch)` does; `total` is zeros.

        Raises:
            ReplayError: If it comes out otherwise the second time, or if copies differ.
        """
        seen = [self._local(params)]
        total, loss = gradient(params, total, *batch)
        seen.append(self._local(total[0]))
        total, loss = gradient(params, self._clear(total), *batch)
        seen.append(self._local(total[0]))
        found = self._of_all(seen)
        suspects = find(found, self._copies)
        bucket = plan[0].bucket.name
        if not suspects:
            self._last = step
            self._repeats.add(bucket)
            return total, loss
        if suspects == set(found) and bucket not in self._repeats:
            total, loss = gradient(params, self._clear(total), *batch)
            third = self._of_all([self._local(total[0])])
            if all(third[device][0] not in found[device][1:] for device in found):
                self._does_not.add(bucket)
                self._last = self._last or step
                self._events.write("no replay", step, plan)
                self._note(
                    f"step {step}: the gradient of {bucket} came out in three ways in three times, "
                    "and never yet in one: its program does not repeat itself (see "
                    "docs/train.md), and is not replayed in this start."
                )
                return total, loss
        self._end(step, plan, found, suspects)

    def _end(self, step: int, plan: Sequence, found: Mapping, suspects: set[int]) -> None:
        self._close()
        processes = {device.id: device.process_index for device in self._mesh.devices.flat}
        who = sorted({processes[device] for device in suspects})
        differ = [
            name
            for name, differs in zip(_WHAT, differences(found, self._copies), strict=True)
            if differs
        ]
        hosts = [ranks.name(process) for process in who]
        where = f"on {', '.join(hosts)} (devices {', '.join(map(str, sorted(suspects)))})"
        if suspects == set(found):
            where = (
                "on all devices alike, so it was wrong before it was added up, or in the sum: on "
                f"one of {', '.join(hosts)}"
            )
        facts = {"hosts": hosts, "devices": sorted(suspects), "differ": differ}
        facts["equal_at"] = self._last or None
        self._events.write("replay", step, plan, **facts)
        ranks.gather("replay told", "", LIMIT_SECONDS)
        last = f"step {self._last}" if self._last else "none in this start"
        raise ReplayError(
            f"SILENT CORRUPTION {where}: in step {step} the same gradient was computed twice from "
            f"the same parameters and batch, and its bits differ. Nothing of it is saved. The last "
            f"replay that was equal: {last}; what was saved after it may be wrong, so move newer "
            "checkpoints aside. Leave the machine out, and start again."
        )

    def _local(self, tree: PyTree) -> dict[int, int]:
        """{device: digest of what it holds} of this process's devices."""
        shards = self._digest(tree).addressable_shards
        return {shard.device.id: int(np.asarray(shard.data)[0]) for shard in shards}

    def _of_all(self, seen: Sequence[Mapping[int, int]]) -> dict[int, list[int]]:
        """{device: its digests} of all processes."""
        mine = {device: [digests[device] for digests in seen] for device in seen[0]}
        told = ranks.gather("replay", json.dumps(mine), LIMIT_SECONDS)
        return {int(device): x for text in told for device, x in json.loads(text).items()}

    @functools.cached_property
    def _copies(self) -> list[list[int]]:
        """Devices that hold the same parts of all parameters, together."""
        axes = {axis for place in jax.tree.leaves(self._places) for axis in _axes(place.spec)}
        kept = [i for i, axis in enumerate(self._mesh.axis_names) if axis in axes]
        groups = collections.defaultdict(list)
        for at, device in np.ndenumerate(self._mesh.devices):
            groups[tuple(at[i] for i in kept)].append(device.id)
        return list(groups.values())


def fold(tree: PyTree) -> jax.Array:
    """A number of 32 bits, in an array of one, that any changed bit of any array changes.

    A sum modulo 2^32 of all words, each times an odd number of its place: in any order it is the
    same, and so on any device.
    """
    total = jnp.zeros((), jnp.uint32)
    for number, x in enumerate(jax.tree.leaves(tree)):
        unsigned = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32).reshape(-1)
        odd = 2 * jax.lax.iota(jnp.uint32, words.size) + 1
        total += (2 * number + 1) * jnp.sum(words * odd, dtype=jnp.uint32)
    return total[None]


def find(found: Mapping[int, Sequence[int]], copies: Sequence[Sequence[int]]) -> set[int]:
    """The devices that are to blame for differences of their digests; none where all are equal.

    Those whose gradient changed, if others' did not; else those whose copy is not that of most
    devices with the same parts (all of these, where there is no majority); else all.

    Args:
        found: Device -> its digests of parameters, gradient, and gradient again.
        copies: Devices that hold the same, together.
    """
    changed = {device for device, (_, first, second) in found.items() if first != second}
    if changed and changed != set(found):
        return changed
    odd = set()
    for group in copies:
        (common, count), *_ = collections.Counter(tuple(found[d]) for d in group).most_common()
        if count < len(group):
            is_most = 2 * count > len(group)
            odd |= {d for d in group if not is_most or tuple(found[d]) != common}
    return odd or changed


def differences(
    found: Mapping[int, Sequence[int]], copies: Sequence[Sequence[int]]
) -> tuple[bool, bool, bool]:
    """Whether copies of parameters differ, copies of gradients, and a gradient from itself."""
    differ = [any(len({found[d][i] for d in group}) > 1 for group in copies) for i in range(2)]
    return *differ, any(first != second for _, first, second in found.values())


def _axes(spec: PartitionSpec) -> set[str]:
    entries = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
    return {axis for entry in entries for axis in entry}
