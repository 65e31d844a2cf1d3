"""What a run reports: metrics.jsonl, previews, TensorBoard, Weights & Biases, a line of progress.

`metrics.jsonl` in the working folder is the truth: one line a step, on disk at once. Everything
else runs in a thread of its own behind a bounded queue; if it fails or hangs, training goes on.
"""

import collections
import json
import math
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from data_pipelines.media import encoding
from vidgen.training import goodput
from vidgen.training import trackers as trackers_lib
from vidgen.weights import digests

RECENT = 100  # steps; their median is the step time that is shown


class Logger:
    """Reports the steps of one run; only the first of several processes does.

    Args:
        workdir: The working folder.
        total_steps: Where the run ends.
        start_step: The step that it starts after; what was reported beyond is dropped, so that a
            run that was interrupted reports the same steps as one that was not.
        tensorboard: Whether to write TensorBoard files into `tensorboard/`.
        wandb: The Weights & Biases project, or "" for none.
        line_seconds: Where there is no terminal for a progress bar, a line comes this often.
        trackers: Makes further trackers.
        account: Where the time goes: trackers get it with each checkpoint, and a line at the end.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        total_steps: int,
        start_step: int = 0,
        *,
        tensorboard: bool = True,
        wandb: str = "",
        line_seconds: float = 10.0,
        trackers: Sequence[Callable[[], trackers_lib.Tracker]] = (),
        account: goodput.Account | None = None,
    ):
        self._active = jax.process_index() == 0
        self._pending: tuple[int, Mapping[str, Any], dict[str, Any]] | None = None
        if not self._active:
            return
        self._folder = pathlib.Path(workdir).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "metrics.jsonl"
        drop_after(path, start_step)
        self._file = open(path, "a")  # noqa: SIM115 (open for the whole run)
        makers = list(trackers)
        if tensorboard:
            makers.append(
                lambda: trackers_lib.TensorBoard(self._folder / "tensorboard", start_step)
            )
        if wandb:
            makers.append(lambda: trackers_lib.WandB(self._folder, wandb))
        self._trackers = [trackers_lib.Guarded(make) for make in makers]
        self._total, self._rates = total_steps, Rates()
        self._account = account if start_step < total_steps else None  # or all is said already
        self._progress = _Progress(total_steps, start_step, line_seconds)

    def step(
        self,
        step: int,
        metrics: Mapping[str, Any],
        *,
        tokens: float = 0,
        samples: float = 0,
        flops: float = 0,
        labels: Sequence[str] = (),
    ) -> None:
        """Reports a step whose program was just started. Waits only for the step before it.

        Args:
            step: Its number.
            metrics: Names to scalars on the devices.
            tokens: Tokens in the batch.
            samples: Clips in the batch.
            flops: Floating-point operations that the model needs for the batch.
            labels: What the shapes depend on, such as buckets. The first step with a label compiles
                a program, and does not count for the throughput.
        """
        if not self._active:
            return
        clean = self._rates.started(labels)
        self._flush(clean)
        work = {"tokens": tokens, "samples": samples, "flops": flops}
        self._pending = (step, metrics, {"labels": labels, **work})

    def video(
        self, step: int, name: str, video: np.ndarray | Sequence[np.ndarray], fps: float = 8.0
    ) -> None:
        """Writes `previews/<step>-<name>.mp4` (.png for one frame) and sends it to the trackers.

        Args:
            step: The step that it shows.
            name: What it shows; a list of videos gets numbers after it.
            video: uint8 [T, H, W, 3], or a list of such.
            fps: Frames per second.
        """
        if not self._active:
            return
        if not isinstance(video, np.ndarray):
            for index, one in enumerate(video):
                self.video(step, f"{name}-{index}", np.asarray(one), fps)
            return
        file_name = re.sub(r"[^\w.-]+", "_", name).strip("_.")[:80] or "preview"
        path = self._folder / "previews" / f"{step:08d}-{file_name}"
        path.parent.mkdir(exist_ok=True)
        if len(video) == 1:
            data, path = encoding.encode_png(video[0]), path.with_name(f"{path.name}.png")
        else:
            data, path = encoding.encode_mp4(video, fps), path.with_name(f"{path.name}.mp4")
        digests.write_atomically(path, data)
        for tracker in self._trackers:
            tracker.send("video", step, name, video, fps)

    def note(self, text: str) -> None:
        """Prints a line without breaking the progress bar."""
        if self._active:
            self._progress.note(text)

    def flush(self) -> None:
        """Waits for the last step and reports it.

        Comes before a checkpoint: a run that goes on from one does not report the steps before it.
        """
        if not self._active:
            return
        step = self._pending and self._pending[0]
        self._flush(clean=True)
        if self._account and step is not None:
            shares = {f"time/{name}": share for name, share in self._account.shares().items()}
            for tracker in self._trackers:
                tracker.send("scalars", step, shares)

    def close(self) -> None:
        """Reports the last step and ends the trackers."""
        if not self._active:
            return
        self._flush(clean=True)
        if self._account:
            self._progress.note(self._account.describe())
        self._progress.close()
        self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def _flush(self, clean: bool) -> None:
        if self._pending is None:
            return
        (step, metrics, info), self._pending = self._pending, None
        values = {name: np.asarray(x).tolist() for name, x in jax.device_get(dict(metrics)).items()}
        self._rates.finished(info, clean)
        values |= self._rates.summary()
        line = {"step": step, "time": round(time.time(), 3), **_valid_json(values)}
        if info["labels"]:
            line["label"] = "+".join(info["labels"])
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        scalars = {name: x for name, x in values.items() if isinstance(x, int | float)}
        for tracker in self._trackers:
            tracker.send("scalars", step, scalars)
        self._progress.step(step, scalars)


class Rates:
    """Step time and throughput of the recent steps, without those that compiled a program."""

    def __init__(self) -> None:
        self._seen: set[Any] = set()
        self._last: float | None = None  # when the step before ended
        self._recent: collections.deque[tuple[float, dict]] = collections.deque(maxlen=RECENT)

    def started(self, labels: Sequence[str]) -> bool:
        """Notes a started step; False if the time until now went into compiling it."""
        labels = labels or ("",)
        known = self._seen.issuperset(labels)
        self._seen.update(labels)
        return known

    def finished(self, work: Mapping[str, Any], clean: bool, now: float | None = None) -> None:
        """Notes the end of a step; `clean` if nothing was compiled since the end before it."""
        now = time.perf_counter() if now is None else now
        if clean and self._last is not None:
            self._recent.append((max(now - self._last, 1e-9), dict(work)))
        self._last = now

    def summary(self) -> dict[str, float]:
        """`step_seconds`, and `tokens_per_second` and the like where they are known."""
        if not self._recent:
            return {}
        rates = {"step_seconds": statistics.median(seconds for seconds, _ in self._recent)}
        for name in ("tokens", "samples", "flops"):
            if all(work[name] for _, work in self._recent):
                # The median of rates, not of times: buckets differ in size, and so in time.
                rates[f"{name}_per_second"] = statistics.median(
                    work[name] / seconds for seconds, work in self._recent
                )
        return rates


def drop_after(path: pathlib.Path, step: int) -> None:
    """Keeps the lines of metrics.jsonl up to a step; a last line that was cut short goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    digests.write_atomically(path, "".join(kept).encode())


