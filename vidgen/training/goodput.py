"""Where the seconds of a run went, over all its starts: each second of each process in one class.

Read from the files that `process.phases` writes. Besides the phases there are three classes that
only the whole run knows: `recomputed`, steps that a later start did again; `hang`, a phase that
ended past its limit; and `down`, between the last sign of one start and the begin of the next.
"""

import collections
import dataclasses
import datetime
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

from vidgen.process import exit_codes

USEFUL = ("step",)  # the classes that bring a run forward
OF_STEPS = ("step", "data", "compile")  # what is done again with a step
SLOW = 1.33  # times the median of all processes makes a straggler
SLOW_SHARE = 0.02  # of a step, that its wait for data must be to matter


@dataclasses.dataclass
class Start:
    """One start of one process."""

    process: int
    host: str
    began: float  # seconds since 1970
    seconds: float  # until its last sign
    lines: list[dict]
    goes_on_from: int | None  # the step that it restored, or 0; None where it did not come so far
    code: int | None  # what it ended with; None where it was killed
    reason: str

    @property
    def last_step(self) -> int:
        """The last step that it was seen in."""
        return max((line["step"] for line in self.lines), default=0)


class Account:
    """The classes of the first process over all starts, while the last of them goes on.

    Args:
        folder: The working folder; the steps that this start goes on from stand in its ledger.
        now: Seconds in each phase of this start so far.
    """

    def __init__(self, folder: str | os.PathLike, now: Callable[[], Mapping[str, float]]):
        self._folder, self._now = pathlib.Path(folder), now

    @functools.cached_property
    def _before(self) -> tuple[dict[str, float], int]:
        """(classes of the starts before this one, how many starts there are)."""
        *before, this = read(self._folder, 0)[0]
        return classes([*before, dataclasses.replace(this, lines=[])]), len(before) + 1

    def shares(self) -> dict[str, float]:
        """Of all the time, by class."""
        total = collections.Counter(self._before[0])
        total.update(self._now())
        return {name: seconds / sum(total.values()) for name, seconds in total.most_common()}

    def describe(self) -> str:
        """The same in a line."""
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.shares().items())
        before, starts = self._before
        spent = datetime.timedelta(seconds=round(sum([*before.values(), *self._now().values()])))
        return f"{spent} in {starts} start{'s' * (starts > 1)}: {shares}"


def read(folder: pathlib.Path, process: int | None = None) -> dict[int, list[Start]]:
    """{process: its starts in their order} of a working folder; lines cut short are left out."""
    found = collections.defaultdict(list)
    for path in (folder / "ledger").glob(f"*-{'*' if process is None else process}.jsonl"):
        lines = []
        for text in path.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
                lines.append({"step": 0, "spent": {}, **line})
            except (ValueError, TypeError):
                continue
        if not lines or "started" not in lines[0]:
            continue
        first, last = lines[0], lines[-1]
        restored = next((line["goes_on_from"] for line in lines if "goes_on_from" in line), None)
        ends = [line for line in lines if "end" in line]
        code = ends[-1]["end"] if ends else exit_codes.HANG if "hang" in last else None
        start = Start(
            first["process"],
            first["host"],
            first["started"],
            last["at"],
            lines,
            restored,
            code,
            ends[-1].get("reason", "") if ends else "",
        )
        found[start.process].append(start)
    return {process: sorted(found[process], key=lambda s: s.began) for process in sorted(found)}


def classes(starts: Iterable[Start]) -> dict[str, float]:
    """Seconds in each class, of one process; they add up to the time from begin to end."""
    starts, total = list(starts), collections.Counter()
    for number, start in enumerate(starts):
        later = starts[number + 1 :]
        following = later[0] if later else None
        begins = [one.goes_on_from for one in later if one.goes_on_from is not None]
        again_from = min(begins, default=start.last_step)
        before = start.goes_on_from or 0
        for line in start.lines:
            spent, step = dict(line["spent"]), line["step"]
            lost = max(0, step - max(before, again_from)) / max(1, step - before)
            before = max(before, step)
            for name in OF_STEPS:
                if name in spent:
                    total["recomputed"] += lost * spent[name]
                    spent[name] *= 1 - lost
            total.update(spent)
            if "hang" in line:
                hang = min(line["hang"], total[line["phase"]])
                total.update({"hang": hang, line["phase"]: -hang})
        if following:
            total["down"] += max(0.0, following.began - start.began - start.seconds)
    return dict(total)


def stragglers(runs: Mapping[int, list[Start]]) -> list[str]:
    """Processes that wait for data, or save, longer than the others; in words."""
    found = []
    for name in ("data", "save"):
        seconds = {process: classes(starts).get(name, 0.0) for process, starts in runs.items()}
        median = sorted(seconds.values())[(len(seconds) - 1) // 2]
        for process, mine in seconds.items():
            steps = classes(runs[process]).get("step", 0.0)
            if mine > SLOW * median and mine - median > SLOW_SHARE * steps and len(runs) > 1:
                host = runs[process][-1].host
                found.append(
                    f"process {process} on {host} spent {mine:.1f} s in {name}, where half of "
                    f"them spent no more than {median:.1f} s"
                )
    return found


def describe(folder: pathlib.Path) -> str:
    """The classes of a run, how each start ended, and stragglers, as a table in text.

    Raises:
        ValueError: If the folder has no ledger.
    """
    runs = read(folder)
    if not runs:
        raise ValueError(
            f"{folder} has no ledger: give the --workdir of a run that vidgen.train has begun."
        )
    total, most = collections.Counter(), max(map(len, runs.values()))
    whole = [starts for starts in runs.values() if len(starts) == most]  # that were always there
    for starts in whole:
        total.update(classes(starts))
    seconds = sum(total.values())
    lines = [f"{'class':<12}{'seconds':>12}{'share':>9}"]
    for name, spent in total.most_common():
        lines.append(f"{name:<12}{spent / len(whole):>12.1f}{spent / seconds:>9.2%}")
    good = sum(total[name] for name in USEFUL) / seconds
    lines.append(f"{good:.2%} of the time brought the run forward.")
    first = next(iter(runs.values()))
    for number, start in enumerate(first, 1):
        how = "killed, or still running" if start.code is None else _ended(start)
        lines.append(
            f"start {number}: steps {start.goes_on_from or 0} to {start.last_step}, "
            f"{start.seconds:.1f} s, {how}"
        )
    return "\n".join([*lines, *stragglers(runs)])


def _ended(start: Start) -> str:
    meaning = exit_codes.MEANINGS.get(start.code, "").partition(":")[0]
    return f"ended with {start.code} ({start.reason or meaning})"
