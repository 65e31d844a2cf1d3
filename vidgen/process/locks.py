"""A file that one process holds, and that says who. Needs nothing but the standard library."""

import fcntl
import os
import socket
import time
from typing import TextIO


class InUseError(ValueError):
    """Another process has it; says which, or "" where that is not known."""


def take(path: str | os.PathLike, what: str, more: str = "") -> TextIO:
    """Takes a file, which is to stay open; the system lets go of it when this process ends.

    Where the file system has no locks it is taken all the same.

    Args:
        path: The file.
        what: What this process is, such as "launch".
        more: Goes to the end of the line in the file.

    Raises:
        InUseError: If another process has it.
        OSError: If it cannot be written.
    """
    file = open(path, "a+")  # noqa: SIM115 (held until the process ends)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise InUseError(file.read().strip()) from None
    except OSError:
        pass  # a file system without locks
    started = time.strftime("%Y-%m-%d %H:%M:%S%z")
    who = f"{what} {os.getpid()} on {socket.gethostname()} since {started}"
    file.truncate(0)
    file.write(f"{who} {more}".rstrip() + "\n")
    file.flush()
    os.fsync(file.fileno())
    return file
