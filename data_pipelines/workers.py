"""A pool of plain child processes for code that may crash, hang or leak: decoders, above all.

A child is `python -m data_pipelines.workers`: it never loads the program's main module, and JAX is
closed to it, so that no worker can take accelerator memory whatever the main program imports. Each
call has a deadline. A child that dies or is stuck is killed and replaced, and the call raises
`WorkerDied`; the children end with their parent, also when that is killed.
"""

import importlib
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable


class WorkerDied(RuntimeError):
    """A call ended without an answer. `reason` is "crash" or "hang"."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Pool:
    """Calls a function in child processes, from any thread.

    Args:
        num_workers: Children, started when first needed.
        make: "module:function" that a child calls once, with `args`, and which returns the function
            that it calls for each task.
        args: Picklable.
        deadline_seconds: For each call; a child has at least a minute to start.
    """

    def __init__(self, num_workers: int, make: str, args: tuple = (), deadline_seconds=300.0):
        self.deadline_seconds = deadline_seconds
        self._start = pickle.dumps((make, args, [p for p in sys.path if p]))
        self._idle: queue.LifoQueue = queue.LifoQueue()
        self._children: set[_Child] = set()
        self.closed = False
        for _ in range(num_workers):
            self._idle.put(None)

    def __call__(self, task):
        """Returns the function's result for a task; its exceptions are raised here.

        Raises:
            WorkerDied: If the child crashed or passed the deadline.
        """
        child = self._idle.get()
        try:
            if self.closed:
                raise RuntimeError("the pool is closed")
            if child is None:
                child = _Child()
                self._children.add(child)
                child.start(self._start, max(60.0, self.deadline_seconds))
            good, result = child.call(pickle.dumps(task, 5), self.deadline_seconds)
        except BaseException:
            if child is not None:
                child.kill()
                self._children.discard(child)
            child = None
            raise
        finally:
            self._idle.put(child)
        if not good:
            raise result
        return result

    def pids(self) -> list[int]:
        """Returns the process ids of the children that are running."""
        return [child.process.pid for child in list(self._children)]

    def close(self):
        """Ends the children; calls that are running or waiting fail."""
        self.closed = True
        for child in list(self._children):
            child.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _Child:
    """One child process: messages are pickles with their length in front."""

    def __init__(self):
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        # one thread a child: many children share the cores
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "data_pipelines.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C is for the parent, which ends the children
        )

    def start(self, message: bytes, deadline_seconds: float):
        """Sends the first message: what to call."""
        good, error = self.call(message, deadline_seconds)
        if not good:
            raise error

    def call(self, message: bytes, deadline_seconds: float):
        deadline = time.monotonic() + deadline_seconds
        try:
            self.process.stdin.write(_frame(message))
            size = struct.unpack("<Q", self._read(8, deadline))[0]
            return pickle.loads(self._read(size, deadline))
        except (BrokenPipeError, EOFError) as error:
            code = self.process.wait()
            raise WorkerDied("crash", f"a worker process ended with code {code}.") from error
        except TimeoutError as error:
            message = f"a worker process gave no answer within {deadline_seconds:g} s."
            raise WorkerDied("hang", message) from error

    def _read(self, size: int, deadline: float) -> bytearray:
        content, handle = bytearray(), self.process.stdout.fileno()
        while len(content) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                raise TimeoutError
            chunk = os.read(handle, min(size - len(content), 1 << 20))
            if not chunk:
                raise EOFError
            content += chunk
        return content

    def kill(self):
        self.process.kill()
        self.process.wait()


def _frame(message: bytes) -> bytes:
    return struct.pack("<Q", len(message)) + message


def _serve():
    """The life of a child: one start message, then tasks until the parent's end of the pipe."""
    sys.modules["jax"] = None  # an import of JAX raises ImportError
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    source, target = os.fdopen(0, "rb", closefd=False), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    function: Callable | None = None
    while head := source.read(8):
        message = pickle.loads(source.read(struct.unpack("<Q", head)[0]))
        try:
            if function is None:
                make, args, paths = message
                sys.path += [path for path in paths if path not in sys.path]
                module, name = make.split(":")
                function = getattr(importlib.import_module(module), name)(*args)
                answer = (True, None)
            else:
                answer = (True, function(message))
        except Exception as error:
            answer = (False, error)
        try:
            content = pickle.dumps(answer, 5)
        except Exception as error:
            content = pickle.dumps((False, RuntimeError(f"{answer[1]!r} ({error})")), 5)
        target.write(_frame(content))
        target.flush()


def _watch(parent: int):
    """Ends a child that is at work when its parent dies; an idle one sees the pipe close."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    _serve()
