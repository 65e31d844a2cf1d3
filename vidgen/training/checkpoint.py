"""Checkpoints that are either whole or refused.

A working folder holds `checkpoints/<step>/` with one item for each of `params`, `ema`, `opt_state`
and `meta`, so that a reader of weights skips the optimizer's state. Orbax writes a step in the
background and commits it with one rename. The digests of all files are part of the commit, and
nothing is loaded that differs from them.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from vidgen.process import exit_codes, ranks
from vidgen.training import retention, sharding
from vidgen.weights import digests, tree_files

PyTree = Any

ITEMS = ("params", "ema", "opt_state")
LIMIT_SECONDS = 900.0  # for a save in the background
_NEVER = 7 * 24 * 3600  # seconds
_POLL_SECONDS = 0.01


class SaveError(RuntimeError):
    """A checkpoint was not written; `step`, `needed_bytes` and `free_bytes` say which and why."""

    exit_code = exit_codes.STORAGE

    def __init__(self, message: str, step: int, needed_bytes: int, free_bytes: int):
        super().__init__(message)
        self.step, self.needed_bytes, self.free_bytes = step, needed_bytes, free_bytes


class DamagedError(RuntimeError):
    """No checkpoint is left that equals what was written."""

    exit_code = exit_codes.STORAGE


class Checkpointer:
    """Saves and restores the train state of one working folder.

    Every process of a run makes one and calls the same methods in the same order; the folder is
    shared by all of them.

    Args:
        workdir: The working folder. The steps go into `checkpoints/` in it.
        keep: How many of the newest checkpoints to keep.
        keep_every: Keep also each checkpoint whose step is a multiple of this, for ever.
        limit_seconds: The time that a save may take in the background.

    Raises:
        ValueError: If `keep` is not positive.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        keep: int = 3,
        keep_every: int | None = None,
        limit_seconds: float = LIMIT_SECONDS,
    ):
        if keep < 1:
            raise ValueError(
                f"keep={keep} checkpoints would delete every checkpoint: use 1 or more."
            )
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._limit_seconds, self._began = limit_seconds, 0.0
        self._retention = retention.Sound(self.folder, keep, keep_every)
        self._scrubber = retention.Scrubber(self.folder)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._retention,
                cleanup_tmp_directories=True,  # what a killed process left half-written
                lightweight_initialize=True,
                async_options=ocp.AsyncOptions(
                    timeout_secs=_NEVER,  # it goes by the wall clock, which may jump
                    post_finalization_callback=self._write_digests,
                    barrier_sync_fn=self._meet,
                ),
            ),
        )
        self._saving: int | None = None  # the step that is being written
        self._broken: BaseException | None = None  # of its writing in the background
        self._needed_bytes = 0

    def steps(self) -> list[int]:
        """The committed steps on disk, oldest first."""
        return steps(self.folder.parent)

    def latest_step(self) -> int | None:
        """The newest committed step on disk."""
        return max(self.steps(), default=None)

    def save(
        self, step: int, state: PyTree, meta: Mapping[str, Any], suspicious: int | None = None
    ) -> bool:
        """Starts to save; returns as soon as the arrays are copied off the devices.

        Args:
            step: The number of updates in the state.
            state: Has the attributes `params`, `ema` (or None) and `opt_state`.
            meta: What else a restart needs, as JSON: position, config, fingerprint, versions.
            suspicious: The last step after which something looked wrong: a checkpoint from before
                it is kept.

        Returns:
            False if this step is saved already.

        Raises:
            SaveError: If the disk has no room, or if the previous save failed in the background.
        """
        self.wait()
        if _from_first(step in self.steps()):
            return False
        trees = {name: getattr(state, name) for name in ITEMS}
        trees = {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
        self._needed_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(trees))
        # All processes must agree, or those that go on would wait for the others.
        free_bytes = _minimum(self._free_bytes(step))
        if free_bytes < 1.02 * self._needed_bytes + 2**20:  # 2 %: metadata
            raise self._error(step, "the disk has no room")
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["meta"] = ocp.args.JsonSave({**meta, "step": step})
        self._saving, self._began = step, time.monotonic()
        self._retention.suspicious = suspicious
        if jax.process_index() == 0:
            retention.forget(self.folder, step)
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            self._failed(error)
        return True

    def check(self) -> None:
        """Reports a save that failed in the background. Never waits: cheap enough for each step.

        Raises:
            SaveError: If it failed.
        """
        if self._saving is None:
            return
        if self._broken is not None or not self._manager.is_saving_in_progress():
            self.wait()
        elif time.monotonic() - self._began > self._limit_seconds:
            self._failed(TimeoutError(f"it is not written after {self._limit_seconds:g} s"))

    def wait(self) -> None:
        """Waits until the last save is committed.

        Raises:
            SaveError: If it failed.
        """
        if self._saving is None:
            return
        try:
            while self._manager.is_saving_in_progress():
                if self._broken is not None:
                    raise self._broken
                if time.monotonic() - self._began > self._limit_seconds:
                    raise TimeoutError(f"it is not written after {self._limit_seconds:g} s")
                time.sleep(_POLL_SECONDS)
            self._manager.wait_until_finished()
        except Exception as error:  # whatever the storage raises, the step did not land
            self._failed(error)
        if jax.process_index() == 0 and self._saving not in self.steps():
            self._failed(RuntimeError("the commit is not on disk"))
        digests.fsync(self.folder)  # the rename itself
        self._saving = None
        self._scrubber.look(self.steps()[::-1])

    def restore(
        self,
        abstract_state: PyTree,
        check: Callable[[Mapping[str, Any], pathlib.Path], None] = lambda meta, folder: None,
    ) -> tuple[PyTree, dict[str, Any]] | None:
        """Restores the newest sound checkpoint onto the devices.

        A damaged checkpoint is moved to `damaged/` beside `checkpoints/`, so that the run can save
        that step again.

        Args:
            abstract_state: A dataclass as given to `save`, with a jax.ShapeDtypeStruct, and its
                sharding, for each array. It also has a `step`.
            check: Refuses a checkpoint of another run, by its `meta` and folder, before any array
                is read.

        Returns:
            (state, meta), or None if nothing was saved yet.

        Raises:
            DamagedError: If checkpoints exist and none of them is sound.
            ValueError: If a sound checkpoint does not fit `abstract_state`; lists all differences.
        """
        self.wait()
        damaged = []
        while True:
            step = _from_first(max(set(self.steps()) - set(damaged), default=-1))
            if step < 0:
                break
            problem = digests.verify(self.folder / str(step)) or _renamed(self.folder / str(step))
            if _minimum(0 if problem else 1):
                if damaged:
                    logging.error("Restoring the older checkpoint of step %d instead.", step)
                check(_meta(self.folder / str(step)), self.folder / str(step))
                self._put_aside(damaged)
                return self._read(step, abstract_state)
            logging.error(
                "The checkpoint of step %d in %s is DAMAGED and not used: %s.",
                *(step, self.folder, problem or "another process cannot read its part"),
            )
            damaged.append(step)
        if damaged:
            raise DamagedError(_no_sound(self.folder, damaged))
        return None

    def close(self) -> None:
        """Waits for the last save and ends the background threads."""
        try:
            self.wait()
        finally:
            self._scrubber.close()
            self._manager.close()

    def _read(self, step: int, abstract_state: PyTree) -> tuple[PyTree, dict[str, Any]]:
        folder = self.folder / str(step)
        trees = {name: getattr(abstract_state, name) for name in ITEMS}
        saved = [name for name in ITEMS if (folder / name).is_dir()]
        found = {name: _metadata(folder / name) for name in saved}
        _check_same_tree(found, trees, folder)
        with ocp.StandardCheckpointer() as reader:
            for name in saved:
                trees[name] = reader.restore(folder / name, trees[name])
        meta = _meta(folder)
        like = abstract_state.step
        number = jax.make_array_from_callback(
            like.shape, like.sharding or _local(), lambda _: np.asarray(meta["step"], like.dtype)
        )
        logging.info("Restored the checkpoint of step %d from %s.", step, folder)
        return dataclasses.replace(abstract_state, step=number, **trees), meta

    def _put_aside(self, damaged: list[int]) -> None:
        if not damaged:
            return
        if jax.process_index() == 0:
            for step in damaged:
                target = _unused(self.folder.parent / "damaged" / str(step))
                target.parent.mkdir(exist_ok=True)
                os.rename(self.folder / str(step), target)
                retention.forget(self.folder, step)
        _from_first(0)  # the others wait until the folders are moved
        self._manager.reload()

    def _write_digests(self) -> None:
        """Runs in the first process, when all files of a step are written and before its commit."""
        (folder,) = self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        digests.write(folder)

    def _meet(self, key: str, timeout_ms: int) -> None:
        """Waits for the other processes, on behalf of Orbax.

        It does so even where writing has failed here, in a `finally`, and the others would wait for
        its files: the error is told instead, and ends them all.
        """
        error = sys.exc_info()[1]
        if error is not None and ranks.count() > 1:
            self._broken = error
            raise error
        ranks.meet(key, timeout_ms / 1000)

    def _failed(self, error: Exception) -> None:
        step, self._saving = self._saving, None
        if jax.process_index() == 0:
            for leftover in self.folder.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if len(reason) > 400:  # which file stands at the begin, and why at the end
            reason = f"{reason[:150]} ... {reason[-240:]}"
        if "No space left" in str(error) or "quota" in str(error).lower():
            reason = "the disk is full"
        raise self._error(step, reason) from error

    def _free_bytes(self, step: int) -> int:
        try:
            return shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self._error(step, f"the folder cannot be used ({error.strerror})") from error

    def _error(self, step: int, reason: str) -> SaveError:
        free = 0
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self.folder).free
        kept = ", ".join(map(str, self.steps())) or "none yet"
        return SaveError(
            f"The checkpoint of step {step} was NOT written to {self.folder}: {reason}. It needs "
            f"{_size(self._needed_bytes)} and {_size(free)} are free. Older checkpoints are "
            f"intact (steps: {kept}). Make room, or keep fewer checkpoints.",
            *(step, self._needed_bytes, free),
        )


