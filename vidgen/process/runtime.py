"""The life of a process: start, signals, hangs, errors and the code that it ends with.

A supervisor reads the exit code: 0 done, EXIT_PREEMPTED start again (a checkpoint is saved),
EXIT_HANG start again and look at the stacks, EXIT_CONFIG do not start again. JAX notices a process
that is gone, but not one that is stuck, so `Watchdog` ends those.
"""

import collections
import contextlib
import faulthandler
import functools
import os
import pathlib
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType, TracebackType

import jax
import numpy as np
from absl import flags, logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

EXIT_ERROR = 1  # an error in the code; also a hang in native code that holds Python's lock
EXIT_USAGE = 2  # the command line is wrong
EXIT_PREEMPTED = 75  # asked to stop, and stopped after a checkpoint: start again
EXIT_HANG = 76  # no progress within the limit: see the file of stacks
EXIT_STORAGE = 78  # a checkpoint could not be written, or none can be read
EXIT_NUMBERS = 79  # too many updates in a row were not finite
EXIT_CONFIG = 80  # config, data or workdir refused: starting again will not help

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
NATIVE_GRACE_SECONDS = 3.0  # a stack dump that cannot get Python's lock comes this much later

_CACHED_SECONDS = 0.2  # programs that compile sooner are not worth a file
# Where a process finds a program in its cache, the others would wait for its share of the tuning.
_ALONE = "--xla_gpu_shard_autotuning=false"

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
        if "xla_gpu_shard_autotuning" not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ALONE}".strip()
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
    take_signals()


def take_signals() -> None:
    """Makes SIGTERM, SIGINT and SIGUSR1 ask for a stop; the second one ends the process at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if _stop.is_set():
            _say(f"Second signal ({name}): ending at once, without a checkpoint.")
            os._exit(128 + number)
        _stop.set()  # before the message: the second signal may come while it is written
        _say(f"{name}: stopping after this step and a checkpoint. Once more ends at once.")

    _stop.clear()
    for number in STOP_SIGNALS:
        signal.signal(number, stop)


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


class Watchdog:
    """Ends a process that makes no progress, after writing all its stacks to a file.

    A thread of Python ends it with EXIT_HANG. Where native code holds Python's lock, that thread
    cannot run, and faulthandler's own ends it a little later, with EXIT_ERROR.

    Args:
        path: The file for the stacks; it stays empty in a healthy run.
    """

    def __init__(self, path: str | os.PathLike):
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a")  # noqa: SIM115 (faulthandler needs it open)
        self._lock = threading.Condition()
        self._phase, self._seconds, self._deadline = "", 0.0, None
        self._closed = False
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def expect(self, phase: str, seconds: float) -> None:
        """The next call must come within so many seconds; `phase` names what is going on."""
        faulthandler.dump_traceback_later(
            seconds + NATIVE_GRACE_SECONDS, exit=True, file=self._file
        )
        with self._lock:
            self._phase, self._seconds = phase, seconds
            self._deadline = time.monotonic() + seconds
            self._lock.notify()

    @contextlib.contextmanager
    def phase(self, phase: str, seconds: float) -> Iterator[None]:
        """A limit for a block; afterwards nothing is expected until the next call."""
        self.expect(phase, seconds)
        try:
            yield
        finally:
            self.rest()

    def rest(self) -> None:
        """Expects nothing until the next `expect`."""
        faulthandler.cancel_dump_traceback_later()
        with self._lock:
            self._deadline = None
            self._lock.notify()

    def close(self) -> None:
        """Ends the watch."""
        self.rest()
        with self._lock:
            self._closed = True
            self._lock.notify()

    def _watch(self) -> None:
        with self._lock:
            while not self._closed:
                if self._deadline is None:
                    self._lock.wait()
                elif (left := self._deadline - time.monotonic()) > 0:
                    self._lock.wait(left)
                else:
                    break
            else:
                return
            what = f'no progress in "{self._phase}" for {self._seconds:g} s'
        self._file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {what}\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file)
        _say(f"HANG: {what}. All stacks are in {self._file.name}; ending with {EXIT_HANG}.")
        os._exit(EXIT_HANG)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """For the start of a command: input that is refused there ends it with EXIT_CONFIG.

    With `end_on_error`, the message then stands alone: it says what was found and what is needed.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if not hasattr(error, "exit_code"):
            error.exit_code = EXIT_CONFIG
        raise


def end_on_error() -> None:
    """Makes an uncaught error end the process at once, with the error's own exit code.

    With several processes the end skips Python's orderly shutdown: that waits minutes for the
    other processes, which in turn wait for this one.
    """

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, SystemExit):
            code = error.code if isinstance(error.code, int) else EXIT_ERROR
        else:
            code = getattr(error, "exit_code", EXIT_ERROR)
            if code in (EXIT_CONFIG, EXIT_STORAGE, EXIT_NUMBERS):  # the message says it all
                _say(f"{kind.__name__}: {error}")
            else:
                _say("".join(traceback.format_exception(kind, error, trace)))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        logging.flush()
        if jax.process_count() > 1:
            os._exit(code)
        raise SystemExit(code)

    sys.excepthook = end

    def end_from_thread(args: threading.ExceptHookArgs) -> None:
        _say("".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)))
        os._exit(getattr(args.exc_value, "exit_code", EXIT_ERROR))

    threading.excepthook = end_from_thread


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


def _say(text: str) -> None:
    """Writes at once, past logging's locks: a signal may have come while one was held."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text.rstrip()}\n".encode())
