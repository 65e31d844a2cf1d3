"""A pool of plain child processes for code that may crash, hang or leak: decoders, above all.

A child is `python -m data_pipelines.workers.children`: it never loads the program's main module,
and JAX is closed to it, so that no worker can take accelerator memory whatever the main program
imports. Each call has a deadline, and a pool may bound what its children keep in memory. A child
that dies, is stuck or takes too much is killed with all it started and replaced, and the call
raises `WorkerDied`; the children end with their parent, also when that is killed. Files that the
parent has opened go to a child as open files, so that a child behind `guard` need not open any
itself.

Answers of a child are data: its pickles may name arrays, exceptions and the dataclasses of this
package, and nothing else, since a decoder that was taken over would write them.
"""

import builtins
import dataclasses
import importlib
import io
import os
import pickle
import queue
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import BinaryIO

from data_pipelines.workers import guard

_WATCH_SECONDS = 0.05  # between two looks at the memory of a child that is at work
_MAX_ANSWER_BYTES = 2 << 30
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class WorkerDied(RuntimeError):
    """A call ended without an answer. `reason` is "crash", "hang" or "memory"."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Pool:
    """Calls a function in child processes, from any thread.

    Args:
        num_workers: Children, started when first needed.
        make: "module:function" that a child calls once, with `args`, and which returns the function
            that it calls for each task. `make` is the place to call `guard.enter`.
        args: Picklable.
        deadline_seconds: For each call; a child has at least a minute to start.
        memory_bytes: A child with more resident memory is killed; one that keeps more than half of
            it between two calls (it leaks) is replaced quietly. None: no bound.
        max_calls: A child is replaced after so many calls. None: never.
    """

    def __init__(
        self,
        num_workers: int,
        make: str,
        args: tuple = (),
        deadline_seconds: float = 300.0,
        *,
        memory_bytes: int | None = None,
        max_calls: int | None = None,
    ):
        self.deadline_seconds = deadline_seconds
        self.memory_bytes, self.max_calls = memory_bytes, max_calls
        self._start = pickle.dumps((make, args, [p for p in sys.path if p], deadline_seconds))
        self._idle: queue.LifoQueue = queue.LifoQueue()
        self._children: set[_Child] = set()
        self._end = weakref.finalize(self, _kill_all, self._children)  # at exit too
        self.closed = False
        for _ in range(num_workers):
            self._idle.put(None)

    def __call__(self, task, files: Sequence[BinaryIO] = ()):
        """Returns the function's result for a task; its exceptions are raised here.

        Args:
            task: Picklable.
            files: Open files (of the system, with a file number), which the function gets as binary
                files after the task: `function(task, *files)`. Their positions are shared.

        Raises:
            WorkerDied: If the child crashed, passed the deadline or took too much memory.
        """
        child = self._idle.get()
        try:
            if self.closed:
                raise RuntimeError("the pool is closed")
            if child is None:
                child = _Child(self.memory_bytes)
                self._children.add(child)
                child.start(self._start, max(60.0, self.deadline_seconds))
            good, result = child.call(pickle.dumps(task, 5), self.deadline_seconds, files)
            if self._is_worn(child):
                self._drop(child)
                child = None
        except BaseException:
            if child is not None:
                self._drop(child)
            child = None
            raise
        finally:
            self._idle.put(child)
        if not good:
            raise result
        return result

    def _is_worn(self, child: "_Child") -> bool:
        if self.max_calls is not None and child.calls > self.max_calls:  # the start is a call
            return True
        return self.memory_bytes is not None and 2 * child.resident_bytes() > self.memory_bytes

    def _drop(self, child: "_Child"):
        child.kill()
        self._children.discard(child)

    def pids(self) -> list[int]:
        """Returns the process ids of the children that are running."""
        return [child.process.pid for child in list(self._children)]

    def close(self):
        """Ends the children; calls that are running or waiting fail."""
        self.closed = True
        self._end()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _kill_all(children: set["_Child"]):
    while children:
        children.pop().kill()


class _Child:
    """One child process: messages are pickles with their length in front."""

    def __init__(self, memory_bytes: int | None):
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        # one thread a child: many children share the cores
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "data_pipelines.workers.children"],
                stdin=theirs,
                stdout=subprocess.PIPE,
                env=env,
                bufsize=0,
                start_new_session=True,  # a Ctrl-C is for the parent, which ends the children
            )
        self.memory_bytes, self.calls = memory_bytes, 0

    def start(self, message: bytes, deadline_seconds: float):
        """Sends the first message: what to call."""
        good, error = self.call(message, deadline_seconds)
        if not good:
            raise error

    def call(self, message: bytes, deadline_seconds: float, files: Sequence[BinaryIO] = ()):
        deadline = time.monotonic() + deadline_seconds
        self.calls += 1
        try:
            numbers = [file.fileno() for file in files]
            head = struct.pack("<QQ", len(message), len(numbers))
            self._send(head, deadline, numbers)
            self._send(message, deadline)
            size = struct.unpack("<Q", self._read(8, deadline))[0]
            if size > _MAX_ANSWER_BYTES:
                raise WorkerDied("crash", f"a worker process announced {size} bytes of answer.")
            return _Answer(io.BytesIO(self._read(size, deadline))).load()
        except (BrokenPipeError, ConnectionResetError, EOFError) as error:
            code = self.process.wait()
            raise WorkerDied("crash", f"a worker process ended with code {code}.") from error
        except pickle.UnpicklingError as error:
            raise WorkerDied("crash", f"a worker process answered nonsense: {error}.") from error
        except TimeoutError as error:
            message = f"a worker process gave no answer within {deadline_seconds:g} s."
            raise WorkerDied("hang", message) from error

    def resident_bytes(self) -> int:
        """Returns the physical memory of the child, 0 where the system does not tell."""
        try:
            with open(f"/proc/{self.process.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            return 0

    def _send(self, content: bytes, deadline: float, files: Sequence[int] = ()):
        content = memoryview(content)
        while content:
            self.socket.settimeout(max(1e-3, deadline - time.monotonic()))
            sent = socket.send_fds(self.socket, [content], files) if files else 0
            content, files = content[sent or self.socket.send(content) :], ()

    def _read(self, size: int, deadline: float) -> bytearray:
        content, handle = bytearray(), self.process.stdout.fileno()
        while len(content) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            wait = left if self.memory_bytes is None else min(left, _WATCH_SECONDS)
            if select.select([handle], [], [], wait)[0]:
                chunk = os.read(handle, min(size - len(content), 1 << 20))
                if not chunk:
                    raise EOFError
                content += chunk
            elif self.memory_bytes is not None and self.resident_bytes() > self.memory_bytes:
                message = f"a worker process took more than {self.memory_bytes >> 20} MiB."
                raise WorkerDied("memory", message)
        return content

    def kill(self):
        """Ends the child and every process it has started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()
        self.process.wait()
        self.socket.close()


