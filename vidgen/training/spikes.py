"""A spike of the loss: the run goes back to before it, and passes over its batches.

As PaLM was trained (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1): restarted some 100 steps
before each spike, past the next 200 to 500 batches; the same batches did no harm elsewhere.

Losses of different buckets are different, so each batch is compared with the recent ones of its own
bucket. A process that goes back ends, with an exit code of its own: the next start, of
`vidgen.launch` or of a scheduler, finds the older checkpoint and the batches to pass over. What the
rule knows is kept in each checkpoint, so that it decides alike whenever a run was interrupted.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vidgen.process import exit_codes, ranks
from vidgen.training import events as events_lib
from vidgen.training import micro_steps as micro_steps_lib
from vidgen.training import rewinds as rewinds_lib
from vidgen.training import workdir

RECENT = 100  # batches of a bucket that its mean goes back over
KNOWN = 20  # after so many batches of a bucket its losses are judged


class RewindError(RuntimeError):
    """The run goes back: start it again."""

    exit_code = exit_codes.REWIND


class SpikeError(RuntimeError):
    """The loss spikes, however often the run goes back."""

    exit_code = exit_codes.NUMBERS


@dataclasses.dataclass
class Recent:
    """Mean and variance of the losses of a bucket, each batch with less weight than the next."""

    seen: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def z(self, loss: float) -> float | None:
        """By how many standard deviations a loss is above the mean; None where few are known."""
        if self.seen < KNOWN:
            return None
        return (loss - self.mean) / math.sqrt(max(self.variance, 1e-12 * self.mean**2, 1e-30))

    def add(self, loss: float) -> None:
        """Takes a loss; the first ones weigh alike."""
        weight = max(1 / RECENT, 1 / (self.seen + 1))
        above = loss - self.mean
        self.variance = (1 - weight) * (self.variance + weight * above**2)
        self.mean, self.seen = self.mean + weight * above, self.seen + 1


class Spikes:
    """The rule of a run; every process makes one, with the same numbers.

    An update is high where the sum of its batches' z, divided by the square root of how many they
    are, is more than `z`. High losses do not count in the means.

    Args:
        run: Its checkpoints say what the rule knew: `noted` and `restored`.
        rewinds: Of the run.
        z: Standard deviations; 0: there is no rule.
        in_a_row: So many high updates make a spike; those without known buckets do not count.
        skip: Updates, up to the last of a spike, whose batches are passed over.
        limit: How many rewinds there may be.

    Attributes:
        began: The first update of those that are high in a row, or None.
    """

    def __init__(
        self,
        run: workdir.Run,
        rewinds: rewinds_lib.Rewinds,
        *,
        z: float,
        in_a_row: int,
        skip: int,
        limit: int,
    ):
        self._run, self._rewinds, self._limit = run, rewinds, limit
        self._z, self._in_a_row, self._skip = z, in_a_row, skip
        known = run.restored.get("spikes", {})
        self._recent = {name: Recent(*x) for name, x in known.get("recent", {}).items()}
        self.began, self._high = known.get("began"), known.get("high", 0)
        self._note()

    def look(
        self,
        step: int,
        metrics: Mapping[str, Any],
        plan: Sequence[micro_steps_lib.MicroStep],
        events: events_lib.Events,
        close: Callable[[], None],
    ) -> None:
        """Looks at an update that was taken.

        Args:
            step: Its number.
            metrics: On the devices.
            plan: Its micro-steps.
            events: Of the run.
            close: Called before the run ends, so that a checkpoint that is being written lands.

        Raises:
            RewindError: If the run is to go back.
            SpikeError: If it has done so too often.
        """
        if not self._z:
            return
        losses = self._losses(metrics, plan)
        recent = {name: self._recent.setdefault(name, Recent()) for name, _ in losses}
        scores = [z for name, loss in losses if (z := recent[name].z(loss)) is not None]
        score = sum(scores) / math.sqrt(len(scores)) if scores else 0.0
        if score <= self._z:
            for name, loss in losses:
                recent[name].add(loss)
            if scores:
                self.began, self._high = None, 0
            self._note()
            return
        self.began, self._high = self.began or step, self._high + 1
        self._note()
        numbers = {k: float(metrics[k]) for k in ("loss", "grad_norm", "param_norm", "lr")}
        means = {name: x.mean for name, x in recent.items()}
        events.write("spike", step, plan, z=round(score, 3), recent=means, **numbers)
        if self._high >= self._in_a_row:
            close()
            self._go_back(step, plan, events, score)

    def _go_back(self, step: int, plan: Sequence, events: events_lib.Events, score: float) -> None:
        spike = (
            f"the loss of {self._high} updates in a row, {self.began} to {step}, was above what it "
            f"was of late in their buckets, at last by {score:.1f} standard deviations"
        )
        if len(self._rewinds.done) >= self._limit:
            raise SpikeError(
                f"{spike}, and the run has gone back {self._limit} times (spike.limit) already. "
                f"{events.path} names buckets, clips and numbers: look at these, lower schedule.lr "
                "(--accept=schedule.lr), or raise spike.z or spike.limit, and start again."
            )
        rewind = self._rewinds.go_back(step, self.began, self._skip)
        first, end = rewind.batches
        facts = {"began": self.began, "back": rewind.back, "batches": rewind.batches}
        events.write("rewind", step, plan, z=round(score, 3), **facts)
        ranks.gather("rewound", "")  # or another's end would come before the event is written
        raise RewindError(
            f"{spike}. The run goes back to step {rewind.back}, or the last checkpoint before it, "
            f"and passes over batches {first} to {end - 1}: start it again."
        )

    def _losses(self, metrics: Mapping[str, Any], plan: Sequence) -> list[tuple[str, float]]:
        """(bucket, loss) of each batch: slices of one are taken together."""
        values = jax.device_get(metrics.get("losses", [metrics["loss"]]))
        batches: dict[int, list[float]] = {}
        for micro_step, value in zip(plan, values, strict=True):
            batches.setdefault(micro_step.number, []).append(float(value))
        names = {micro_step.number: micro_step.bucket.name for micro_step in plan}
        return [(names[number], float(np.mean(values))) for number, values in batches.items()]

    def _note(self) -> None:
        recent = {name: dataclasses.astuple(x) for name, x in self._recent.items()}
        known = {"recent": recent, "began": self.began, "high": self._high}
        self._run.noted = {"rewinds": len(self._rewinds.done), "spikes": known}
