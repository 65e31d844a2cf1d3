"""Random faults against a supervised run: each trial ends with the bits of a run that had none.

    python -m tests.chaos --trials=12 --seed=0 [--processes=2] [--json=FILE]

A trial starts `vidgen.launch` with the real STDiT at toy size and one or two faults, each of a
kind, a process and a moment drawn from the seed. Where the supervisor itself ends in order (a
signal, a stop file), the trial starts it again, as a person or a scheduler would. At the end all
arrays of the last checkpoint and all reported numbers are compared with those of a run without
faults.
"""

import argparse
import collections
import itertools
import json
import math
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from tests import toy_training as toy
from vidgen.process import exit_codes
from vidgen.training import goodput

STARTS = 6  # of the supervisor in one trial
SECONDS = 400  # that a trial may take
LIMITS = ["--config.limits.step=12", "--config.limits.data=40", "--config.limits.save=40"]

CODE = {  # what the process does to itself
    "sleeps": "import time; time.sleep(1e6)",
    "holds the lock": "sum(range(10**13))",
    "stops itself": "import os, time; os.kill(os.getpid(), 19); time.sleep(1e6)",
    "raises": "raise ValueError('a bug')",
    "has no memory": "raise MemoryError()",
    "segfaults": "import ctypes; ctypes.string_at(0)",
    "aborts": "import os; os.abort()",
    "exits with 0": "import os; os._exit(0)",
    "exits with 3": "import os; os._exit(3)",
    "cannot write": (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))"
    ),
    "cannot open files": (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.RLIM_INFINITY))"
    ),
    "is slow for once": "import time; time.sleep(2)",
    "asks itself to stop": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "a thread raises": "import threading; threading.Thread(target=lambda: 1 / 0).start()",
    "a device never ends": (
        "import jax; jax.jit(lambda x: jax.lax.while_loop(lambda x: x > 0, lambda x: x + 0, x))"
        "(1.0).block_until_ready()"
    ),
}
SIGNALS = {  # from outside, at any moment
    "is killed": signal.SIGKILL,
    "gets SIGTERM": signal.SIGTERM,
    "gets SIGINT": signal.SIGINT,
    "gets SIGUSR1": signal.SIGUSR1,
    "gets SIGSEGV": signal.SIGSEGV,
    "is stopped": signal.SIGSTOP,
}


