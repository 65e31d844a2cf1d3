"""Supervisors of a run on this machine, as if each were on a machine of its own."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from tests import processes
from tests import toy_training as toy

# What each process of the run does: notes its place and pid, then the body of the test.
FAKE = """
import os, pathlib, signal, sys, time
workdir = pathlib.Path([x for x in sys.argv if x.startswith("--workdir=")][0][10:])
process, count = int(os.environ["VIDGEN_PROCESS"]), int(os.environ["VIDGEN_PROCESSES"])
host = os.environ["VIDGEN_LAUNCH_HOST"]
start = max(int(path.name.split("-")[0]) for path in (workdir / "launch").glob("*-*.log"))
checkpoints, seen = workdir / "checkpoints", workdir / "seen"
checkpoints.mkdir(exist_ok=True)
seen.mkdir(exist_ok=True)
note = f"{{process}} {{count}} {{host}} {{os.environ['VIDGEN_COORDINATOR']}} {{os.getpid()}}"
(seen / f"{{start}}-{{process}}.tmp").write_text(note)
os.rename(seen / f"{{start}}-{{process}}.tmp", seen / f"{{start}}-{{process}}")
{body}
"""
SECONDS = 90.0  # for anything to happen; a busy machine is slow


class Launched:
    """Supervisors that meet at a port of this machine.

    Args:
        folder: An empty one.
        body: Of each process.
        machines: How many a start takes.
        flags: More of them.
        processes_: Of each machine.
    """

    def __init__(self, folder: pathlib.Path, body: str, machines: int, *flags, processes_: int = 1):
        self.folder, self.workdir = folder, folder / "run"
        (folder / "fake.py").write_text(FAKE.format(body=body))
        self.port = free_port()
        self._flags = [f"--machines={machines}", f"--processes={processes_}", *flags]
        self.supervisors: dict[str, subprocess.Popen] = {}

    def start(
        self, *hosts: str, more=(), port: int = 0, is_awaited: bool = True, **env: str
    ) -> None:
        """Starts supervisors, each when the one before is there; the very first one leads."""
        for host in hosts:
            there = self.said().count(f"{host} is there")
            is_first = not (self.workdir / "launch" / "lock").exists()
            flags = [*self._flags, f"--meet=127.0.0.1:{port or self.port}"]
            with open(self.folder / f"{host}.txt", "a") as err:
                self.supervisors[host] = subprocess.Popen(
                    [sys.executable, "-m", "vidgen.launch", *flags, "--", "fake"]
                    + [f"--workdir={self.workdir}", *more],
                    cwd=self.folder,
                    env={
                        **os.environ,
                        "PYTHONPATH": f"{processes.ROOT}:{self.folder}",
                        "VIDGEN_LAUNCH_HOST": host,
                        **env,
                    },
                    stderr=err,
                )
            supervisor = self.supervisors[host]
            if is_first:
                self.wait((self.workdir / "launch" / "lock").exists)
            elif is_awaited:
                self.wait(
                    lambda: (
                        self.said().count(f"{host} is there") > there
                        or supervisor.poll() is not None
                    )
                )

    def wait(self, when: Callable) -> None:
        """Until something is so."""
        until = time.monotonic() + SECONDS
        while not when():
            assert time.monotonic() < until, self.said()
            time.sleep(0.01)

    def seen(self, start: int, count: int) -> list[list[str]]:
        """Waits for all processes of a start: (process, count, host, coordinator, pid) of each."""
        files = [self.workdir / "seen" / f"{start}-{process}" for process in range(count)]
        self.wait(lambda: all(file.exists() for file in files))
        return [file.read_text().split() for file in files]

    def codes(self) -> dict[str, int]:
        """Waits for the end of all supervisors; their exit codes."""
        self.wait(lambda: all(x.poll() is not None for x in self.supervisors.values()))
        return {host: x.returncode for host, x in self.supervisors.items()}

    def said(self, host: str = "*") -> str:
        """What supervisors wrote to their terminals."""
        files = sorted(self.folder.glob(f"{host}.txt"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def starts(self) -> list[dict]:
        return toy.lines(self.workdir / "launch" / "starts.jsonl")

    def left(self) -> list[int]:
        """Pids of supervisors and processes of this run."""
        pids, word = [], str(self.workdir).encode()
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if word in (path / "cmdline").read_bytes():
                    pids.append(int(path.name))
            except OSError:
                continue
        return pids

    def close(self) -> None:
        """Ends the supervisors, and whatever they have left, which should be nothing."""
        for supervisor in self.supervisors.values():
            if supervisor.poll() is None:
                supervisor.kill()
            supervisor.wait()
        until = time.monotonic() + SECONDS / 4
        while left := self.left():
            if time.monotonic() > until:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"left running: {left}")
            time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
