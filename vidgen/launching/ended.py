"""How a process ended, and which of several ends was the first."""

import dataclasses
import signal
from collections.abc import Sequence

from vidgen.process import exit_codes

# An error in the code may follow from another process that is gone, and so may an abort: JAX ends
# a process so when the first one does not answer.
_MAY_FOLLOW = (exit_codes.ERROR, -signal.SIGABRT)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a start ended: by the process that failed first, or with success.

    Attributes:
        code: The exit code of the process, or minus the number of the signal that ended it.
        process: Its number in the run.
        host: The machine that it ran on.
        last_lines: Of its log.
        stack: Where its main thread was, if it wrote that down.
        lost: Why its machine was lost, or "": then nothing is known of the process itself.
    """

    code: int
    process: int = -1
    host: str = ""
    last_lines: str = ""
    stack: str = ""
    lost: str = ""

    def __str__(self) -> str:
        if self.lost:
            return f"{self.host} (process {self.process} and on) was lost: {self.lost}"
        return f"process {self.process} on {self.host} ended first, {self.how()}"

    def how(self) -> str:
        """The code in words."""
        if self.code < 0:
            known = {int(number): number.name for number in signal.Signals}
            return f"by {known.get(-self.code, f'signal {-self.code}')}"
        meaning = exit_codes.MEANINGS.get(self.code, "unknown").partition(":")[0]
        return f"with {self.code} ({meaning})"

    @property
    def was_told(self) -> bool:
        """Whether the other processes have heard of it from this one, and end by themselves."""
        return self.code > 0 and not self.lost


def first(ends: Sequence[Ended]) -> Ended:
    """Of ends in the order of their arrival the one that is most likely the cause."""
    return min(ends, key=lambda ended: not ended.lost and ended.code in _MAY_FOLLOW)
