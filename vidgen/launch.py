"""Starts the processes of a run on this machine, and starts them again when one of them fails.

    python -m vidgen.launch --processes=2 -- vidgen.train --config=... --workdir=...

Everything after `--` is a module of ours with its flags. All processes end together; the next start
goes on from the last checkpoint, at a fresh address, after a pause that grows while nothing is
gained. It gives up after some starts in a row without a new checkpoint, and at once where starting
again cannot help. What the processes write goes to WORKDIR/launch, the first one's to the terminal
too. SIGTERM, SIGINT and SIGUSR1 are passed on: the run saves, and ends with 75.

Needs nothing but the standard library.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from data_pipelines.process import arguments, outputs
from vidgen.process import exit_codes

POLL_SECONDS = 0.05
GRACE_SECONDS = 12.0  # for the other processes to end, once one has failed
LAST_LINES = 20  # of the log of the process that failed first
PAUSES = (0.0, 2.0, 10.0, 30.0, 60.0)  # seconds, by starts without a new checkpoint
# Nothing is left to do, or starting again does the same again.
FINAL = (exit_codes.DONE, exit_codes.USAGE, exit_codes.REQUEUE)
FINAL += (exit_codes.NUMBERS, exit_codes.REFUSED)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a start ended: by the process that failed first, or with success."""

    code: int
    process: int = -1
    host: str = ""
    last_lines: str = ""

    def __str__(self) -> str:
        how = (
            f"with {self.code} ({exit_codes.MEANINGS.get(self.code, 'unknown').partition(':')[0]})"
        )
        if self.code < 0:
            known = {int(number): number.name for number in signal.Signals}
            how = f"by {known.get(-self.code, f'signal {-self.code}')}"
        return f"process {self.process} on {self.host} ended first, {how}"