def steps(workdir: str | os.PathLike) -> list[int]:
    """The steps that have a checkpoint, oldest first."""
    folder = pathlib.Path(workdir) / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def load_params(
    path: str | os.PathLike, weights: str = "ema", step: int | None = None
) -> dict[str, Any]:
    """Reads the weights of a trained model, without the optimizer's state.

    Args:
        path: A working folder, a .safetensors file with names such as "blocks/attn/kernel", or a
            folder of `vidgen.convert`.
        weights: "ema" for the moving average or "params" for the last update's; for a folder.
        step: A step of the folder; by default the newest sound one.

    Returns:
        The params tree: a nested dict of NumPy arrays.

    Raises:
        FileNotFoundError: If there is no such file, folder or step.
        DamagedError: If the step, or each of them, is damaged.
        ValueError: If `weights` is another word.
    """
    path = pathlib.Path(path).absolute()
    for file in (path, path / tree_files.WEIGHTS):
        if file.is_file():
            return tree_files.load_file(file)
    return read_item(find_item(path, weights, step))


def find_item(path: str | os.PathLike, weights: str = "ema", step: int | None = None):
    """The folder of a run's weights, sound; arguments and errors are those of `load_params`."""
    path = pathlib.Path(path).absolute()
    if weights not in ("ema", "params"):
        raise ValueError(f'weights="{weights}" is not known: use "ema" or "params".')
    folder, saved = path / "checkpoints", steps(path)
    if not saved:
        raise FileNotFoundError(
            f"No weights at {path}: give a working folder of a training run that has saved a "
            "checkpoint, or a .safetensors file."
        )
    if step is not None and step not in saved:
        raise FileNotFoundError(
            f"{path} has no checkpoint of step {step}: it has {', '.join(map(str, saved))}."
        )
    damaged = []
    for candidate in [step] if step is not None else reversed(saved):
        item = folder / str(candidate) / weights
        if not item.is_dir() and weights == "ema" and (item.parent / "params").is_dir():
            item = item.parent / "params"  # a run without a moving average
        problem = digests.verify(item.parent, [item.name])
        if not problem:
            return item
        logging.error("The checkpoint %s is DAMAGED and not used: %s.", item.parent, problem)
        damaged.append(candidate)
    raise DamagedError(_no_sound(folder, damaged))


