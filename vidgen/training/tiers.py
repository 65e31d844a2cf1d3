"""Where the train state is kept: checkpoints on shared storage, and snapshots on each machine."""

from typing import Any

from vidgen.training import checkpoint, snapshots, workdir
from vidgen.training import rewinds as rewinds_lib

PyTree = Any


class Tiers:
    """Keeps the state of a run, and gives back the newest that is sound.

    Every process makes one and calls the same methods in the same order.

    Args:
        run: The run, whose folder is locked.
        config: Of the run: `checkpoint`, `checkpoint_every`, `snapshot` and `num_steps`.
        rewinds: What they took back is put aside.
    """

    def __init__(self, run: workdir.Run, config: Any, rewinds: rewinds_lib.Rewinds):
        rewinds.put_aside()
        self._is_valid = lambda step, meta: rewinds.is_valid(step, meta.get("rewinds", 0))
        self._run, self._every, self._end = run, config.checkpoint_every, config.num_steps
        self._checkpoints = checkpoint.Checkpointer(run.folder, **config.checkpoint.to_dict())
        self._snapshots = snapshots.Snapshots(run.id, **config.snapshot.to_dict())

    def restore(self, abstract_state: PyTree) -> PyTree | None:
        """The state to go on from, or None; arguments and errors as `Checkpointer.restore`."""
        saved = self._checkpoints.latest_step()
        found = self._snapshots.restore(abstract_state, self._run.check, saved, self._is_valid)
        found = found or self._checkpoints.restore(abstract_state, self._run.check)
        return found and found[0]

    def is_due(self, step: int, is_last: bool) -> bool:
        """Whether the state is to be kept after this step; `is_last` means that the run stops."""
        return self._has_checkpoint(step, is_last) or self._snapshots.is_due(step)

    def save(self, step: int, state: PyTree, is_last: bool, suspicious: int | None) -> None:
        """Begins to keep the state; see `Checkpointer.save` and `Snapshots.take`.

        Raises:
            SaveError: If a checkpoint cannot be written.
        """
        if self._has_checkpoint(step, is_last):
            self._checkpoints.save(step, state, self._run.meta(step), suspicious)
        else:
            saved = self._checkpoints.latest_step()
            self._snapshots.take(step, state, self._run.meta(step), saved)

    def check(self) -> None:
        """Reports a checkpoint that failed in the background; never waits.

        Raises:
            SaveError: If it failed.
        """
        self._checkpoints.check()

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
            SaveError: If it failed.
        """
        self._checkpoints.close()
        self._snapshots.close()

    def finish(self) -> None:
        """Ends in order, after a checkpoint: the snapshots can go."""
        self.close()
        self._snapshots.remove()

    def _has_checkpoint(self, step: int, is_last: bool) -> bool:
        return step % self._every == 0 or step == self._end or is_last
