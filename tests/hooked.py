"""A command of the project, run as it is, with what tests need to see or to force.

    python -m tests.hooked train --config=... --workdir=...

Variables of the environment:
    HOOK_ROWS: a file that gets a line {"step", "rows"} for each batch that the loop takes.
    HOOK_SHARD_CLIPS: clips of a shard that `encode` makes.
    HOOK_FREE_BYTES: what the disk has left, for all that asks.
    HOOK_FAULTS: a folder of files PROCESS-STEP that hold code, which is run once, when that process
        takes the batch of that step.
"""

import importlib
import json
import os
import pathlib
import shutil
import sys

import numpy as np

from vidgen.process import command_line
from vidgen.training import data


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


def main():
    command = importlib.import_module(f"vidgen.{sys.argv.pop(1)}")
    if "HOOK_ROWS" in os.environ:
        data.Prefetch = RecordingPrefetch
    if "HOOK_FAULTS" in os.environ:
        data.Prefetch = FaultyPrefetch
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