def item_metadata(item: pathlib.Path) -> dict[str, Any]:
    """What an item holds, by path: each with `shape` and `dtype`."""
    return tree_files.flatten(_metadata(item))


def read_item(item: pathlib.Path, name: str | None = None):
    """The params tree of an item as NumPy; or its one array `name`, without reading the others."""
    tree = _metadata(item) if name is None else tree_files.unflatten({name: 0})
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    chosen = {} if name is None else {"item": tree, "partial_restore": True}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = reader.restore(item, args=ocp.args.PyTreeRestore(restore_args=as_numpy, **chosen))
    return found if name is None else tree_files.flatten(found)[name]


def _check_same_tree(found: PyTree, wanted: PyTree, folder: pathlib.Path) -> None:
    def describe(tree: PyTree) -> dict[str, str]:
        return {
            sharding.path_name(path): f"{np.dtype(x.dtype).name}{list(x.shape)}"
            for path, x in jax.tree.leaves_with_path(tree)
        }

    found, wanted = describe(found), describe(wanted)
    differ = [
        f"  {name}: {found.get(name, 'absent')} there, {wanted.get(name, 'absent')} here"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if differ:
        shown = differ[:40] + [f"  and {len(differ) - 40} more"] * (len(differ) > 40)
        raise ValueError(
            f"The checkpoint {folder} has other arrays than this model and optimizer:\n"
            + "\n".join(shown)
            + "\nUse the config that it was trained with, or another workdir."
        )


def _meta(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "meta" / "metadata").read_text())


