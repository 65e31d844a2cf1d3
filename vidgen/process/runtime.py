"""How a process starts: the others of its run, the signals that stop it, the compile cache."""

import collections
import contextlib
import functools
import os
import pathlib
import signal
import stat
import sys
import threading
import time
from types import FrameType

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vidgen.process import endings, ranks

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_LOOK_SECONDS = 1.0  # between two looks for a reason to stop
_CACHED_SECONDS = 0.2  # programs that compile sooner are not worth a file
_FLAGS = {  # of XLA, for several processes, where the environment says nothing else
    # Where a process finds a program in its cache, the others would wait for its share of tuning.
    "xla_gpu_shard_autotuning": "false",
    # The last to notice a device that never ends, after the limits of a step.
    "xla_gpu_execution_terminate_timeout": "3600s",
}

_stop = threading.Event()


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    index: int | None = None,
    *,
    heartbeat_seconds: int = 30,
    wait_seconds: int = 300,
) -> None:
    """Joins the other processes of the run, if there are any, and takes the stop signals.

    Comes before any other use of JAX. What is not given is read from VIDGEN_COORDINATOR
    ("host:port" of the first process), VIDGEN_PROCESSES and VIDGEN_PROCESS, and else from Slurm,
    Open MPI or Kubernetes by JAX itself where VIDGEN_PROCESSES is "auto".

    Args:
        coordinator: The address of the first process, which must be free there.
        processes: How many processes the run has.
        index: This process's number from 0.
        heartbeat_seconds: A process that is silent for so long is gone, and ends the run.
        wait_seconds: How long to wait for the others.

    Raises:
        ValueError: If only some of the three are given.
    """
    coordinator = coordinator or os.environ.get("VIDGEN_COORDINATOR")
    count = str(processes or os.environ.get("VIDGEN_PROCESSES", "1"))
    place = os.environ.get("VIDGEN_PROCESS") if index is None else str(index)
    if count != "auto" and not (count.isdecimal() and int(count) > 0):
        raise ValueError(f'VIDGEN_PROCESSES={count}: give a number, or "auto".')
    compile_cache()
    if count == "auto" or int(count) > 1:
        given = os.environ.get("XLA_FLAGS", "")
        ours = [f"--{name}={value}" for name, value in _FLAGS.items() if name not in given]
        os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()
        known = {}
        if count != "auto":
            if not coordinator or place is None or not 0 <= int(place) < int(count):
                raise ValueError(
                    f"{count} processes need VIDGEN_COORDINATOR=host:port (found {coordinator}) "
                    f"and a VIDGEN_PROCESS from 0 to {int(count) - 1} (found {place})."
                )
            known = {
                "coordinator_address": coordinator,
                "num_processes": int(count),
                "process_id": int(place),
            }
            if coordinator.startswith(("127.", "localhost:")):
                known["coordinator_bind_address"] = coordinator
        jax.distributed.initialize(
            **known,
            heartbeat_timeout_seconds=heartbeat_seconds,
            initialization_timeout=wait_seconds,
            shutdown_timeout_seconds=heartbeat_seconds,
        )
        # Orbax then waits for the other processes with a limit, and names those that are missing.
        with contextlib.suppress(flags.UnrecognizedFlagError, AttributeError):
            flags.FLAGS.experimental_orbax_use_distributed_barrier = True
        ranks.join(wait_seconds)
    take_signals()


def take_signals() -> None:
    """Makes SIGTERM, SIGINT and SIGUSR1 ask for a stop; the second one ends the process at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if _stop.is_set():
            endings.say(f"Second signal ({name}): ending at once, without a checkpoint.")
            os._exit(128 + number)
        _stop.set()  # before the message: the second signal may come while it is written
        endings.say(f"{name}: stopping after this step and a checkpoint. Once more ends at once.")

    _stop.clear()
    for number in STOP_SIGNALS:
        signal.signal(number, stop)


def stop_when(folder: str | os.PathLike, seconds: float = 0.0) -> None:
    """Asks for a stop, as a signal does, for other reasons than a signal.

    Args:
        folder: A file STOP in it is one.
        seconds: So many from now are one; 0 is none.
    """
    file, begin = pathlib.Path(folder) / "STOP", time.monotonic()

    def look() -> None:
        while not _stop.wait(_LOOK_SECONDS):
            if file.exists():
                reason = f"{file} is there (remove it to go on)"
            elif seconds and time.monotonic() - begin > seconds:
                reason = f"{seconds:g} s are over (stop_after_seconds)"
            else:
                continue
            _stop.set()
            endings.say(f"{reason}: stopping after this step and a checkpoint.")

    threading.Thread(target=look, name="stop", daemon=True).start()


def should_stop() -> bool:
    """Call after each step, in every process: True, for all at once, if any was asked to stop."""
    return _stop_flag().should_stop()


@functools.cache
def _stop_flag() -> "StopFlag":
    return StopFlag()


class StopFlag:
    """Tells all processes to stop after the same step.

    Each call combines the processes' flags on the devices and reads the result of the call before
    it, so it never waits for a step that is still running.
    """

    def __init__(self) -> None:
        self._pending: jax.Array | None = None
        if jax.process_count() > 1:
            mesh = Mesh(np.array(jax.devices()), ("all",))
            self._place = NamedSharding(mesh, PartitionSpec("all"))
            everywhere = NamedSharding(mesh, PartitionSpec())
            self._any = jax.jit(lambda flags: flags.any(), out_shardings=everywhere)

    def should_stop(self) -> bool:
        """See `runtime.should_stop`."""
        if jax.process_count() == 1:
            return _stop.is_set()
        mine, count = np.array([_stop.is_set()]), jax.device_count()
        asked = jax.make_array_from_callback((count,), self._place, lambda _: mine)
        pending, self._pending = self._pending, self._any(asked)
        return pending is not None and bool(pending.addressable_data(0))


def compile_cache(folder: str | os.PathLike | None = None) -> None:
    """Keeps compiled programs in a folder on this machine, so that the next start need not compile.

    Several processes may share it. An entry that was cut short by a kill is found by its
    compression, and its program is compiled again.

    Args:
        folder: By default VIDGEN_COMPILE_CACHE, where "off" is none, or `vidgen/programs` in the
            user's cache folder. A JAX_COMPILATION_CACHE_DIR of the environment is left as it is.

    Raises:
        ValueError: If others may write there: a cached program is code that will run.
    """
    asked = folder or os.environ.get("VIDGEN_COMPILE_CACHE")
    if asked == "off" or (not folder and "JAX_COMPILATION_CACHE_DIR" in os.environ):
        return
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = pathlib.Path(asked or f"{home}/vidgen/programs").expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        if asked:
            raise ValueError(
                f"The compile cache {path} cannot be made ({error.strerror}): give a folder of "
                "your own in VIDGEN_COMPILE_CACHE, or `off`."
            ) from error
        return  # a home that is read-only is no reason to stop
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(
            f"The compile cache {path} can be written by other users, and holds code that would "
            f"run here: `chmod go-w {path}`, or give a folder of your own in VIDGEN_COMPILE_CACHE."
        )
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _CACHED_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def describe() -> str:
    """The devices in one line."""
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    devices = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    each = f" with {memory / 2**30:.0f} GiB each" if memory else ""
    count = jax.process_count()
    return (
        f"{devices}{each} ({jax.default_backend()}); process {jax.process_index()} of {count}; "
        f"JAX {jax.__version__}, Python {sys.version.split()[0]}"
    )