class _Answer(pickle.Unpickler):
    """Reads an answer: names in it stand for arrays, exceptions and our dataclasses alone."""

    _NAMES = frozenset({"set", "frozenset", "complex", "bytearray", "range", "slice"})
    _NUMPY = frozenset({"ndarray", "dtype", "_reconstruct", "_frombuffer", "scalar"})

    def find_class(self, module: str, name: str):
        if module == "builtins" and name in self._NAMES:
            return getattr(builtins, name)
        if module.partition(".")[0] == "numpy" and name in self._NUMPY:
            return super().find_class(module, name)
        if module.partition(".")[0] == "data_pipelines":
            importlib.import_module(module)
        found = getattr(sys.modules.get(module), name, None)
        is_data = isinstance(found, type) and (
            issubclass(found, Exception) or dataclasses.is_dataclass(found)
        )
        if is_data and module.partition(".")[0] in ("builtins", "data_pipelines"):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in an answer")


def _serve():
    """The life of a child: one start message, then tasks until the parent's end is closed."""
    sys.modules["jax"] = None  # an import of JAX raises ImportError
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    source, target = socket.socket(fileno=0), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    function: Callable | None = None
    cpu_seconds = None
    while message := _receive(source):
        content, files = message
        try:
            if function is None:
                make, args, paths, deadline_seconds = pickle.loads(content)
                cpu_seconds = deadline_seconds * (os.cpu_count() or 1)  # threads add up
                sys.path += [path for path in paths if path not in sys.path]
                module, name = make.split(":")
                function = getattr(importlib.import_module(module), name)(*args)
                # after the guard, which can leave the network only while there is one thread
                threading.Thread(target=_watch, args=(parent,), daemon=True).start()
                answer = (True, None)
            else:
                guard.limit_cpu(cpu_seconds)  # should the parent be stopped and not count
                answer = (True, function(pickle.loads(content), *files))
        except Exception as error:
            answer = (False, error)
        finally:
            for file in files:
                file.close()
        try:
            target.write(_frame(_encode(answer)))
            target.flush()
        except BrokenPipeError:
            os._exit(0)  # the parent is gone, and nobody asks


def _receive(source: socket.socket) -> tuple[bytes, list[BinaryIO]] | None:
    """Returns the next message and the files that came with it; None at the end."""
    head, numbers, _, _ = socket.recv_fds(source, 16, 64)
    if not head:
        return None
    head += _exactly(source, 16 - len(head))
    size, _ = struct.unpack("<QQ", head)
    return _exactly(source, size), [os.fdopen(number, "rb") for number in numbers]


def _exactly(source: socket.socket, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        chunk = source.recv(min(size - len(content), 1 << 20))
        if not chunk:
            sys.exit(0)  # the parent is gone
        content += chunk
    return bytes(content)


def _encode(answer: tuple) -> bytes:
    """Pickles an answer; an exception of a class that the parent would refuse is a RuntimeError."""
    good, result = answer
    is_known = type(result).__module__.partition(".")[0] in ("builtins", "data_pipelines")
    if not good and not is_known:
        result = RuntimeError(f"{type(result).__name__}: {result}")
    try:
        content = pickle.dumps((good, result), 5)
        if not good:
            _Answer(io.BytesIO(content)).load()  # some exceptions pickle, and do not come back
    except Exception as error:
        content = pickle.dumps((False, RuntimeError(f"{result!r} ({error})")), 5)
    return content


def _frame(message: bytes) -> bytes:
    return struct.pack("<Q", len(message)) + message


def _watch(parent: int):
    """Ends a child that is at work when its parent dies; an idle one sees the socket close."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    _serve()
