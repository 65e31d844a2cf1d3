"""Copies of the train state on each machine, taken often, for the next start of the run there.

They lie beside the checkpoints: in the memory of a machine (/dev/shm) or on its own disk, where
they outlive the process but not the machine. Each process keeps what its own devices hold, so
nothing is sent and nothing is merged. A start uses the newest snapshot that is sound in every
process and fits its devices, and else a checkpoint.

A file holds the arrays one after the other, an index of them as JSON, and a seal: the length of the
index and its digest. The index has the digest of each array; nothing is used that differs.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import xxhash
from absl import logging

from vidgen.process import ranks

PyTree = Any

FIRST = 2  # steps before the first one, and before the second, by which its cost is known
ROOM = 2.2  # free room that is asked for, in sizes of a snapshot
STALE_SECONDS = 24 * 3600.0  # after which what another run left may go
_ALIGNED = 64  # bytes
_SEAL = 8 + 16  # bytes: of the index's length, and of its digest


class Snapshots:
    """The snapshots of a run.

    Every process makes one and calls the same methods in the same order.

    Args:
        run: Names the run, in all of its starts; see `workdir.Run.id`.
        folder: On this machine; the user's number is added. Empty: there are none.
        share: Of the time that snapshots may take, copies and digests together.
    """

    def __init__(self, run: str, *, folder: str = "", share: float = 0.005):
        self._share, self._thread, self._thread_seconds = share, None, 0.0
        self._problem, self._is_on = "", bool(folder)
        self._next: int | None = None
        self._last = 0, 0.0  # step, and when
        if not folder:
            return
        root = pathlib.Path(f"{folder}-{os.getuid()}").absolute()
        self._folder = root / run / f"{ranks.index()}-of-{ranks.count()}"
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if root.stat().st_uid != os.getuid():
                raise PermissionError(f"{root} belongs to another user")
            _clean(root, run)
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._problem = str(error)

    def restore(
        self,
        abstract_state: PyTree,
        check: Callable[[Mapping[str, Any], pathlib.Path], None],
        saved: int | None,
        is_valid: Callable[[int, Mapping[str, Any]], bool] = lambda step, meta: True,
    ) -> tuple[PyTree, dict[str, Any]] | None:
        """The newest snapshot that all processes can use.

        Args:
            abstract_state: A dataclass with a jax.ShapeDtypeStruct and its sharding for each array.
            check: Refuses a snapshot of another run, by its `meta` and file.
            saved: The newest step that has a checkpoint.
            is_valid: Whether a snapshot, by its step and `meta`, is of the run as it is now; others
                are removed.

        Returns:
            (state, meta); None where no snapshot is sound everywhere, or a checkpoint is newer, or
            checkpoints are gone that were there when the snapshot was taken: who removes them wants
            to go back.
        """
        if not self._is_on:
            return None
        found = self._sound(abstract_state, is_valid)
        mine = {step: snapshot.index["saved"] for step, snapshot in found.items()}
        told = [json.loads(text) for text in ranks.gather("snapshots", json.dumps([mine, saved]))]
        (bases, saved), saved_now = told[0], lambda step: -1 if step is None else step
        common = set.intersection(*(set(map(int, steps)) for steps, _ in told))
        steps = [step for step in common if saved_now(bases[str(step)]) <= saved_now(saved)]
        step = max(steps, default=-1)
        if step <= saved_now(saved):
            return None
        check(found[step].index["meta"], found[step].path)
        state = found[step].load(abstract_state)
        logging.info("Restored the snapshot of step %d from %s.", step, found[step].path)
        self._next = None
        return state, found[step].index["meta"]

    def is_due(self, step: int) -> bool:
        """Whether to take one after this step; all processes get the same answer."""
        if self._next is None:
            self._next = step + FIRST - 1
        return self._is_on and step >= self._next

    def take(self, step: int, state: PyTree, meta: Mapping[str, Any], saved: int | None) -> None:
        """Copies the state off the devices, and begins to write it in the background.

        How long until the next one follows from what it costs the slowest process. Where one of
        them cannot write there will be no more, and a line says why.

        Args:
            step: The number of updates in the state.
            state: A dataclass of arrays.
            meta: What else a restart needs, as JSON.
            saved: The newest step that has a checkpoint.
        """
        jax.block_until_ready(state)
        begin = time.monotonic()
        if self._thread:
            self._thread.join()
        if not self._problem:
            copies = _copies(state)
            self._problem = self._no_room(sum(x.nbytes for *_, x in copies))
        cost = time.monotonic() - begin + self._thread_seconds / (os.cpu_count() or 1)
        last_step, last_time = self._last
        seconds = (begin - last_time) / (step - last_step) if last_time else 0.0
        mine = [cost, seconds, self._problem and f"{ranks.name(ranks.index())}: {self._problem}"]
        told = [json.loads(text) for text in ranks.gather("snapshot", json.dumps(mine))]
        costs, paces, problems = zip(*told, strict=True)
        if problem := next(filter(None, problems), ""):
            self._is_on = False
            logging.warning("No snapshots are taken any more: %s.", problem)
            return
        pace, self._last = max(paces), (step, begin)
        steps = math.ceil(max(costs) / (self._share * pace)) if pace else FIRST
        self._next = step + max(1, steps)
        # what is older than the last one is not needed: all processes have written that
        for _, path in sorted(self._files().items())[:-1]:
            path.unlink()
        index = {"step": step, "meta": meta, "saved": saved}
        self._thread = threading.Thread(target=self._write, args=(copies, index), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits for the last one."""
        if self._thread:
            self._thread.join()

    def remove(self) -> None:
        """Removes this process's snapshots, after `close`."""
        if self._is_on and not self._problem:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _files(self) -> dict[int, pathlib.Path]:
        found = self._folder.glob("*.snapshot")
        return {int(path.stem): path for path in found if path.stem.isdecimal()}

    def _sound(self, abstract_state: PyTree, is_valid: Callable) -> dict[int, "_Snapshot"]:
        """What this process could go on from, by step."""
        if self._problem:
            return {}
        found = {}
        for step, path in self._files().items():
            try:
                snapshot = _Snapshot(path)
                problem = snapshot.problem(step, abstract_state)
            except (OSError, ValueError, KeyError, TypeError) as error:
                problem = str(error)
            if problem:
                logging.error("The snapshot %s is not used: %s.", path, problem)
            elif is_valid(step, snapshot.index["meta"]):
                found[step] = snapshot
            else:
                path.unlink()
        return found

    def _no_room(self, size: int) -> str:
        try:
            free = shutil.disk_usage(self._folder).free
            free += sum(path.stat().st_size for path in self._files().values())
        except OSError as error:
            return str(error)
        if free >= ROOM * size:
            return ""
        return (
            f"{self._folder} has {free / 2**30:.1f} GiB of room and {ROOM * size / 2**30:.1f} are "
            "needed; give another snapshot.folder on each machine, or none"
        )

    def _write(self, copies: list, index: dict) -> None:
        """Runs in a thread."""
        begin, path = time.thread_time(), self._folder / f"{index['step']}.snapshot"
        part = path.with_suffix(".part")
        try:
            with open(part, "wb", buffering=0) as file:
                index["arrays"] = [_append(file, *entry) for entry in copies]
                text = json.dumps(index).encode()
                seal = len(text).to_bytes(8, "little") + xxhash.xxh3_128_digest(text)
                _write_all(file, text + seal)
            os.replace(part, path)
        except OSError as error:
            self._problem = str(error)
            part.unlink(missing_ok=True)
        self._thread_seconds = time.thread_time() - begin


