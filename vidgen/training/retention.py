"""Which checkpoints are kept, and a thread that looks whether they are still what was written."""

import pathlib
import threading
from collections.abc import Sequence

from absl import logging

from vidgen.weights import digests

REMOVAL_SECONDS = 1.0  # in which an old checkpoint is removed


class Sound:
    """Keeps the newest sound checkpoints, and one from before the last suspicious step.

    A policy of Orbax's. A checkpoint that was found damaged does not count, so that another stays
    in its place.

    Args:
        folder: Of the checkpoints.
        keep: How many of the newest to keep.
        keep_every: Keep also each whose step is a multiple of this; 0 or None for none.

    Attributes:
        suspicious: The last step after which something looked wrong, or None.
    """

    def __init__(self, folder: pathlib.Path, keep: int, keep_every: int | None):
        self._folder, self._keep, self._every = folder, keep, keep_every
        self.suspicious: int | None = None

    def should_preserve(self, checkpoints: Sequence, *, context) -> Sequence[bool]:
        """See orbax.checkpoint.checkpoint_managers.PreservationPolicy."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        sound = [step for step in steps if not mark(self._folder, step).exists()]
        kept = set(sound[-self._keep :])
        if self.suspicious is not None:
            kept |= set([step for step in sound if step < self.suspicious][-1:])
        if self._every:
            kept |= {step for step in steps if step % self._every == 0}
        return [step in kept for step in steps]


class Scrubber:
    """Reads checkpoints again, in a thread, and marks those that are not what was written.

    Several processes share the files of each.

    Args:
        folder: Of the checkpoints. A mark is a file in `damaged/` beside it that says why.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def look(self, steps: Sequence[int]) -> None:
        """Begins to look at these steps, unless it is still looking at others."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, args=(steps,), daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Waits until it has looked."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Stops after the file that it is looking at."""
        self._stopped.set()
        self.wait()

    def _look(self, steps: Sequence[int]) -> None:
        try:
            self._read_again(steps)
        except OSError as error:  # a checkpoint that is being removed, a disk that is full
            logging.warning("Checkpoints in %s could not be read again: %s", self._folder, error)

    def _read_again(self, steps: Sequence[int]) -> None:
        for step in steps:
            folder = self._folder / str(step)
            for problem in digests.problems(folder):
                if self._stopped.is_set():
                    return
                if not problem or digests.NOT_READABLE in problem:
                    continue
                if not mark(self._folder, step).exists() and self._stays(folder):
                    write_mark(self._folder, step, problem)
                    logging.error(
                        "The checkpoint of step %d in %s is DAMAGED since it was written: %s. "
                        "Another one is kept in its place.",
                        *(step, self._folder, problem),
                    )
                    break

    def _stays(self, folder: pathlib.Path) -> bool:
        """Whether a checkpoint is there, and not just being removed by the next save."""
        return not self._stopped.wait(REMOVAL_SECONDS) and (folder / "meta").is_dir()


def mark(folder: pathlib.Path, step: int) -> pathlib.Path:
    """The file that says that a checkpoint is damaged, and how."""
    return folder.parent / "damaged" / f"{step}.txt"


def write_mark(folder: pathlib.Path, step: int, problem: str) -> None:
    """Marks a checkpoint as damaged."""
    path = mark(folder, step)
    path.parent.mkdir(exist_ok=True)
    digests.write_atomically(path, f"{problem}\n".encode())


def forget(folder: pathlib.Path, step: int) -> None:
    """Removes a mark: the step is written anew."""
    mark(folder, step).unlink(missing_ok=True)
