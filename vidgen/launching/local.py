"""The processes of one start on this machine: their logs, their ends and their killing."""

import contextlib
import ctypes
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from vidgen.launching.ended import Ended
from vidgen.process import exit_codes, stacks

LAST_LINES = 20  # of the log of a process that failed
LAST_CHARACTERS = 8000  # of these lines
CLOCK_SECONDS = 5.0  # by which the clock of a file server may be off
COPY_SECONDS = 2.0  # for the last output to reach the logs
_prctl = ctypes.CDLL(None).prctl  # looked up before a fork


class Local:
    """The processes of this machine.

    Args:
        command: The module and flags that each of them runs.
        workdir: Of the run. Logs go to its folder `launch`.
        host: The name of this machine.
    """

    def __init__(self, command: Sequence[str], workdir: str | os.PathLike, host: str):
        self._command, self._workdir, self._host = list(command), pathlib.Path(workdir), host
        self._running: list[subprocess.Popen] = []
        self._codes: dict[int, int] = {}
        self._kill_at, self._begin, self._first, self._number = math.inf, 0.0, 0, 0

    @property
    def is_running(self) -> bool:
        return bool(self._running)

    def start(self, number: int, first: int, count: int, total: int, coordinator: str) -> None:
        """Starts processes.

        Args:
            number: Of the start.
            first: The number of the first process in the run.
            count: How many run here.
            total: How many the run has.
            coordinator: The address at which they meet.

        Raises:
            OSError: If the system refuses; what has begun has to be ended.
        """
        self._codes, self._kill_at, self._begin = {}, math.inf, time.time()
        self._first, self._number = first, number
        run = {"VIDGEN_COORDINATOR": coordinator, "VIDGEN_PROCESSES": str(total)}
        for process in range(first, first + count):
            self._running.append(self._spawn(process, run))

    def _spawn(self, process: int, run: dict[str, str]) -> subprocess.Popen:
        path = self._log(process)
        path.parent.mkdir(parents=True, exist_ok=True)
        log, parent = open(path, "wb", buffering=0), os.getpid()  # noqa: SIM115 (by its copier)

        def die_with_parent() -> None:
            _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(exit_codes.ERROR)

        running = subprocess.Popen(
            [sys.executable, "-u", "-m", *self._command],
            env={**os.environ, **run, "VIDGEN_PROCESS": str(process)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        args = (running.stdout, log, process == 0)
        running.copy = threading.Thread(target=_copy, args=args, daemon=True)
        running.copy.start()
        return running

    def signal(self, number: int) -> None:
        """Passes a signal on."""
        for running in self._running:
            running.send_signal(number)

    def end(self, seconds: float) -> None:
        """Gives the processes so long to end by themselves; `poll` kills what is left."""
        self._kill_at = min(self._kill_at, time.monotonic() + seconds)

    def poll(self) -> list[Ended]:
        """What has failed since the last call, by itself and not by `end`. Call it often."""
        is_killing, ends = time.monotonic() >= self._kill_at, []
        for place, running in enumerate(self._running):
            if place not in self._codes and (code := running.poll()) is not None:
                self._codes[place] = code
                if code and not is_killing:
                    ends.append(self._ended(place, code))
        left = [place for place in range(len(self._running)) if place not in self._codes]
        if not left:
            self._clear()
        elif is_killing:
            for place in left[1:] or left:  # the first one last: the others find each other by it
                self._kill(place)
        return ends

    def _ended(self, place: int, code: int) -> Ended:
        self._running[place].copy.join(COPY_SECONDS / 4)
        process = self._first + place
        text = _tail(self._log(process))
        lines = "\n".join(text.splitlines()[-LAST_LINES:])[-LAST_CHARACTERS:]
        return Ended(code, process, self._host, lines, self._stack(process))

    def _stack(self, process: int) -> str:
        """Where the main thread was, if the process wrote its stacks in this start."""
        path = stacks.path(self._workdir, process)
        try:
            if path.stat().st_mtime < self._begin - CLOCK_SECONDS:
                return ""
            text = _tail(path)
        except OSError:
            return ""
        return (" < ".join(stacks.main_thread(text)) or text)[:1000]

    def _log(self, process: int) -> pathlib.Path:
        return self._workdir / "launch" / f"{self._number:04d}-{process}.log"

    def _kill(self, place: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._running[place].pid, signal.SIGKILL)

    def _clear(self) -> None:
        """Ends what the processes have left behind in their groups."""
        for place in range(len(self._running)):
            self._kill(place)
        until = time.monotonic() + COPY_SECONDS
        for running in self._running:
            running.copy.join(max(0.0, until - time.monotonic()))
        self._running.clear()


def free_port() -> int:
    """A port of this machine that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _tail(path: pathlib.Path) -> str:
    """The end of a file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 16)))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


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
