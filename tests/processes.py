"""Python processes for tests, alone or two that make one run."""

import os
import pathlib
import socket
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parent.parent


def spawn(code: str, **env: str) -> subprocess.Popen:
    """Starts indented code in a process with one CPU device."""
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def spawn_two(code: str, **env: str) -> list[subprocess.Popen]:
    """Starts the code twice, for `runtime.start` to join."""
    return [spawn(code, **place, **env) for place in several(2)]


def several(count: int) -> list[dict[str, str]]:
    """The environments of processes that `runtime.start` joins."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    run = {"VIDGEN_COORDINATOR": address, "VIDGEN_PROCESSES": str(count)}
    return [{**run, "VIDGEN_PROCESS": str(index)} for index in range(count)]
