"""Watches the numbers of a run: updates that were refused because they were not finite.

`train_state.apply` refuses them inside the program; here they are told, counted, and ended when
there are too many. What is read belongs to the update before the last, so that nothing waits.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidgen.process import exit_codes
from vidgen.training import events as events_lib
from vidgen.training import micro_steps as micro_steps_lib
from vidgen.training import spikes as spikes_lib


class NumbersError(RuntimeError):
    """The numbers of a run are not finite any more."""

    exit_code = exit_codes.NUMBERS


class Numbers:
    """Tells of refused updates, in `events.jsonl` and a line, and ends a run that has only them.

    Every process makes one and calls it alike: all end after the same step.

    Args:
        workdir: The working folder.
        limit: How many updates in a row may be refused.
        clip_ids: Number of a batch -> the ids of its clips.
        note: Prints a line.
        close: Called before a run is ended, so that a checkpoint that is being written lands.
        spikes: Looks at the updates that were taken, or None.

    Attributes:
        events: Of the run.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        limit: int,
        clip_ids: Callable[[int], Sequence[str]],
        note: Callable[[str], None],
        close: Callable[[], None] = lambda: None,
        spikes: spikes_lib.Spikes | None = None,
    ):
        if limit < 0:
            raise ValueError(f"max_refused={limit}: use 0 or more.")
        self.events = events_lib.Events(workdir, clip_ids)
        self._limit, self._note, self._close, self._spikes = limit, note, close, spikes
        self._in_a_row, self._pending = 0, None
        self._refused: int | None = None
        self._is_finite = jax.jit(
            lambda tree: jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()
        )

    @property
    def suspicious(self) -> int | None:
        """The first step of a spike that may have begun, the last that was refused, or None."""
        return (self._spikes and self._spikes.began) or self._refused

    def step(
        self,
        step: int,
        metrics: Mapping[str, Any],
        plan: Sequence[micro_steps_lib.MicroStep],
    ) -> None:
        """Takes the metrics of an update that was just started, and reads those before it.

        Raises:
            NumbersError: If more than `limit` updates in a row were refused.
            RewindError, SpikeError: See `spikes`.
        """
        self.flush()
        self._pending = step, metrics, plan

    def flush(self) -> None:
        """Reads the metrics of the last update; see `step`."""
        if self._pending is None:
            return
        (step, metrics, plan), self._pending = self._pending, None
        if not int(metrics["refused"]):
            self._in_a_row = 0
            if self._spikes:
                self._spikes.look(step, metrics, plan, self.events, self._close)
            return
        self._in_a_row, self._refused = self._in_a_row + 1, step
        numbers = {k: str(float(metrics[k])) for k in ("loss", "grad_norm", "param_norm", "lr")}
        if "losses" in metrics:
            numbers["losses"] = [str(float(x)) for x in metrics["losses"]]
        self.events.write("refused", step, plan, **numbers)
        self._note(
            f"step {step} was REFUSED, its numbers are not finite: loss {numbers['loss']}, "
            f"grad_norm {numbers['grad_norm']}, param_norm {numbers['param_norm']}; buckets "
            f"{', '.join(micro_steps_lib.labels(plan))}; its clips are in {self.events.path}."
        )
        if self._in_a_row > self._limit:
            self._close()
            raise NumbersError(
                f"{self._in_a_row} updates in a row were refused, up to step {step}, because their "
                f"numbers are not finite; max_refused={self._limit}. Parameters are still those "
                f"before the first of them. {self.events.path} names their buckets and clips: look "
                "at these, or lower schedule.lr, and start again from the last checkpoint."
            )

    def check(self, state: Any) -> None:
        """Comes before a checkpoint.

        Raises:
            NumbersError: If the state is not finite, so that it must not be saved.
        """
        self.flush()
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, np.floating)]
        if not bool(self._is_finite(floats)):
            self._close()
            raise NumbersError(
                "The state is not finite and is NOT saved: what the run started with is not, by "
                "start_from or a checkpoint. Start from other weights, in another workdir."
            )
