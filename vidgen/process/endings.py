"""How a process ends: by which code, with which words, and what it tells the others."""

import contextlib
import errno
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType

from absl import logging

from vidgen.process import exit_codes, ranks

TRACKERS = ("tensorboardX", "wandb")  # whose threads may fail: training goes on
# Errors of a disk or a network's file system, which another start may not meet.
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """For the start of a command: input that is refused there ends it with exit_codes.REFUSED.

    With `end_on_error`, the message then stands alone: it says what was found and what is needed.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if not hasattr(error, "exit_code"):
            is_storage = getattr(error, "errno", None) in _STORAGE
            error.exit_code = exit_codes.STORAGE if is_storage else exit_codes.REFUSED
        raise


def end_on_error() -> None:
    """Makes an uncaught error end the process at once, with the error's own exit code.

    With several processes the others are told, and end with the same code; see `ranks.farewell`.
    The end then skips Python's orderly shutdown: that waits minutes for the other processes, which
    in turn wait for this one.
    """

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        code = _end(error)
        if ranks.count() > 1 or code in exit_codes.TOLD:
            ranks.leave(code)  # a thread that still writes may be stuck
        raise SystemExit(code)

    sys.excepthook = end

    def end_from_thread(args: threading.ExceptHookArgs) -> None:
        owner = type(args.thread).__module__.partition(".")[0]
        if not issubclass(args.exc_type, SystemExit) and owner not in TRACKERS:
            ranks.leave(_end(args.exc_value))

    threading.excepthook = end_from_thread


def _end(error: BaseException) -> int:
    """Says why, here and to the others; returns the exit code."""
    code = getattr(error, "exit_code", exit_codes.ERROR)
    text = f"{type(error).__name__}: {error}"
    reason = text if code in exit_codes.TOLD else text.splitlines()[0]
    end = ranks.farewell(code, reason)
    ranks.ended(end)
    if end.process != ranks.index():
        first = text.splitlines()[0]
        text = str(end) if first in end.reason else f"{end}\nHere, after that: {first}"
    elif end.reason != reason:
        text = end.reason  # a process is gone: where that showed in the code tells nothing
    elif isinstance(error, ranks.MissingError):
        pass
    elif code not in exit_codes.TOLD:
        text = "".join(traceback.format_exception(error))
    say(text)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    logging.flush()
    return end.code


def say(text: str) -> None:
    """Writes at once, past logging's locks: a signal may have come while one was held."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text.rstrip()}\n".encode())