class _Snapshot:
    """A file of one process.

    Raises:
        ValueError, OSError: If its index is not what was written.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self._bytes = path, np.memmap(path, np.uint8, "r")
        seal = bytes(self._bytes[-_SEAL:])
        end = len(self._bytes) - _SEAL
        text = bytes(self._bytes[max(0, end - int.from_bytes(seal[:8], "little")) : max(0, end)])
        if len(seal) < _SEAL or xxhash.xxh3_128_digest(text) != seal[8:]:
            raise ValueError("its index is changed or cut short")
        self.index = json.loads(text)
        self._parts = {(name, _span(at)): entry for name, at, *entry in self.index["arrays"]}

    def problem(self, step: int, abstract_state: PyTree) -> str:
        """Why it cannot be used, or ""."""
        if self.index["step"] != step:
            return f"it is of step {self.index['step']}"
        for name, x in _named(abstract_state):
            for at in {*_spans(x).values()}:
                entry = self._parts.get((name, at))
                if entry is None or entry[0] != str(x.dtype):
                    return f"it has no {name} as the devices of this process hold it now"
        for (name, _), (_, _, start, size, digest) in self._parts.items():
            if xxhash.xxh3_128_hexdigest(self._bytes[start : start + size]) != digest:
                return f"{name} is changed"
        return ""

    def load(self, abstract_state: PyTree) -> PyTree:
        """The state, on the devices."""

        def array(path, x):
            name, parts = jax.tree_util.keystr(path), []
            for device, at in _spans(x).items():
                dtype, shape, start, size, _ = self._parts[name, at]
                data = np.array(self._bytes[start : start + size]).view(np.dtype(dtype))
                parts.append(jax.device_put(data.reshape(shape), device))
            return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)

        return jax.tree_util.tree_map_with_path(array, abstract_state)


def _named(tree: PyTree) -> Iterator[tuple[str, Any]]:
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path), x


def _span(at) -> tuple[tuple[int, int], ...]:
    return tuple(map(tuple, at))


def _spans(x) -> dict[Any, tuple[tuple[int, int], ...]]:
    """Which part of an array each device of this process holds: (first, end) of each dimension."""
    places = x.sharding.addressable_devices_indices_map(x.shape)
    return {
        device: tuple(s.indices(n)[:2] for s, n in zip(at, x.shape, strict=True))
        for device, at in places.items()
    }


def _copies(state: PyTree) -> list[tuple[str, tuple, np.ndarray]]:
    """(name, part, values) of what the devices of this process hold, each part once."""
    found = {}
    for name, x in _named(state):
        spans = _spans(x)
        for shard in x.addressable_shards:
            found.setdefault((name, spans[shard.device]), shard.data)
    for data in found.values():
        data.copy_to_host_async()
    # a view of a CPU's own memory would keep the next update from using that again
    copy = lambda x: np.array(x) if next(iter(x.devices())).platform == "cpu" else np.asarray(x)
    return [(name, at, copy(data)) for (name, at), data in found.items()]


def _append(file, name: str, at: tuple, values: np.ndarray) -> list:
    """Writes an array and returns its line of the index."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    start = file.tell()
    _write_all(file, data)
    _write_all(file, bytes(-data.nbytes % _ALIGNED))
    digest = xxhash.xxh3_128_hexdigest(data)
    return [name, at, str(values.dtype), values.shape, start, data.nbytes, digest]


def _write_all(file, data) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _clean(root: pathlib.Path, run: str) -> None:
    """Removes what runs have left that died here a day ago, or half-written."""
    for folder in root.iterdir():
        with contextlib.suppress(OSError):  # another process may be removing it
            newest = max(path.stat().st_mtime for path in [folder, *folder.rglob("*")])
            if folder.name != run and time.time() - newest > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
    for part in (root / run).glob(f"{ranks.index()}-of-*/*.part"):
        part.unlink(missing_ok=True)