class _Progress:
    """A bar on a terminal, else a line now and then."""

    def __init__(self, total: int, start: int, line_seconds: float):
        self._total, self._line_seconds = total, line_seconds
        self._last_line = -math.inf
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                bar_format="{n_fmt}/{total_fmt} |{bar:20}| {desc}",
            )

    def step(self, step: int, values: Mapping[str, float]) -> None:
        text = describe(self._total - step, values)
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(0)
        elif time.monotonic() - self._last_line >= self._line_seconds or step == self._total:
            self._last_line = time.monotonic()
            self.note(f"step {step}/{self._total}  {text}")

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()


def describe(steps_left: int, values: Mapping[str, float]) -> str:
    """Loss, throughput and time left in a few words."""
    words = [f"loss {values['loss']:.4g}"] if "loss" in values else []
    for name, unit, scale in (
        ("tokens", "tokens/s", 1),
        ("samples", "clips/s", 1),
        ("flops", "TFLOP/s", 1e12),
    ):
        if f"{name}_per_second" in values:
            words.append(f"{values[f'{name}_per_second'] / scale:,.4g} {unit}")
    if "step_seconds" in values:
        words.append(f"{values['step_seconds']:.3g} s/step")
        left = int(steps_left * values["step_seconds"])
        hours, minutes, seconds = left // 3600, left // 60 % 60, left % 60
        words.append(f"{hours}:{minutes:02d}:{seconds:02d} left")
    return "  ".join(words)


def _valid_json(value: Any) -> Any:
    """JSON has no word for a number that is not finite: it becomes a string."""
    if isinstance(value, dict):
        return {name: _valid_json(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_valid_json(x) for x in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
