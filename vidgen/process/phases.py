"""What a process is doing: how long that may take, and where its seconds went.

A process is in one phase at a time. A phase has a limit; past it a thread writes all stacks, tells
the other processes and ends this one with exit_codes.HANG, and where that thread cannot run, a
process outside does it (`guard`). The seconds of each phase are added to a file of this process and
this start, from which `vidgen.training.goodput` sums up a run.
"""

import collections
import contextlib
import faulthandler
import json
import math
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping

from vidgen.process import endings, exit_codes, guard, ranks, stacks

LEARNT = 20  # times that a phase must have been seen for its limit to be learnt
TIMES_P99 = 5.0  # a learnt limit is so many times the 99th percentile, at least the floor
LINE_SECONDS = 5.0  # between two lines of the file
STALE_SECONDS = 60.0  # stacks of this end are not older


class Phases:
    """The phases of this process, from its start on.

    Args:
        limits: Seconds that each phase may take, by name; `floor` is the least limit that is learnt
            from the run.
        floors: The least that is learnt for some phases, whose parts have limits of their own.
    """

    def __init__(self, limits: Mapping[str, float], **floors: float):
        self._limits, self._floors = dict(limits), floors
        self._lock = threading.Condition(threading.RLock())
        self._recent: dict[tuple, collections.deque] = {}  # seconds, by phase and labels
        self._learnt: dict[tuple, float] = {}
        self._key: tuple = ()
        self._seen: dict[str, set[str]] = {}  # labels, by phase
        self._spent: collections.Counter[str] = collections.Counter()  # since the last line
        self._total: collections.Counter[str] = collections.Counter()  # before that
        self._origin = time.monotonic() - _age()
        self._written = self._since = self._origin
        self._phase, self._step, self._deadline, self._seconds = "start", 0, math.inf, math.inf
        self._file = self._folder = self._beat = None
        self._closed = self._was_new = False
        self._expect("start", is_new=True)
        ranks.before_end(self._ended)
        threading.Thread(target=self._watch, name="phases", daemon=True).start()

    def open(self, folder: str | os.PathLike) -> None:
        """Writes into a working folder from now on, and begins to be watched from outside."""
        self._folder = pathlib.Path(folder).absolute()
        file = stacks.path(self._folder, ranks.index())
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stacks = open(file, "a")  # noqa: SIM115 (faulthandler needs it open)
        faulthandler.register(guard.DUMP_SIGNAL, self._stacks, all_threads=True)
        started = time.time() - (time.monotonic() - self._origin)
        name = f"{ranks.gather('start', f'{started:.0f}')[0]}-{ranks.index()}.jsonl"
        (self._folder / "ledger").mkdir(exist_ok=True)
        self._file = open(self._folder / "ledger" / name, "a")  # noqa: SIM115
        self._line(
            started=round(started, 3),
            process=ranks.index(),
            processes=ranks.count(),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        handle, beat = tempfile.mkstemp(prefix="vidgen-beat-")
        os.close(handle)
        self._beat = guard.Beat(beat, is_new=True)
        command = [sys.executable, "-S", "-E", guard.__file__, str(os.getpid()), beat, str(file)]
        self._guard = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._beat.write(self._deadline)

    def enter(self, phase: str, step: int | None = None, labels: Iterable[str] = ()) -> None:
        """Ends the phase before, and begins one.

        Args:
            phase: Its name, one of those that have limits.
            step: The step that it is about.
            labels: What its programs depend on. With one that the phase has not had yet it has all
                the time that its limit gives, whatever was learnt; a step is then in the phase
                "compile". The step after that has its limit too: it waits for the results of the
                one before, which other processes may be compiling still.
        """
        now, seen, labels = time.monotonic(), self._seen.setdefault(phase, set()), set(labels)
        is_new = not seen.issuperset(labels)
        seen |= labels
        limit = phase
        if phase == "step":
            phase = "compile" if is_new else phase
            limit = "compile" if is_new or self._was_new else phase
            self._was_new, is_new = is_new, is_new or self._was_new
        with self._lock:
            seconds = now - self._since
            self._spent[self._phase] += seconds
            if not self._is_new:
                self._learn(self._key, seconds)
            self._key = (phase, *sorted(labels))
            self._since, self._phase = now, phase
            self._step = self._step if step is None else step
            self._expect(limit, is_new)
            if now - self._written > LINE_SECONDS:
                self._line()

    def note(self, **facts) -> None:
        """Adds facts to the file, such as the step that a start goes on from."""
        with self._lock:
            self._line(**facts)

    def seconds(self) -> dict[str, float]:
        """Seconds in each phase since this process began."""
        with self._lock:
            now = {self._phase: time.monotonic() - self._since}
            return dict(self._total + self._spent + collections.Counter(now))

    def close(self) -> None:
        """Ends the last phase, and the watch."""
        with self._lock:
            self._line(end=exit_codes.DONE)
            self._closed, self._deadline = True, math.inf
            self._lock.notify()
        faulthandler.unregister(guard.DUMP_SIGNAL)
        if self._beat:
            self._beat.write(math.inf)
            self._guard.kill()
            self._guard.wait()

    def _expect(self, phase: str, is_new: bool) -> None:
        limit, self._source = self._limits[phase], f"limits.{phase}"
        learnt = math.inf if is_new else self._learnt.get(self._key, math.inf)
        if learnt < limit:
            limit, self._source = learnt, "learnt from the run; limits.floor is the least"
        self._is_new, self._seconds = is_new, limit
        self._deadline = time.monotonic() + limit
        if self._beat:
            self._beat.write(self._deadline)

    def _learn(self, key: tuple, seconds: float) -> None:
        recent = self._recent.setdefault(key, collections.deque(maxlen=1000))
        recent.append(seconds)
        if len(recent) >= LEARNT and (len(recent) < 100 or len(recent) % 50 == 0):
            p99 = sorted(recent)[math.ceil(0.99 * len(recent)) - 1]
            floor = max(self._limits["floor"], self._floors.get(key[0], 0.0))
            self._learnt[key] = max(floor, TIMES_P99 * p99)

    def _line(self, **facts) -> None:
        """Adds a line: the seconds of each phase since the line before, and facts."""
        now = time.monotonic()
        self._spent[self._phase] += now - self._since
        self._since = self._written = now
        if self._file is None:
            return
        spent = {name: round(seconds, 4) for name, seconds in self._spent.items() if seconds}
        self._total.update(self._spent)
        self._spent.clear()
        line = {"at": round(now - self._origin, 4), "step": self._step, "phase": self._phase}
        line |= {"spent": spent, **facts}
        with contextlib.suppress(OSError, ValueError):  # a full disk is told by a checkpoint
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def _watch(self) -> None:
        with self._lock:
            while not self._closed:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    break
                self._lock.wait(min(left, 1.0))
                if not self._closed and time.monotonic() - self._written > 2 * LINE_SECONDS:
                    self._line()
            else:
                return
            what = f'no progress in "{self._phase}" of step {self._step} for {self._seconds:g} s'
            what += f" ({self._source})"
            self._line(hang=round(self._seconds, 3))
        self._let_end()
        self._dump(what)
        end = ranks.farewell(exit_codes.HANG, what)
        where = f" Stacks are in {self._folder}/stacks." if self._folder else ""
        told = "" if end.process == ranks.index() else f"{end}\n"
        groups = self._folder and stacks.describe(self._folder, time.time() - STALE_SECONDS)
        reason = end.reason if end.process == ranks.index() else what
        endings.say(f"{told}HANG: {reason}.{where}\n{groups or ''}")
        ranks.leave(end.code)

    def _ended(self, end: ranks.End) -> None:
        """Another process ends the run, or this one does."""
        self._let_end()
        if end.code == exit_codes.HANG and end.process != ranks.index():
            self._dump(f"{end}")
        with self._lock:
            self._line(end=end.code, by=end.process, reason=end.reason[:500])

    def _let_end(self) -> None:
        """Gives this process the time to end itself."""
        with self._lock:
            self._closed = True
            if self._beat:
                self._beat.write(time.monotonic() + 3 * ranks.FAREWELL_SECONDS)

    def _dump(self, what: str) -> None:
        file = self._stacks if self._folder else sys.stderr
        with contextlib.suppress(OSError, ValueError):
            who = f"{ranks.name(ranks.index())}, in {self._phase} of step {self._step}"
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {who}: {what}\n")
            file.flush()
            faulthandler.dump_traceback(file)


def _age() -> float:
    """Seconds since this process began, or 0 where the system does not tell."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks)
    except (OSError, AttributeError, IndexError, ValueError):
        return 0.0