def _renamed(folder: pathlib.Path) -> str:
    """What is wrong with the name of a checkpoint, or ""; another process may have found more."""
    try:
        step = _meta(folder)["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its meta is not readable ({error})"
    return "" if folder.name == str(step) else f"it is the checkpoint of step {step}, renamed"


def _metadata(item: pathlib.Path) -> PyTree:
    # Not by a checkpointer, which also looks for notes of a whole step here, and warns of their
    # absence.
    return ocp.StandardCheckpointHandler().metadata(item).tree


def _unused(path: pathlib.Path) -> pathlib.Path:
    number, free = 1, path
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}-{number}")
    return free


def _local() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _from_first(value: int) -> int:
    """The first process's value, for all; they do not go on before it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _minimum(value: int) -> int:
    """The smallest value of all processes."""
    if jax.process_count() == 1:
        return value
    # In two halves: without x64 an int64 would be cut.
    high_low = multihost_utils.process_allgather(np.array(divmod(value, 2**30), np.int32))
    return min(int(high) * 2**30 + int(low) for high, low in high_low)


def _no_sound(folder: pathlib.Path, damaged: list[int]) -> str:
    return (
        f"No sound checkpoint in {folder}: steps {', '.join(map(str, damaged))} differ from their "
        "digests. Copy an intact one back there from another disk or a backup, or start again in "
        "another workdir; the lines above name the files."
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
