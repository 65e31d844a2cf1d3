"""Watches a process from outside, and kills it when it is past its deadline and goes on.

    python guard.py PID BEAT STACKS

Sees what no thread of the process can: native code that holds Python's lock, and a process that was
stopped. BEAT is a file that the process maps and keeps its deadline in (`Beat`); STACKS gets the
stacks of its threads before it is killed. Needs nothing but the standard library, and ends with the
process.
"""

import mmap
import os
import signal
import struct
import sys
import time

POLL_SECONDS = 0.5
GRACE_SECONDS = 2.0  # for the process to end itself after its deadline
DUMP_SECONDS = 1.0  # for its stacks to be written
DUMP_SIGNAL = signal.SIGUSR2
_FORMAT = struct.Struct("d")


class Beat:
    """A deadline, on the system's monotonic clock, that two processes see; inf is none."""

    def __init__(self, path: str | os.PathLike, is_new: bool = False):
        with open(path, "w+b" if is_new else "r+b") as file:
            if is_new:
                file.write(_FORMAT.pack(float("inf")))
                file.flush()
            self._map = mmap.mmap(file.fileno(), _FORMAT.size)

    def write(self, deadline: float) -> None:
        """Sets the deadline."""
        self._map[:] = _FORMAT.pack(deadline)

    def read(self) -> float:
        """The deadline."""
        return _FORMAT.unpack(self._map[:])[0]


def watch(pid: int, beat: str, stacks: str) -> None:
    """Watches the parent process `pid` until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the process stops in order, watched meanwhile
    deadline = Beat(beat)
    os.unlink(beat)
    while os.getppid() == pid:
        if time.monotonic() > deadline.read() + GRACE_SECONDS:
            _end(pid, stacks)
        time.sleep(POLL_SECONDS)


def _end(pid: int, stacks: str) -> None:
    text = f"HANG: process {pid} is past its limit and does not end itself; killed from outside.\n"
    with open(stacks, "a") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}")
    try:
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, DUMP_SIGNAL)
        time.sleep(DUMP_SECONDS)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    os.write(2, f"{text[:-1]} Its stacks are in {stacks}.\n".encode())


if __name__ == "__main__":
    watch(int(sys.argv[1]), *sys.argv[2:])