def flip(file: pathlib.Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def zero(file: pathlib.Path, rng: random.Random) -> None:
    data = file.read_bytes()
    start = rng.randrange(len(data))
    file.write_bytes(data[:start] + bytes(len(data[start : start + 64])) + data[start + 64 :])


def cut(file: pathlib.Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


STORAGE: dict[str, Callable] = {  # to a file of the newest checkpoint, after all were killed
    "a bit flips": flip,
    "a page is zero": zero,
    "a file is cut short": cut,
    "a file is gone": lambda file, rng: file.unlink(),
}
OTHER = (
    "all are killed",
    "killed while saving",
    "killed while starting",
    "the supervisor is killed",
    "the guard is killed",
    "a stop file",
    "a step is renamed",
    "half a step is left",
    "another config",
    "a second run",
    "a snapshot is damaged",
    "a snapshot is gone",
)
KINDS = (*CODE, *SIGNALS, *STORAGE, *OTHER)
ENDING = ("is killed", "gets SIGSEGV", "all are killed", "killed while saving")


class Trial:
    """One run with faults.

    Args:
        folder: Where it works; the reference lies in `whole` beside it.
        command: Of the run, as a function of the working folder.
        processes: How many.
        rng: Draws the faults.
        kinds: To draw from.
    """

    def __init__(self, folder, command, processes: int, rng: random.Random, kinds=KINDS):
        self.folder, self.run, self._command = folder, folder / "run", command(folder / "run")
        self._processes, self._rng = processes, rng
        self.faults = rng.sample(kinds, k=min(len(kinds), rng.choice((1, 1, 2))))
        if "a second run" in self.faults:  # which would go on where another fault stopped the first
            self.faults = ["a second run"]
        self._snapshots = folder / "snapshots"
        self._keeps = ["--config.snapshot.share=0.3"]  # in half of the trials
        self._keeps += [f"--config.snapshot.folder={self._snapshots}"] * rng.randrange(2)
        self.codes: list[int] = []
        # seconds from a fault to the end of its start, and to the first step of the next
        self.ended: list[float] = []
        self.stepped: list[float] = []
        self._fault: tuple[float, int] | None = None  # when, and how many starts had ended
        self._process: subprocess.Popen | None = None

    def go(self) -> None:
        """Runs to the end. Raises AssertionError where it does not come, or not rightly."""
        (self.folder / "faults").mkdir(parents=True)
        begin, todo = time.monotonic(), list(self.faults)
        try:
            while True:
                assert time.monotonic() - begin < SECONDS, "it takes too long"
                if self._process is None:
                    assert len(self.codes) < STARTS, f"started too often: {self.codes}"
                    self._process = self._start()
                if todo and self._reached():
                    starts = len(self._starts())
                    self._do(kind := todo.pop(0))
                    if kind in ENDING:
                        self._fault = time.time(), starts
                self._look()
                if self._process and (code := self._process.poll()) is not None:
                    self.codes.append(code)
                    self._process = None
                    (self.run / "STOP").unlink(missing_ok=True)
                    if code == 0 and not todo:
                        return
                    assert code in (0, exit_codes.REQUEUE, -signal.SIGKILL), self._log()
                    if code == 0:  # it was done before all faults came
                        self.faults = self.faults[: -len(todo)]
                        return
                time.sleep(0.01)
        finally:
            if self._process:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def _start(self) -> subprocess.Popen:
        self._until = self._step() + self._rng.randrange(1, 4)
        flags = [f"--processes={self._processes}", "--give_up_after=4", "--", "tests.hooked"]
        with open(self.folder / "log.txt", "ab") as log:
            return toy.start_module(
                "vidgen.launch",
                [*flags, *self._command, *LIMITS, *self._keeps],
                stderr=log,
                HOOK_FAULTS=str(self.folder / "faults"),
            )

    def _starts(self) -> list[dict]:
        """Those that have ended."""
        return toy.lines(self.run / "launch" / "starts.jsonl")

    def _look(self) -> None:
        """Notes when what follows from the last fault has come."""
        if self._fault is None or len(self._starts()) <= self._fault[1]:
            return
        (when, count), lines = self._fault, toy.lines(self.run / "metrics.jsonl")
        end = self._starts()[count]["time"] + self._starts()[count]["seconds"]
        if later := [line["time"] for line in lines if line["time"] > end]:
            self.ended.append(max(0.0, end - when))
            self.stepped.append(later[0] - when)
            self._fault = None

    def _step(self) -> int:
        lines = toy.lines(self.run / "metrics.jsonl")
        return lines[-1]["step"] if lines else 0

    def _reached(self) -> bool:
        return self._step() >= min(self._until, toy.STEPS - 2)

    def _ranks(self) -> list[int]:
        """Pids of the processes of the run."""
        path = pathlib.Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return sorted(map(int, path.read_text().split()))

    def _do(self, kind: str) -> None:
        rng, which = self._rng, self._rng.randrange(self._processes)
        print(f"  step {self._step()}, process {which}: {kind}", flush=True)
        pids = self._ranks()
        if kind in CODE:
            step = rng.randrange(2)  # of this start, or of the next
            for position in range(step, toy.STEPS):
                (self.folder / "faults" / f"{which}-{position}").write_text(
                    f"import pathlib\n[p.unlink() for p in pathlib.Path({str(self.folder)!r})"
                    f".glob('faults/{which}-*')]\n{CODE[kind]}"
                )
        elif kind in SIGNALS:
            self._signal(pids[which : which + 1], SIGNALS[kind])
        elif kind == "all are killed":
            self._signal(pids, signal.SIGKILL)
        elif kind == "killed while saving":
            self._wait(lambda: toy.is_saving(self.run))
            self._signal(self._ranks()[which : which + 1], signal.SIGKILL)
        elif kind == "killed while starting":
            self._signal(pids, signal.SIGKILL)
            self._wait(lambda: set(self._ranks()) - set(pids))
            time.sleep(rng.uniform(0, 6))
            self._signal(self._ranks()[which : which + 1], signal.SIGKILL)
        elif kind == "the guard is killed":
            for pid in pids:
                children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                self._signal(list(map(int, children)), signal.SIGKILL)
        elif kind == "a stop file":
            (self.run / "STOP").touch()
        elif kind == "another config":
            err = subprocess.run(
                [sys.executable, "-m", "tests.hooked", *self._command, "--config.seed=7"],
                capture_output=True,
                text=True,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
            assert err.returncode == exit_codes.REFUSED and "seed" in err.stderr, err.stderr
        elif kind == "a second run":
            err = toy.run(self._command, expect=exit_codes.REFUSED)
            assert "in use by" in err, err
        else:  # to what is on the disk, while nothing runs
            self._wait(lambda: toy.saved_steps(self.run))
            self._signal([self._process.pid], signal.SIGKILL)
            self._process.wait()
            self._gone(pids)
            self._damage(kind)

    def _damage(self, kind: str) -> None:
        steps = toy.saved_steps(self.run)
        newest = self.run / "checkpoints" / str(steps[-1])
        if kind == "a step is renamed" and len(steps) > 1:
            newest.rename(newest.with_name("999"))
        elif kind.startswith("a snapshot"):
            found = sorted(self._snapshots.parent.glob("snapshots-*/*/*/*.snapshot"))
            for file in found[:1]:
                flip(file, self._rng) if kind == "a snapshot is damaged" else file.unlink()
        elif kind == "half a step is left":
            half = newest.with_name(f"{steps[-1] + 1}.orbax-checkpoint-tmp")
            (half / "params").mkdir(parents=True)
            (half / "params/part").write_bytes(b"0" * 100)
        elif kind in STORAGE and len(steps) > 1:  # or nothing would be left, which is refused
            files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
            STORAGE[kind](self._rng.choice(sorted(files)), self._rng)

    def _signal(self, pids, number: int) -> None:
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _wait(self, when) -> None:
        until = time.monotonic() + SECONDS / 2
        while not when() and self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)

    def _gone(self, pids) -> None:
        """None of the run's processes outlives the supervisor."""
        until = time.monotonic() + 15
        while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < until, f"left running: {pids}"
            time.sleep(0.05)

    def _log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")[-4000:]


def recomputed(workdir: pathlib.Path) -> int:
    """Steps that were done again in a run."""
    (starts, *_) = goodput.read(workdir).values()
    pairs = itertools.pairwise(starts)
    return sum(max(0, one.last_step - two.goes_on_from) for one, two in pairs)


def report(results: list[dict]) -> dict:
    """What the trials showed, as it is printed."""
    kinds = collections.Counter(kind for result in results for kind in result["faults"])
    failed = [result for result in results if result["error"]]
    return {
        "trials": len(results),
        "failed": failed,
        "faults": dict(sorted(kinds.items())),
        "kinds_tried": f"{len(kinds)} of {len(KINDS)}",
        "starts": sum(result["starts"] for result in results),
        "steps_recomputed": sum(result["recomputed"] for result in results),
        "seconds_a_trial": round(statistics.median(r["seconds"] for r in results), 1),
        "seconds_to_the_end": spread([x for r in results for x in r["ended"]]),
        "seconds_to_the_next_step": spread([x for r in results for x in r["stepped"]]),
        "silent_corruptions": sum("differ" in str(r["error"]) for r in results),
    }


def spread(seconds: list[float]) -> dict:
    """Count, median, 95th percentile and largest, of faults that kill."""
    ordered = sorted(seconds)
    at = lambda share: round(ordered[math.ceil(share * len(ordered)) - 1], 2)
    found = {"p50": at(0.5), "p95": at(0.95), "most": at(1.0)} if ordered else {}
    return {"count": len(ordered), **found}


def main(argv) -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kinds", help="separated by commas; all by default")
    parser.add_argument("--json", help="a file for the report")
    args = parser.parse_args(argv)
    kinds = args.kinds.split(",") if args.kinds else KINDS
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"unknown kinds {sorted(unknown)}: use some of {', '.join(KINDS)}")
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        latents, vae = toy.random_latents(folder / "latents"), toy.vae(folder)
        command = lambda workdir: toy.text_to_video(latents, workdir, vae)
        whole = Trial(folder / "whole", command, args.processes, random.Random(0), kinds=[])
        whole.go()
        for number in range(args.seed, args.seed + args.trials):
            trial = Trial(
                folder / str(number), command, args.processes, random.Random(number), kinds
            )
            print(f"trial {number}: {', '.join(trial.faults)}", flush=True)
            begin, error = time.monotonic(), None
            try:
                trial.go()
                toy.assert_same_run(whole.run, trial.run)
            except AssertionError as problem:
                error = str(problem)[:4000] or "the arrays differ"
            result = {"seed": number, "faults": trial.faults, "error": error}
            result |= {"seconds": time.monotonic() - begin, "codes": trial.codes}
            starts = toy.lines(trial.run / "launch" / "starts.jsonl")
            result |= {"starts": len(starts), "ends": [start["code"] for start in starts]}
            result |= {"ended": trial.ended, "stepped": trial.stepped}
            result["recomputed"] = recomputed(trial.run)
            print(f"  {'FAILED: ' + error if error else 'the same bits'}, {result['ends']}, "
                  f"{result['seconds']:.0f} s", flush=True)  # fmt: skip
            results.append(result)
            if args.json:
                pathlib.Path(args.json).write_text(json.dumps(report(results), indent=1) + "\n")
    print(json.dumps(report(results), indent=1))
    return 1 if any(result["error"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
