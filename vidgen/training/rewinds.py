"""Which batches a run passes over, and which of its checkpoints that leaves behind.

The batch of a step is a function of (seed, list of rewinds) alone. The list is `rewinds.json` in
the working folder, which grows by an atomic write: before it a run has not gone back, and after it
it has, whenever it is killed. A checkpoint says how many rewinds it knows of. One that does not
know of a rewind, and has updates that this takes back, is put aside.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vidgen.process import ranks
from vidgen.training import checkpoint, retention
from vidgen.weights import digests


@dataclasses.dataclass(frozen=True)
class Rewind:
    """A decision to go back: the updates after `back` are taken back.

    Those that are made instead begin after the batches from the first number to before the second.
    """

    step: int  # that it was made at
    back: int
    batches: tuple[int, int]


class Rewinds:
    """The rewinds of a run; every process makes one and calls it alike.

    Args:
        workdir: The working folder; need not exist.
        skip: (first, end) of numbers of batches that are passed over from the begin.
        batches: How many make an update.

    Raises:
        ValueError: If `skip` or the file is not what it should be.
    """

    def __init__(
        self, workdir: str | os.PathLike, skip: Iterable[Sequence[int]] = (), batches: int = 1
    ):
        self._folder, self._batches = pathlib.Path(workdir), batches
        self._path = self._folder / "rewinds.json"
        self._given = [tuple(pair) for pair in skip]
        for pair in self._given:
            if not (len(pair) == 2 and all(isinstance(n, int) for n in pair) and _grows(pair)):
                raise ValueError(
                    f"data.skip_batches holds {pair}: give (first, end) of batch numbers, such as "
                    "((1200, 1400),), which passes over 1200 to 1399."
                )
        self.done: list[Rewind] = []
        if self._path.exists():
            try:
                for entry in json.loads(self._path.read_text())["rewinds"]:
                    numbers = int(entry["step"]), int(entry["back"])
                    first, end = map(int, entry["batches"])
                    self.done.append(Rewind(*numbers, (first, end)))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self._path} is not readable ({error}): without it the run would take other "
                    "batches. Restore it, or use another workdir."
                ) from error

    def number(self, position: int) -> int:
        """The number, in the loader's order, of the batch at a position in the run's order."""
        for first, end in self._passed_over():
            position += (end - first) * (position >= first)
        return position

    def is_valid(self, step: int, known: int) -> bool:
        """Whether a state of this step, which knows of so many rewinds, is of this run as it is."""
        return all(rewind.back >= step for rewind in self.done[known:])

    def valid_steps(self) -> list[int]:
        """The steps that have a valid checkpoint, oldest first."""
        saved = checkpoint.steps(self._folder)
        return [step for step in saved if self.is_valid(step, self._known(step))]

    def go_back(self, step: int, began: int, skip: int) -> Rewind:
        """Decides to go back before a spike, and writes it down.

        The batches of the last `skip` updates are passed over, and of the whole spike, as far as
        checkpoints from before it reach.

        Args:
            step: The last update of the spike.
            began: The first one.
            skip: Updates.
        """
        wanted = min(began - 1, step - skip)
        saved = [saved for saved in self.valid_steps() if saved < began]
        oldest = min(saved, default=0)
        back = max([saved for saved in saved if saved <= wanted], default=oldest)
        back = max(back, wanted)
        batches = self.number(back * self._batches), self.number(step * self._batches - 1) + 1
        mine = json.dumps(dataclasses.asdict(Rewind(step, back, batches)))
        found = json.loads(ranks.gather("rewind", mine)[0])
        rewind = Rewind(found["step"], found["back"], tuple(found["batches"]))
        self.done.append(rewind)
        if ranks.index() == 0:
            text = json.dumps({"rewinds": list(map(dataclasses.asdict, self.done))}, indent=1)
            digests.write_atomically(self._path, f"{text}\n".encode())
        self.put_aside()
        return rewind

    def put_aside(self) -> None:
        """Moves the checkpoints that are not valid any more to `rewound/`; all processes call it.

        Nothing else may work on the checkpoints meanwhile.
        """
        if ranks.index() == 0:
            valid = self.valid_steps()
            for step in set(checkpoint.steps(self._folder)) - set(valid):
                target = self._folder / "rewound" / f"{len(self.done)}-{step}"
                target.parent.mkdir(exist_ok=True)
                os.rename(self._folder / "checkpoints" / str(step), target)
                retention.forget(self._folder / "checkpoints", step)
        ranks.gather("put aside", "")

    def facts(self) -> dict[str, Any]:
        """What the processes of one start must have alike."""
        return {"rewinds": list(map(dataclasses.asdict, self.done))}

    def describe(self) -> Iterator[str]:
        """What is passed over, a line each."""
        for first, end in self._passed_over():
            yield f"batches {first} to {end - 1} are passed over"

    def _passed_over(self) -> list[tuple[int, int]]:
        """Disjoint, in order."""
        found: list[tuple[int, int]] = []
        for first, end in sorted([*self._given, *(rewind.batches for rewind in self.done)]):
            if found and first <= found[-1][1]:
                first, end = found[-1][0], max(end, found.pop()[1])
            found.append((first, end))
        return found

    def _known(self, step: int) -> int:
        path = self._folder / "checkpoints" / str(step) / "meta" / "metadata"
        try:
            return int(json.loads(path.read_text()).get("rewinds", 0))
        except (OSError, ValueError, TypeError, AttributeError):
            return len(self.done)  # damaged: the restore finds that, and says so


def _grows(pair: Sequence[int]) -> bool:
    return 0 <= pair[0] < pair[1]