class Run:
    """A run of several starts.

    Args:
        command: The module and flags that each process runs.
        processes: How many.
        workdir: Of the run, in which new checkpoints are looked for.
    """

    def __init__(self, command: Sequence[str], processes: int, workdir: str | os.PathLike):
        self._command, self._processes = list(command), processes
        self._workdir = pathlib.Path(workdir)
        self._folder = self._workdir / "launch"
        self._running: list[subprocess.Popen] = []
        self._signals: list[int] = []
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: self._signals.append(number))

    def go(self, give_up_after: int) -> int:
        """Starts until all is done, or cannot be; returns the exit code."""
        self._folder.mkdir(parents=True, exist_ok=True)
        number, in_vain = self._last_number() + 1, 0
        while True:
            begin, before = time.time(), self._saved()
            clock = time.monotonic()
            ended = self._start(number)
            saved = self._saved()
            newest, in_vain = max(saved, default=None), 0 if saved - before else in_vain + 1
            line = {"start": number, "time": begin, "seconds": time.monotonic() - clock}
            with open(self._folder / "starts.jsonl", "a") as file:
                line |= {"newest_checkpoint": newest, **dataclasses.asdict(ended)}
                file.write(json.dumps(line) + "\n")
            if ended.code == exit_codes.DONE:
                return ended.code
            say(f"start {number}: {ended}. Its last lines:\n{ended.last_lines}")
            if ended.code in FINAL:
                return ended.code
            if self._asked:
                return exit_codes.REQUEUE
            if in_vain >= give_up_after:
                say(
                    f"{in_vain} starts in a row have saved nothing new (newest checkpoint: "
                    f"{'none' if newest is None else newest}): giving up. Logs are in "
                    f"{self._folder}, stacks in {self._workdir}/stacks; once more starts again."
                )
                return ended.code if ended.code > 0 else exit_codes.ERROR
            seconds = PAUSES[min(in_vain, len(PAUSES) - 1)]
            place = "the beginning" if newest is None else f"checkpoint {newest}"
            say(f"starting again in {seconds:g} s, from {place}.")
            until = time.monotonic() + seconds
            while time.monotonic() < until and not self._signals:
                time.sleep(POLL_SECONDS)
            if self._signals:
                return exit_codes.REQUEUE
            number += 1

    def _last_number(self) -> int:
        """Of the starts whose logs are here."""
        names = [path.name.partition("-")[0] for path in self._folder.glob("*-*.log")]
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def _start(self, number: int) -> Ended:
        """One start: until none of its processes is left."""
        run = {"VIDGEN_COORDINATOR": f"127.0.0.1:{free_port()}"}
        run["VIDGEN_PROCESSES"] = str(self._processes)
        logs = [self._folder / f"{number:04d}-{i}.log" for i in range(self._processes)]
        try:
            for process, path in enumerate(logs):
                log = open(path, "wb", buffering=0)  # noqa: SIM115 (closed by its copier)
                running = subprocess.Popen(
                    [sys.executable, "-u", "-m", *self._command],
                    env={**os.environ, **run, "VIDGEN_PROCESS": str(process)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
                self._running.append(running)
                copy = threading.Thread(
                    target=_copy, args=(running.stdout, log, process == 0), daemon=True
                )
                copy.start()
                running.copy = copy
            return self._watch(logs)
        finally:
            self._kill()

    def _watch(self, logs: Sequence[pathlib.Path]) -> Ended:
        codes: dict[int, int] = {}
        first, until = None, float("inf")
        while len(codes) < len(self._running) and time.monotonic() < until:
            for process, running in enumerate(self._running):
                if process not in codes and (code := running.poll()) is not None:
                    codes[process] = code
                    if code and first is None:
                        first, until = process, time.monotonic() + GRACE_SECONDS
            while self._signals:
                number, self._asked = self._signals.pop(0), True
                for running in self._running:
                    running.send_signal(number)
            time.sleep(POLL_SECONDS)
        self._kill()
        if first is None:
            return Ended(exit_codes.DONE)
        lines = logs[first].read_text(errors="replace").splitlines()[-LAST_LINES:]
        return Ended(codes[first], first, socket.gethostname(), "\n".join(lines))

    def _kill(self) -> None:
        """Ends what is left, the first process last: the others find each other by it."""
        for running in reversed(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            running.copy.join(GRACE_SECONDS)
        self._running.clear()

    def _saved(self) -> set[int]:
        folder = self._workdir / "checkpoints"
        names = os.listdir(folder) if folder.is_dir() else []
        return {int(name) for name in names if name.isdecimal() and str(int(name)) == name}


def free_port() -> int:
    """A port of this machine that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def say(text: str) -> None:
    """Tells the person at the terminal."""
    sys.stderr.write(f"launch: {text}\n")
    sys.stderr.flush()


def _copy(source, log, is_shown: bool) -> None:
    """Copies what a process writes into its log, and to the terminal."""
    with log:
        while data := source.read1(1 << 16):  # whatever becomes of it, or the process would wait
            with contextlib.suppress(OSError, ValueError):
                log.write(data)
            if is_shown:
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.buffer.write(data)
                    sys.stderr.flush()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns (our own flags, the command after `--`)."""
    parser = arguments.Parser("vidgen.launch", __doc__)
    parser.add_argument(
        "--processes", type=arguments.at_least(1), default=1, help="how many; 1 by default"
    )
    parser.add_argument(
        "--give_up_after",
        type=arguments.at_least(1),
        default=3,
        help="starts in a row that save nothing new; 3 by default",
    )
    split = list(argv).index("--") if "--" in argv else len(argv)
    args, command = parser.parse_args(argv[:split]), list(argv[split + 1 :])
    if not command:
        parser.error(
            "there is no command: give it after `--`, such as `-- vidgen.train --config=X`"
        )
    module, *flags = command
    with contextlib.suppress(ImportError, ValueError):
        if importlib.util.find_spec(module) is not None:
            module = ""
    if module:
        parser.error(f"there is no module {module!r} to start: give one such as `-- vidgen.train`")
    workdirs = [flag.partition("=")[2] for flag in flags if flag.startswith("--workdir=")]
    if not workdirs or not workdirs[-1]:
        parser.error("the command has no --workdir=FOLDER, in which checkpoints are looked for")
    with parser.refusing():
        outputs.check_folder(workdirs[-1], "--workdir")
    args.workdir = workdirs[-1]
    return args, command


def main(argv: Sequence[str] | None = None) -> int:
    args, command = parse(sys.argv[1:] if argv is None else argv)
    return Run(command, args.processes, args.workdir).go(args.give_up_after)


if __name__ == "__main__":
    sys.exit(main())
