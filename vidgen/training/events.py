"""What happened to the numbers of a run, a line each: `events.jsonl` in the working folder."""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from vidgen.training import micro_steps as micro_steps_lib


class Events:
    """Writes events with the buckets and clips of their update; the first process does.

    Args:
        workdir: The working folder.
        clip_ids: Number of a batch -> the ids of its clips.
    """

    def __init__(self, workdir: str | os.PathLike, clip_ids: Callable[[int], Sequence[str]]):
        self.path = pathlib.Path(workdir) / "events.jsonl"
        self._clip_ids = clip_ids

    def write(
        self, event: str, step: int, plan: Sequence[micro_steps_lib.MicroStep], **facts: Any
    ) -> None:
        """Adds an event.

        Args:
            event: What it is.
            step: The update.
            plan: Its micro-steps.
            facts: What else there is to say, as JSON.
        """
        clips = {m.number: list(map(str, self._clip_ids(m.number))) for m in plan}
        line = {"event": event, "step": step, "buckets": list(micro_steps_lib.labels(plan))}
        if jax.process_index() == 0:
            with open(self.path, "a") as file:
                file.write(json.dumps(line | facts | {"clips": clips}) + "\n")
