"""Calls that may never come back: a read from storage that hangs cannot be interrupted, only left.

A call runs in a thread of its own and reports what it is about to do. When it reports nothing for
too long, its caller goes on with an error that says what it was doing; the thread is left behind.
"""

import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Stalled(TimeoutError):
    """A call made no progress. `what` is the last thing that it reported."""

    def __init__(self, what, seconds: float):
        super().__init__(f"{what}: no answer within {seconds:g} s.")
        self.what = what


def run(function: Callable[[Callable], Result], seconds: float) -> Result:
    """Returns function(report), where `report(what)` says what comes next.

    Args:
        function: Has to call `report` at least once every `seconds`.
        seconds: The longest time without a report.

    Raises:
        Stalled: If there was none for so long.
    """
    progress = [("start", time.monotonic())]
    future: concurrent.futures.Future = concurrent.futures.Future()

    def report(what):
        progress[0] = (what, time.monotonic())

    def work():
        try:
            future.set_result(function(report))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="deadline", daemon=True).start()
    while not future.done():
        what, since = progress[0]
        left = since + seconds - time.monotonic()
        if left <= 0:
            raise Stalled(what, seconds)
        concurrent.futures.wait([future], left)
    return future.result()
